"""Sections `trl`, `lora` and `bnb`: which keys may be handed on unchanged, and what to set instead of the others."""

import ast
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from finetune.config.load import suggest
from finetune.config.recipe import Recipe
from finetune.config.upstream import (
    Class,
    dpo_divergences,
    dpo_losses,
    field_annotations,
    optimizer_names,
    owner,
    scheduler_names,
)
from finetune.errors import Problem

_PREPARED = "rows are tokenised and masked in PREPARE, the same for every trainer"
_PACKED = "set sft.packing or cpt.packing: whole rows are joined, best-fit decreasing, and never attend to each other"
_REFERENCE = "the reference is the adapter DPO starts from, its scores are computed once and kept"
_HANDED = "nothing is uploaded: HANDOFF writes a bundle"
_NO_START = "starts drawn from the base or from data change the base or need what no stage hands them"
_NOT_MERGED = "drop it: its delta is not B x A, so the streamed merge would be wrong"
_EVALUATED = "evaluation is ours: the loss over all supervised tokens, every {stage}.eval_steps"
_EVALUATION = (
    *("eval_do_concat_batches", "eval_use_gather_object", "eval_accumulation_steps", "prediction_loss_only"),
    *("include_for_metrics", "batch_eval_metrics"),
)
_COMPILED = "not proven: the model's forward and attention are replaced after TRL has built the trainer"
_RESUME = "resuming is ours, with checkpoints that are checked before they are loaded: run the same command again"

