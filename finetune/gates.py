"""Gates: the limits of a recipe held against what was measured. HANDOFF enforces them, the report shows them."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from finetune.config.evaluation import Gates

_UNKNOWN = math.nan
"""Was to be measured and could not be."""


def weights_of(files: Mapping[str, str]) -> dict[str, str]:
    """Name -> sha256 of the weights among the files of a model directory, wherever it lies."""
    return {name.rpartition("/")[2]: digest for name, digest in files.items() if name.endswith(".safetensors")}


def of_these_weights(latency: Mapping[str, Any] | None, weights: Mapping[str, str]) -> dict[str, Any] | None:
    """latency.json with `not_counted`: why it says nothing of the checkpoint whose `weights` these are; None where it
    does. Of an address nobody knows what it serves."""
    if latency is None:
        return None
    served = latency.get("weights")
    why = "unknown_weights" if not served else None if served == dict(weights) else "other_weights"
    return {**latency, "not_counted": why}


def evaluate_gates(
    settings: Gates, scores: Mapping[str, Any], parity: Mapping[str, Any], *, main_task: str
) -> list[dict[str, Any]]:
    """One `{name, value, limit, status: pass | fail | not_measured}` for each gate that is asked for.

    `scores` is scores.json (`latency`: what of_these_weights says, where there is one), `parity` is parity.json. A
    latency of other or unknown weights is `not_measured`, and so is a number that nobody
    measured is `not_measured`; one that was measured and is not finite fails, with value None: it holds no limit.
    """
    main: Mapping[str, Any] = next((task for task in scores["tasks"] if task["name"] == main_task), {})
    before, after = scores["general"]["perplexity_base"], scores["general"]["perplexity_tuned"]
    rises = [after[kind] / before[kind] - 1 if kind in after else _UNKNOWN for kind in before]
    rise = None if not rises else max(rises) if all(map(math.isfinite, rises)) else _UNKNOWN
    measured = {
        "gain_above": (main.get("ci95") or [None])[0],
        "perplexity_rise_max": rise,
        "parity_kl_mean_max": parity.get("kl_mean"),
        "consistency_min": (scores.get("consistency") or {}).get("share_same"),
        "context_loss_max": (scores.get("context") or {}).get("loss"),
        "latency_p95_max": _answered_within(scores.get("latency")),
        "leaks_max": (scores.get("leaks") or {}).get("total"),
    }
    limits = {name: getattr(settings, name) for name in measured}
    return [_gate(name, value, limits[name]) for name, value in measured.items() if limits[name] is not None]


def _answered_within(latency: Mapping[str, Any] | None) -> float | None:
    if not latency or latency["not_counted"]:
        return None
    found: float | None = latency["answer_s"]["p95"]
    return _UNKNOWN if found is None else found  # so many requests were lost that it is not within any time


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


def _gate(name: str, value: Any, limit: float) -> dict[str, Any]:
    if value is None:
        return {"name": name, "value": None, "limit": limit, "status": "not_measured"}
    if not _measured(value):
        return {"name": name, "value": None, "limit": limit, "status": "fail"}
    held = value > limit if name.endswith("_above") else value >= limit if name.endswith("_min") else value <= limit
    return {"name": name, "value": value, "limit": limit, "status": "pass" if held else "fail"}


def _measured(value: Any) -> bool:
    return isinstance(value, int | float) and value == value and abs(value) != float("inf")
