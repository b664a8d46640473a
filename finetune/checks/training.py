"""Stages, model, method, lengths, and what may leave the machine."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from finetune.config import Recipe
from finetune.errors import Problem, RecipeError
from finetune.memory.counts import adapted_modules
from finetune.signing import is_demo, load_private

_ORDER = ("cpt", "sft", "dpo")
_STARTS: Mapping[str, str] = {
    "pissa": "changes the base, and the merge would add the adapter to the untouched one",
    "olora": "changes the base, and the merge would add the adapter to the untouched one",
    "corda": "changes the base, after a pass over data (preprocess_corda) that no stage makes",
    "loftq": "changes the base, and the merge would add the adapter to the untouched one",
    "lora_ga": "needs gradients of data that no stage computes; without them it is plain LoRA in silence",
    "eva": "needs activations of data that no stage computes; without them it is a random start in silence",
    "mica": "is not proven to be merged exactly",
}
"""init_lora_weights that is refused -> why; all of them were tried on the tiny model (tests/test_methods.py)."""


def check_stages(recipe: Recipe) -> Iterator[Problem]:
    stages = list(recipe.stages)
    in_order = [name for name in _ORDER if name in stages]
    if not stages:
        yield Problem("stages", [], "at least one training stage must run", "stages=[sft]")
    elif stages != in_order:
        rule = "each stage runs once, in the order cpt, sft, dpo"
        yield Problem("stages", stages, rule, f"stages=[{','.join(in_order)}]")
    if "dpo" in stages and "sft" not in stages:
        rule = "dpo starts from what sft has learned: its adapter is the reference and gives the rejected answers"
        yield Problem("stages", stages, rule, "stages=[sft,dpo]")
    if "cpt" in stages and not recipe.text:
        yield Problem("text", [], "cpt trains on running text and the recipe names none", "add text: [{source: ...}]")
    if "sft" in stages and recipe.tasks and not any(task.train_rows for task in recipe.tasks.values()):
        yield Problem("tasks", None, "sft needs a task with train_rows above 0", "set train_rows of the main task")


def check_model(recipe: Recipe) -> Iterator[Problem]:
    model, shape = recipe.model, recipe.model.architecture
    if model.path is not None:
        if not Path(model.path, "config.json").is_file():
            rule = "is no model folder: it has no config.json"
            yield Problem("model.path", model.path, rule, "name the folder that holds config.json and *.safetensors")
    elif model.origin == "hub" and not re.fullmatch(r"[0-9a-f]{40}", model.revision or ""):
        rule = "a model from the hub is pinned to a commit (40 hex digits)"
        yield Problem("model.revision", model.revision, rule, f"model.revision=COMMIT of {model.name}")
    if model.default_mode not in model.modes:
        yield Problem("model.default_mode", model.default_mode, "is not one of model.modes", f"use {model.modes[0]}")
    if shape.num_attention_heads % shape.num_key_value_heads:
        rule = f"does not divide {shape.num_attention_heads} attention heads"
        path = "model.architecture.num_key_value_heads"
        yield Problem(path, shape.num_key_value_heads, rule, "copy the numbers of the model's config.json")
    if model.attn_implementation.startswith("flash") and recipe.machine.device == "cpu":
        rule = "needs a GPU"
        yield Problem("model.attn_implementation", model.attn_implementation, rule, "model.attn_implementation=sdpa")
    elif model.attn_implementation.startswith("flash") and model.dtype == "float32":
        rule, fix = "has no kernel for model.dtype=float32", "model.attn_implementation=sdpa, or model.dtype=bfloat16"
        yield Problem("model.attn_implementation", model.attn_implementation, rule, fix)


def check_method(recipe: Recipe) -> Iterator[Problem]:
    method, lora = recipe.method, recipe.method.lora
    if method.name == "qlora" and not (method.bnb or {}).get("load_in_4bit"):
        rule = "qlora trains on a 4-bit base"
        yield Problem("method.bnb", method.bnb, rule, "method.bnb.load_in_4bit=true, or method=lora")
    if method.name == "lora" and method.bnb:
        yield Problem("method.bnb", method.bnb, "lora trains on the unquantised base", "method=qlora")
    yield from _check_start(recipe)
    if lora.get("use_dora") and method.bnb and recipe.machine.layout == "zero3":
        rule = "under ZeRO-3 asks PEFT to gather weights that bitsandbytes holds whole on every rank, which fails"
        fix = "machine.layout=ddp machine.deepspeed=null, or method=lora"
        yield Problem("method.lora.use_dora", True, rule, fix)
    if lora.get("bias") in ("all", "lora_only"):
        rule = "trains biases, which these models do not have"
        yield Problem("method.lora.bias", lora["bias"], rule, "method.lora.bias=none")
    yield from _check_whole(recipe)
    try:
        if "lm_head" in adapted_modules(recipe.model.architecture, lora):
            rule = "names lm_head, whose weight TRL reads past any adapter: it would never be trained"
            yield Problem("method.lora.target_modules", lora.get("target_modules"), rule, "take lm_head out of it")
    except RecipeError as error:
        yield from error.problems
    except re.error as error:
        rule = f"is no regular expression ({error})"
        yield Problem("method.lora.target_modules", lora.get("target_modules"), rule, "all-linear, or a list of names")


def _check_start(recipe: Recipe) -> Iterator[Problem]:
    """What the adapter starts from."""
    path, init = "method.lora.init_lora_weights", recipe.method.lora.get("init_lora_weights", True)
    if not isinstance(init, str):
        return
    rule = next((rule for name, rule in _STARTS.items() if init.lower().startswith(name)), None)
    if init == "orthogonal" and recipe.method.bnb:
        rule = "makes parameters in the number format of the weight, and 4-bit ones cannot be trained"
    if rule:
        yield Problem(path, init, rule, f"{path}=true")


def _check_whole(recipe: Recipe) -> Iterator[Problem]:
    """Modules trained whole beside the adapter."""
    saved = recipe.method.lora.get("modules_to_save")
    if not saved:
        return
    rule = "trains modules whole, which the adapter's self-check at every save does not cover"
    if {"lm_head", "embed_tokens"} & set(saved) and recipe.model.architecture.tie_word_embeddings:
        rule = f"trains head and embedding apart, which {recipe.model.name} ties (transformers#45127)"
    fix = "method.lora.modules_to_save=null; for the embedding: method.lora.target_modules=[q_proj,...,embed_tokens]"
    yield Problem("method.lora.modules_to_save", saved, rule, fix)


def check_lengths(recipe: Recipe) -> Iterator[Problem]:
    limit, yarn = recipe.model.positions, recipe.model.rope_parameters
    trained = recipe.model.architecture.max_position_embeddings
    if yarn is not None and yarn.original_max_position_embeddings > trained:
        path, value = "model.rope_parameters.original_max_position_embeddings", yarn.original_max_position_embeddings
        yield Problem(path, value, f"is more than the {trained} positions of {recipe.model.name}", f"{path}={trained}")
    elif yarn is not None and limit <= trained:
        rule = f"reaches {limit} positions and {recipe.model.name} has {trained} without it"
        factor = trained // yarn.original_max_position_embeddings + 1
        fix = f"model.rope_parameters=null, or model.rope_parameters.factor={factor}"
        yield Problem("model.rope_parameters.factor", yarn.factor, rule, fix)
    for name in recipe.stages:
        length = getattr(recipe, name).max_length
        if length > limit:
            rule = f"is more than the {limit} positions of {recipe.model.name}" + (" with YaRN" if yarn else "")
            fix = f"{name}.max_length={limit}, or {_longer(recipe, length)}"
            yield Problem(f"{name}.max_length", length, rule, fix)
    if recipe.replay is not None and "sft" in recipe.stages and recipe.replay.tokens > recipe.sft.max_length:
        rule = f"is more than sft.max_length={recipe.sft.max_length}"
        yield Problem("replay.tokens", recipe.replay.tokens, rule, f"replay.tokens={recipe.sft.max_length}")


def _longer(recipe: Recipe, length: int) -> str:
    """What to type for a context of `length` tokens."""
    yarn = recipe.model.rope_parameters
    if yarn is not None:
        return f"model.rope_parameters.factor={-(-length // yarn.original_max_position_embeddings)}"
    trained = recipe.model.architecture.max_position_embeddings
    keys = f"factor: {-(-length // trained)}, original_max_position_embeddings: {trained}"
    return "model=qwen3_32b_128k" if recipe.model.key == "qwen3_32b" else f"'model.rope_parameters={{{keys}}}'"


def check_training(recipe: Recipe) -> Iterator[Problem]:
    for name in recipe.stages:
        section = getattr(recipe, name)
        path = f"{name}.trl.num_train_epochs"
        if section.max_steps is not None and "num_train_epochs" in section.trl:
            rule = f"{name}.max_steps={section.max_steps} is set as well, and one of both decides when training ends"
            fix = f"{name}.max_steps=null, or take it out with ~{path}"
            yield Problem(path, section.trl["num_train_epochs"], rule, fix)


def check_release(recipe: Recipe, environment: Mapping[str, str]) -> Iterator[Problem]:
    handoff = recipe.handoff
    if (handoff.accepted_by is None) != (handoff.reason is None):
        rule = "who accepts a failed gate and why are given together: both are shown in the report"
        missing = "reason" if handoff.reason is None else "accepted_by"
        yield Problem(f"handoff.{missing}", None, rule, f"handoff.{missing}='...'")
    for name in ("accepted_by", "reason"):
        given = getattr(handoff, name)
        if given is not None and not given.strip():
            yield Problem(f"handoff.{name}", given, "is empty, and is shown to who decides", f"handoff.{name}='...'")
    yield from _check_licence_files(recipe)
    if handoff.signing_key is not None:
        yield from _check_key(Path(handoff.signing_key), handoff.signer)
    tracked = environment.get("WANDB_MODE") or recipe.tracking.wandb
    if recipe.privacy.samples == "full" and tracked == "online":
        rule = "would send evaluation rows, personal data included, to a tracking server"
        yield Problem("privacy.samples", "full", rule, "privacy.samples=redacted, or tracking=offline")


def _check_licence_files(recipe: Recipe) -> Iterator[Problem]:
    """All missing texts in one sentence: with another data_root it is every one of them, for one reason."""
    missing = {}
    for source, text in recipe.handoff.licence_files.items():
        if source not in recipe.sources:
            path = f"handoff.licence_files.{source}"
            yield Problem(path, text, "there is no source of this name", f"one of {', '.join(recipe.sources)}")
        elif recipe.documents.is_dir() and not (recipe.documents / text).is_file():
            missing[source] = text
    if len(missing) == 1:
        ((source, text),) = missing.items()
        path = f"handoff.licence_files.{source}"
        rule = f"there is no such file below {recipe.documents}"
        yield Problem(path, text, rule, f"correct the path, or leave it out with ~{path}")
    elif missing:
        every = "" if len(missing) == len(recipe.handoff.licence_files) else " (all of them, found or not)"
        named = ", ".join(f"{text} of {source}" for source, text in missing.items())
        rule = f"these texts, which are copied into the bundle, are not below {recipe.documents}: {named}"
        fix = f"put them there, correct the paths, or do without texts{every}: ~handoff.licence_files"
        yield Problem("handoff.licence_files", None, rule, fix)


def _check_key(key: Path, signer: str | None) -> Iterator[Problem]:
    """A run of hours must not end at a key that cannot be read, and a demo key must be called one on the card."""
    try:
        load_private(key)
    except RecipeError as error:
        yield from error.problems
        return
    if is_demo(key) and "demo" not in (signer or "").lower():
        rule = "the key says that it is a demo key, and the card has to say so too"
        yield Problem("handoff.signer", signer, rule, "handoff.signer='demo key'")
