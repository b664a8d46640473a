"""Section `dpo` and ready-made preferences: what TRL would refuse after the model is loaded, and what has no effect."""

from collections.abc import Iterator, Mapping
from typing import Any

from finetune.checks.data import check_source_name, check_template, is_broken
from finetune.config import Recipe
from finetune.config.data import ReadyPreferences, placeholders
from finetune.config.upstream import divergent_losses
from finetune.errors import Problem

_SORTS = ("aot", "aot_unpaired")


def check_preferences(recipe: Recipe) -> Iterator[Problem]:
    for name, use in recipe.preferences.items():
        yield from _check_use(f"preferences.{name}", use, recipe)
    if "dpo" in recipe.stages:
        yield from _check_losses(recipe.dpo.trl)
        if recipe.dpo.pairs is None and not recipe.preferences:
            rule = "samples no preferences, and the recipe brings none along"
            yield Problem("dpo.pairs", None, rule, "drop dpo.pairs=null, or add preferences: {NAME: {source: ...}}")


def _check_use(path: str, use: ReadyPreferences, recipe: Recipe) -> Iterator[Problem]:
    yield from check_source_name(f"{path}.source", use.source, recipe)
    for key, template in use.templates.items():
        yield from check_template(f"{path}.{key}", template)
        if key != "system" and not is_broken(template) and not placeholders(template):
            yield Problem(f"{path}.{key}", template, "names no column, so every row would say the same", "like {text}")
    if use.messages is None:
        for key in ("prompt", "chosen"):
            if getattr(use, key) is None:
                yield Problem(f"{path}.{key}", None, "is given, or messages is", f"add {path}.{key} or {path}.messages")
        if use.tools is not None:
            yield Problem(f"{path}.tools", use.tools, "goes with messages, and only with them", f"drop {path}.tools")
        if (use.chosen_reasoning is None) != (use.rejected_reasoning is None):
            rule = "both answers carry reasoning or none does: they answer one prompt in one mode"
            missing = "chosen" if use.chosen_reasoning is None else "rejected"
            yield Problem(f"{path}.{missing}_reasoning", None, rule, "give both or neither")
    else:
        for key in ("prompt", "chosen", "chosen_reasoning"):
            if (value := getattr(use, key)) is not None:
                rule = f"comes from the conversations of {path}.messages"
                yield Problem(f"{path}.{key}", value, rule, f"drop {path}.{key}, or {path}.messages")
    mode = "plain" if use.rejected_reasoning is None else "think"
    if use.messages is None and mode not in recipe.model.modes:
        rule = f"makes rows of mode {mode}, which {recipe.model.name} does not have"
        yield Problem(path, None, rule, "drop the reasoning templates" if mode == "think" else "add both reasonings")


def _check_losses(trl: Mapping[str, Any]) -> Iterator[Problem]:
    given = trl.get("loss_type") or ["sigmoid"]
    losses = [given] if isinstance(given, str) else list(given)
    weights, smoothing = trl.get("loss_weights"), trl.get("label_smoothing") or 0.0
    if isinstance(weights, list | tuple) and len(weights) != len(losses):
        yield Problem("dpo.trl.loss_weights", list(weights), f"has not one number for each of {losses}", "give as many")
    if "exo_pair" in losses and not smoothing > 0:
        rule = "exo_pair needs a share above 0 (its paper recommends 1e-3)"
        yield Problem("dpo.trl.label_smoothing", smoothing, rule, "dpo.trl.label_smoothing=1e-3")
    if "robust" in losses and not 0 <= smoothing < 0.5:
        rule = "robust takes it as the share of wrong labels, 0 to below 0.5"
        yield Problem("dpo.trl.label_smoothing", smoothing, rule, "dpo.trl.label_smoothing=0.1")
    for loss in losses:
        if trl.get("use_weighting") and loss in _SORTS:
            rule = f"weights pairs, and {loss} takes them apart by sorting"
            yield Problem("dpo.trl.use_weighting", True, rule, "dpo.trl.use_weighting=false, or another loss_type")
        divergence = trl.get("f_divergence_type", "reverse_kl")
        if divergence != "reverse_kl" and loss not in divergent_losses():
            rule = f"does not go with loss_type {loss}: it is defined for {', '.join(divergent_losses())}"
            yield Problem("dpo.trl.f_divergence_type", divergence, rule, "dpo.trl.f_divergence_type=reverse_kl")
    alpha = trl.get("ld_alpha")
    if isinstance(alpha, int | float) and not 0 <= alpha <= 1:
        yield Problem("dpo.trl.ld_alpha", alpha, "is a share of 0 to 1", "dpo.trl.ld_alpha=0.5")