# Key of TrainingArguments, SFTConfig or DPOConfig -> what to set instead; {stage} is cpt, sft or dpo.
_OWNED_TRL: Mapping[str, str] = {
    "output_dir": "set work",
    "max_length": "set {stage}.max_length",
    "max_steps": "set {stage}.max_steps",
    "save_steps": "set {stage}.save_steps",
    "eval_steps": "set {stage}.eval_steps",
    "logging_steps": "set {stage}.log_steps",
    "save_strategy": "set {stage}.save_steps",
    "eval_strategy": "set {stage}.eval_steps",
    "eval_on_start": "set {stage}.eval_steps",
    "eval_delay": "set {stage}.eval_steps",
    "logging_strategy": "set {stage}.log_steps",
    "logging_first_step": "set {stage}.log_steps",
    "include_num_input_tokens_seen": "drop it: the facts of a stage count its supervised tokens",
    "per_device_train_batch_size": "set machine.per_device_batch_size",
    "per_device_eval_batch_size": "set machine.per_device_batch_size",
    "gradient_accumulation_steps": "set {stage}.batch_size: accumulation is what is left of it",
    "auto_find_batch_size": "leave machine.per_device_batch_size empty: the planner finds the one that fits",
    "train_sampling_strategy": "drop it: rows are ordered by us, the same order after every resume",
    "shuffle_dataset": "drop it: rows are ordered by us, the same order after every resume",
    "logging_nan_inf_filter": "drop it: a loss that is not a number stops the run",
    "dataloader_pin_memory": "drop it: it follows the device",
    "disable_tqdm": "drop it: progress is shown on a terminal and nowhere else",
    "seed": "set seed",
    "data_seed": "set seed",
    "average_tokens_across_devices": "drop it: a step's loss is the mean over the tokens of all processes",
    "full_determinism": "drop it: equal seeds already give equal bytes",
    "bf16": "set model.dtype",
    "fp16": "set model.dtype",
    "bf16_full_eval": "set model.dtype",
    "fp16_full_eval": "set model.dtype",
    "model_init_kwargs": "set model.dtype, model.attn_implementation or method.bnb",
    "ref_model_init_kwargs": f"drop it: {_REFERENCE}",
    "sync_ref_model": f"drop it: {_REFERENCE}",
    "ref_model_mixup_alpha": f"drop it: {_REFERENCE}",
    "ref_model_sync_steps": f"drop it: {_REFERENCE}",
    "precompute_ref_log_probs": f"drop it: {_REFERENCE}",
    "precompute_ref_batch_size": f"drop it: {_REFERENCE}",
    "deepspeed": "set machine.deepspeed: it has one owner",
    "fsdp": "set machine.layout",
    "fsdp_config": "set machine.layout",
    "accelerator_config": "choose a machine",
    "parallelism_config": "choose a machine",
    "use_cpu": "set machine.device",
    "local_rank": "drop it: the launcher says which process this is",
    "ddp_find_unused_parameters": "drop it: every parameter of the adapter is part of every step",
    "gradient_checkpointing": "set machine.gradient_checkpointing",
    "gradient_checkpointing_kwargs": "set machine.gradient_checkpointing",
    "activation_checkpointing": "set machine.gradient_checkpointing",
    "activation_checkpointing_kwargs": "set machine.gradient_checkpointing",
    "use_liger_kernel": "drop it: TRL's own fused head is used, and evaluation reads its per-token log-probabilities",
    "liger_kernel_config": "drop it: use_liger_kernel is refused as well",
    **dict.fromkeys(("torch_compile", "torch_compile_backend", "torch_compile_mode"), f"drop it: {_COMPILED}"),
    "report_to": "choose tracking=offline, online or disabled",
    "run_name": "drop it: runs are named after the recipe",
    "project": "set tracking.project",
    **{f"trackio_{name}": "drop it: tracking is W&B's" for name in ("space_id", "bucket_id", "static_space_id")},
    "packing": _PACKED,
    "eval_packing": _PACKED,
    "padding_free": _PACKED,
    "packing_strategy": _PACKED,
    "pad_to_multiple_of": "drop it: rows are padded to the longest of their batch, packs not at all",
    "use_cache": "drop it: training keeps no cache; with one the documents of a pack would see each other",
    "dataset_text_field": f"drop it: {_PREPARED}",
    "dataset_kwargs": f"drop it: {_PREPARED}",
    "dataset_num_proc": f"drop it: {_PREPARED}",
    "chat_template_path": f"drop it: {_PREPARED}",
    "completion_only_loss": f"drop it: {_PREPARED}",
    "assistant_only_loss": f"drop it: {_PREPARED}",
    "length_column_name": "drop it: rows are ordered by us, by the tokens that they have",
    "dataloader_drop_last": "drop it: steps are counted in whole batches, none is left over",
    "remove_unused_columns": f"drop it: {_PREPARED}",
    "truncation_mode": "set prepare.length.policy: nothing is cut in silence",
    "eos_token": f"drop it: {_PREPARED}",
    "pad_token": f"drop it: {_PREPARED}",
    "load_best_model_at_end": "drop it: it fails with adapters under DeepSpeed (transformers#29338); lower max_steps",
    "metric_for_best_model": "drop it: the last adapter is kept; lower max_steps instead",
    "greater_is_better": "drop it: the last adapter is kept; lower max_steps instead",
    "resume_from_checkpoint": f"drop it: {_RESUME}",
    "ignore_data_skip": f"drop it: {_RESUME}",
    "save_only_model": f"drop it: {_RESUME}",
    "enable_jit_checkpoint": f"drop it: {_RESUME}",
    "save_total_limit": f"drop it: {_RESUME}",
    "save_on_each_node": f"drop it: {_RESUME}",
    "trust_remote_code": "drop it: code out of a model folder is never run",
    "push_to_hub": f"drop it: {_HANDED}",
    "hub_model_id": f"drop it: {_HANDED}",
    "hub_token": f"drop it: {_HANDED}",
    **{f"hub_{name}": f"drop it: {_HANDED}" for name in ("private_repo", "strategy", "always_push", "revision")},
    "do_train": "set stages",
    "do_eval": "set {stage}.eval_steps",
    "do_predict": "drop it: SCORE predicts",
    **dict.fromkeys(_EVALUATION, f"drop it: {_EVALUATED}"),
}
_OWNED_LORA: Mapping[str, str] = {
    "base_model_name_or_path": "choose model",
    "revision": "set model.revision",
    "task_type": "drop it: it is always CAUSAL_LM",
    "peft_type": "set method",
    "inference_mode": "drop it: training needs false",
    "auto_mapping": "drop it",
    "peft_version": "drop it",
    "layer_replication": "drop it: the merged model would have another number of layers than its base",
    "alora_invocation_tokens": "drop it: an activated LoRA cannot be merged",
    "target_parameters": "set target_modules: DPO's reference would silently become the base model",
    "use_qalora": _NOT_MERGED,
    "lora_bias": "drop it: these models have no biases to merge it into",
    "fan_in_fan_out": "drop it: these models have no such layers",
    "megatron_config": "drop it: Megatron's parallel layers are not used",
    "megatron_core": "drop it: Megatron's parallel layers are not used",
    "trainable_token_indices": "set target_modules to a list with embed_tokens: single rows are not merged here",
    **{f"{name}_config": f"drop it: {_NO_START}" for name in ("loftq", "corda", "eva", "lora_ga")},
    **dict.fromkeys(("monteclora_config", "arrow_config", "kasa_config", "velora_config", "use_bdlora"), _NOT_MERGED),
}
_OWNED_BNB: Mapping[str, str] = {
    "bnb_4bit_compute_dtype": "set model.dtype",
    "load_in_8bit": "use method.bnb.load_in_4bit=true: only 4-bit bases are merged with a proof",
}
# Names that were upstream once, or are so in other toolkits.
_FORMER: Mapping[str, str] = {
    "warmup_ratio": "warmup_steps: a number under 1 is a ratio",
    "evaluation_strategy": "{stage}.eval_steps",
    "max_seq_length": "{stage}.max_length",
    "max_prompt_length": "{stage}.max_length",
    "num_epochs": "num_train_epochs",
    "lr": "learning_rate",
    "no_cuda": "machine.device=cpu",
    "rank": "r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
}
# Key -> (below, above) and the rule, both bounds excluded.
_RANGES: Mapping[str, tuple[float, float, str]] = {
    "learning_rate": (0.0, 1.0, "must lie between 0 and 1"),
    "num_train_epochs": (0.0, 1e6, "must be above 0"),
    "beta": (0.0, 1e6, "must be above 0"),
    "r": (0, 1e5, "must be at least 1"),
    "lora_alpha": (0, 1e6, "must be above 0"),
}
_PLAIN: Mapping[str, type | tuple[type, ...]] = {
    "int": int,
    "float": (int, float),
    "bool": bool,
    "str": str,
    "None": type(None),
}


