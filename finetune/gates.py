"""Gates: the limits of a recipe held against what was measured. HANDOFF enforces them, the report shows them."""

from collections.abc import Mapping
from typing import Any

from finetune.config.evaluation import Gates


def evaluate_gates(
    settings: Gates, scores: Mapping[str, Any], parity: Mapping[str, Any], *, main_task: str
) -> list[dict[str, Any]]:
    """One `{name, value, limit, status: pass | fail | not_measured}` for each gate that is asked for.

    `scores` is scores.json ({tasks, general}), `parity` is parity.json. A number that is missing or not finite is
    `not_measured`, never a pass.
    """
    main: Mapping[str, Any] = next((task for task in scores["tasks"] if task["name"] == main_task), {})
    low = (main.get("ci95") or [None])[0]
    before, after = scores["general"]["perplexity_base"], scores["general"]["perplexity_tuned"]
    known = bool(before) and all(_measured(before[kind]) and _measured(after.get(kind)) for kind in before)
    rise = max(after[kind] / before[kind] - 1 for kind in before) if known else None
    gates = [
        _gate("gain_above", low, settings.gain_above, lambda value, limit: value > limit),
        _gate("perplexity_rise_max", rise, settings.perplexity_rise_max, lambda value, limit: value <= limit),
        _gate("parity_kl_mean_max", parity.get("kl_mean"), settings.parity_kl_mean_max, lambda v, limit: v <= limit),
    ]
    return [gate for gate in gates if gate is not None]


def _gate(name: str, value: Any, limit: float | None, holds: Any) -> dict[str, Any] | None:
    if limit is None:
        return None
    if not _measured(value):
        return {"name": name, "value": None, "limit": limit, "status": "not_measured"}
    return {"name": name, "value": value, "limit": limit, "status": "pass" if holds(value, limit) else "fail"}


def _measured(value: Any) -> bool:
    return isinstance(value, int | float) and value == value and abs(value) != float("inf")
