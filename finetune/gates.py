"""Gates: the limits of a recipe held against what was measured. HANDOFF enforces them, the report shows them."""

from collections.abc import Iterator, Mapping
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


def vetoes(settings: Gates, exported: Mapping[str, Mapping[str, Any]]) -> dict[str, str | None]:
    """Scheme -> why a quantised model of export.json may not be handed over, with the number; None where it may.

    Unlike a failed gate this leaves out one model and not the bundle. What was not measured is never handed over.
    """
    return {scheme: next(_vetoes(settings, found), None) for scheme, found in exported.items()}


def _vetoes(settings: Gates, found: Mapping[str, Any]) -> Iterator[str]:
    for task, scored in found["tasks"].items():
        loss = scored["loss"]
        if not _measured(loss):
            yield f"its score of {task} could not be measured"
        elif loss > settings.export_loss_max:
            yield (
                f"it loses {loss:.4f} of {task} ({scored['tuned']:.4f} -> {scored['quantised']:.4f}), more than "
                f"gates.export_loss_max={settings.export_loss_max}"
            )
    limit, kl = settings.export_kl_mean_max, found["kl_mean"]
    if not _measured(kl):
        yield "its KL to the merged model could not be measured"
    elif limit is not None and kl > limit:
        yield f"its KL to the merged model is {kl:.3g} nats a position, more than gates.export_kl_mean_max={limit}"


def _gate(name: str, value: Any, limit: float | None, holds: Any) -> dict[str, Any] | None:
    if limit is None:
        return None
    if not _measured(value):
        return {"name": name, "value": None, "limit": limit, "status": "not_measured"}
    return {"name": name, "value": value, "limit": limit, "status": "pass" if holds(value, limit) else "fail"}


def _measured(value: Any) -> bool:
    return isinstance(value, int | float) and value == value and abs(value) != float("inf")