def check_passed(recipe: Recipe) -> Iterator[Problem]:
    """Every pass-through key of the stages that run and of the method: known upstream, not ours, of the right type."""
    for stage in recipe.stages:
        name: Class = "DPOConfig" if stage == "dpo" else "SFTConfig"
        section = getattr(recipe, stage).trl
        yield from _check_section(f"{stage}.trl", stage, section, name, _OWNED_TRL)
        yield from _check_choice(f"{stage}.trl.lr_scheduler_type", section, scheduler_names())
        yield from _check_choice(f"{stage}.trl.optim", section, optimizer_names())
        if stage == "dpo":
            yield from _check_choice("dpo.trl.loss_type", section, dpo_losses())
            yield from _check_choice("dpo.trl.f_divergence_type", section, dpo_divergences())
    yield from _check_section("method.lora", "sft", recipe.method.lora, "LoraConfig", _OWNED_LORA)
    dropout = recipe.method.lora.get("lora_dropout", 0.0)
    if isinstance(dropout, int | float) and not 0 <= dropout < 1:
        yield Problem(
            "method.lora.lora_dropout", dropout, "is a share of 0 to below 1", "method.lora.lora_dropout=0.05"
        )
    yield from _check_section("method.bnb", "sft", recipe.method.bnb or {}, "BitsAndBytesConfig", _OWNED_BNB)
    yield from _check_choice("method.bnb.bnb_4bit_quant_type", recipe.method.bnb or {}, ("nf4", "fp4"))


def _check_section(
    path: str, stage: str, section: Mapping[str, Any], name: Class, owned: Mapping[str, str]
) -> Iterator[Problem]:
    known = field_annotations(name)
    for key, value in section.items():
        place = f"{path}.{key}"
        if key in owned:
            shown = None if key == "hub_token" else value  # an error stands in the logs of a job
            yield Problem(place, shown, "is set by the toolkit", owned[key].format(stage=stage))
        elif key not in known:
            former = _FORMER.get(key)
            fix = f"use {former.format(stage=stage)}" if former else suggest(key, sorted(known))
            yield Problem(place, value, f"is not a key of {owner(name)}", fix)
        elif expected := _wrong_type(value, known[key]):
            yield Problem(place, value, f"must be {expected}", f"write {place}=... with such a value")
        elif key in _RANGES and isinstance(value, int | float):
            low, high, rule = _RANGES[key]
            if not low < value < high:
                yield Problem(place, value, rule, f"change {place}")


def _check_choice(path: str, section: Mapping[str, Any], known: Sequence[str]) -> Iterator[Problem]:
    value = section.get(path.rsplit(".", 1)[-1])
    for one in value if isinstance(value, list | tuple) else [value]:
        if one is not None and one not in known:
            yield Problem(path, one, "is not a name upstream knows", suggest(str(one), sorted(known)))


def _wrong_type(value: Any, annotation: str) -> str | None:
    """The annotation in words when it is made of plain types and literals only and the value fits none of them."""
    leaves = list(_leaves(ast.parse(annotation, mode="eval").body)) if annotation else []
    literals = [leaf for leaf in leaves if isinstance(leaf, tuple)]
    plain = [leaf for leaf in leaves if isinstance(leaf, str)]
    if not leaves or any(leaf not in _PLAIN for leaf in plain):
        return None
    if any("[" in str(word) for literal in literals for word in literal):  # `pissa_niter_[number of iters]`
        return None
    if any(value in literal for literal in literals):
        return None
    for leaf in plain:
        # A bool is an int in Python, but `r: true` is a mistake.
        if isinstance(value, _PLAIN[leaf]) and isinstance(value, bool) <= (leaf == "bool"):
            return None
    words = [leaf for leaf in plain if leaf != "None"] + [str(word) for literal in literals for word in literal]
    return " or ".join(words) + (" or null" if "None" in plain else "")


def _leaves(node: ast.expr) -> Iterator[str | tuple[Any, ...]]:
    """`int | None`, `Optional[int]`, `Union[...]`, `Literal["a", "b"]` -> names, and literals as tuples."""
    if isinstance(node, ast.BinOp):
        yield from _leaves(node.left)
        yield from _leaves(node.right)
    elif isinstance(node, ast.Subscript) and ast.unparse(node.value) in ("Optional", "Union"):
        inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        for part in inner:
            yield from _leaves(part)
        if ast.unparse(node.value) == "Optional":
            yield "None"
    elif isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Literal":
        value = ast.literal_eval(node.slice)
        yield value if isinstance(value, tuple) else (value,)
    else:
        yield ast.unparse(node)
