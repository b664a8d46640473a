"""The tables of tests/test_verify.py: one change to a good model directory each, and the rule that names it."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def edit(name: str, **changes):
    def change(model: Path) -> None:
        content = json.loads((model / name).read_text()) | changes
        kept = {key: value for key, value in content.items() if value != "REMOVE"}
        (model / name).write_text(json.dumps(kept))

    return change


def tensors_with(change):
    def apply(model: Path) -> None:
        tensors = load_file(model / "model.safetensors")
        tensors = change(tensors) or tensors
        save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
        (model / "model.safetensors").chmod(0o644)

    return apply


def _write(name: str, content: str):
    return lambda model: (model / name).write_text(content)


def _stale_index(model: Path) -> None:
    shutil.copy(model / "model.safetensors", model / "model-00001-of-00001.safetensors")
    names = load_file(model / "model.safetensors")
    (model / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")})
    )


def _index_of_another_save(model: Path) -> None:
    names = dict.fromkeys(load_file(model / "model.safetensors"), "model.safetensors") | {"gone": "model.safetensors"}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def _twice(model: Path) -> None:
    shutil.copy(model / "model.safetensors", model / "a.safetensors")
    (model / "model.safetensors").rename(model / "b.safetensors")
    names = load_file(model / "a.safetensors")
    shards = {name: "ab"[number % 2] + ".safetensors" for number, name in enumerate(names)}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


def _outside(model: Path) -> None:
    shutil.copy(model / "model.safetensors", model.parent / "x.safetensors")
    (model / "model.safetensors").unlink()
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))


def _missing_shard(model: Path) -> None:
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-00002.safetensors"}}))


def _cut_short(model: Path) -> None:
    content = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(content[:-100])


def _foreign(name: str):
    def add(model: Path) -> None:
        save_file({"x": torch.ones(2)}, model / name)
        (model / name).chmod(0o644)

    return add


def _edit_text(name: str, old: str, new: str):
    def change(model: Path) -> None:
        content = (model / name).read_text()
        assert old in content
        (model / name).write_text(content.replace(old, new))

    return change


LAYER = "model.layers.1."
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
NEWLINE_TEMPLATE = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"


def _renamed(change):
    return tensors_with(lambda t: {change(name): tensor for name, tensor in t.items()})


def _without(name: str):
    return tensors_with(lambda t: t.pop(name) is None)


def _grown(name: str, *shape: int):
    return tensors_with(lambda t: t.update({name: torch.ones(*shape)}))


def _both(*changes):
    return lambda model: [change(model) for change in changes]


def _gone(name: str):
    return lambda model: (model / name).unlink()


def _swapped_shards(model: Path) -> None:
    """Two tensors in one place: what a torn write of a header can leave."""
    content = (model / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    first, second = f"{LAYER}mlp.gate_proj.weight", f"{LAYER}mlp.up_proj.weight"
    header[second]["data_offsets"] = header[first]["data_offsets"]
    text = json.dumps(header).encode()
    (model / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


# A defect as it was tried in vLLM 0.32 -> how to make it, and the rule that refuses it.
# 6a: the server starts and answers wrongly.
SILENT = {
    "6a tie_word_embeddings false, no lm_head": (_without("lm_head.weight"), "tie-flag"),
    "6a tie_word_embeddings absent, no lm_head": (
        _both(_without("lm_head.weight"), edit("config.json", tie_word_embeddings="REMOVE")), "tie-flag"),
    "6a a Linear tensor missing: k_proj": (_without(f"{LAYER}self_attn.k_proj.weight"), "missing-tensor"),
    "6a a Linear tensor missing: up_proj": (_without(f"{LAYER}mlp.up_proj.weight"), "missing-tensor"),
    "6a attention_bias true without bias tensors": (edit("config.json", attention_bias=True), "missing-tensor"),
    "6a num_key_value_heads smaller": (edit("config.json", num_key_value_heads=1), "tensor-shape"),
    "6a num_attention_heads smaller": (edit("config.json", num_attention_heads=2), "tensor-shape"),
    "6a intermediate_size smaller": (edit("config.json", intermediate_size=64), "tensor-shape"),
    "6a k_proj with too many rows": (_grown(f"{LAYER}self_attn.k_proj.weight", 128, 64), "tensor-shape"),
    "6a a fresh file beside a stale index and shards": (_stale_index, "weight-files"),
    "6a rope_parameters absent": (
        edit("config.json", rope_theta="REMOVE", rope_parameters="REMOVE"), "rope-theta"),
    "6a rope_scaling and rope_parameters both": (edit("config.json", rope_scaling=YARN), "two-ropes"),
    "6a do_sample false without temperature": (
        edit("generation_config.json", do_sample=False, temperature="REMOVE"), "temperature"),
    "6a no generation_config": (_gone("generation_config.json"), "generation-config"),
    "6a max_new_tokens 3": (edit("generation_config.json", max_new_tokens=3), "answer-length"),
    "6a generation_config is garbage": (_write("generation_config.json", "{"), "generation-config"),
    "6a architectures missing": (edit("config.json", architectures="REMOVE"), "architecture"),
    "6a architectures Qwen3Model": (edit("config.json", architectures=["Qwen3Model"]), "architecture"),
    "6a chat template missing": (_gone("chat_template.jinja"), "no-template"),
    "6a only chat_template.json": (
        lambda m: (m / "chat_template.jinja").rename(m / "chat_template.json"), "no-template"),
    "6a template with a syntax error": (
        _write("chat_template.jinja", "{% for m in messages %}"), "template-broken"),
    "6a tokenizer_config missing": (_gone("tokenizer_config.json"), "model-file"),
    "6a YaRN, max_position_embeddings left": (
        edit("config.json", rope_parameters="REMOVE", rope_scaling=YARN), "yarn-length"),
    "6a YaRN in rope_parameters, max_position_embeddings left": (
        edit("config.json", rope_parameters=YARN | {"rope_theta": 10_000.0}), "yarn-length"),
    "6a tokenizer ids beyond vocab_size": (
        _edit_text("tokenizer.json", '"<|im_end|>": 2', '"<|im_end|>": 2, "<beyond>": 500'), "ids-beyond-embedding"),
    "6a weights with mode 0600": (lambda m: (m / "model.safetensors").chmod(0o600), "private-file"),
}  # fmt: skip
# 6b: the server does not start.
HARD = {
    "6b names base_model.model.*": (_renamed(lambda name: f"base_model.model.{name}"), "foreign-tensor"),
    "6b names _orig_mod.*": (_renamed(lambda name: f"_orig_mod.{name}"), "foreign-tensor"),
    "6b names module.*": (_renamed(lambda name: f"module.{name}"), "foreign-tensor"),
    "6b names without model.": (_renamed(lambda name: name.removeprefix("model.")), "foreign-tensor"),
    "6b names model.language_model.*": (
        _renamed(lambda name: name.replace("model.", "model.language_model.")), "foreign-tensor"),
    "6b unmerged base_layer and lora": (
        _both(_renamed(lambda name: name.replace("q_proj.", "q_proj.base_layer.")),
              _grown(f"{LAYER}self_attn.q_proj.lora_A.weight", 4, 64)), "foreign-tensor"),
    "6b v_head": (_grown("v_head.weight", 1, 64), "foreign-tensor"),
    "6b a tensor foo": (_grown("foo", 1), "foreign-tensor"),
    "6b extra layers": (edit("config.json", num_hidden_layers=1), "foreign-tensor"),
    "6b leftover adapter_model.safetensors": (_foreign("adapter_model.safetensors"), "leftover-file"),
    "6b leftover optimizer.safetensors": (_foreign("optimizer.safetensors"), "leftover-file"),
    "6b any other safetensors": (_foreign("extra.safetensors"), "foreign-weights"),
    "6b leftover adapter_config.json": (_write("adapter_config.json", "{}"), "leftover-file"),
    "6b a norm missing": (_without("model.norm.weight"), "missing-tensor"),
    "6b fewer layers than the config": (edit("config.json", num_hidden_layers=3), "missing-tensor"),
    "6b vocab_size bigger than the rows": (edit("config.json", vocab_size=384), "vocabulary-rows"),
    "6b vocab_size smaller than the rows": (edit("config.json", vocab_size=300), "vocabulary-rows"),
    "6b head_dim missing": (edit("config.json", head_dim="REMOVE"), "head-dim"),
    "6b head_dim null": (edit("config.json", head_dim=None), "head-dim"),
    "6b kv heads in the config bigger": (edit("config.json", num_key_value_heads=4), "tensor-shape"),
    "6b layer_types of another length": (edit("config.json", layer_types=["full_attention"]), "layer-types"),
    "6b architectures PeftModelForCausalLM": (
        edit("config.json", architectures=["PeftModelForCausalLM"]), "architecture"),
    "6b architectures FSDP": (edit("config.json", architectures=["FSDPQwen3ForCausalLM"]), "architecture"),
    "6b model_type missing": (edit("config.json", model_type="REMOVE"), "model-type"),
    "6b config.json missing": (_gone("config.json"), "model-file"),
    "6b leftover bitsandbytes": (
        edit("config.json", quantization_config={"quant_method": "bitsandbytes"}), "training-quantisation"),
    "6b gptq in the config, plain weights": (
        edit("config.json", quantization_config={"quant_method": "gptq", "bits": 4}), "unquantised-weights"),
    "6b the index names a missing shard": (_missing_shard, "weight-files"),
    "6b a truncated file": (_cut_short, "torn-weights"),
    "6b YaRN without factor": (
        edit("config.json", rope_parameters="REMOVE", rope_scaling={"rope_type": "yarn"}), "rope-keys"),
    "6b unknown rope_type": (
        edit("config.json", rope_parameters={"rope_type": "foo", "rope_theta": 1e4}), "rope-type"),
    "6b tokenizer.json missing": (_gone("tokenizer.json"), "model-file"),
}  # fmt: skip
# 6d: what transformers 5 writes and older readers do not read.
OLDER = {
    "6d tokenizer_class TokenizersBackend": (
        edit("tokenizer_config.json", tokenizer_class="TokenizersBackend"), "tokenizer-class"),
    "6d extra_special_tokens as a list": (
        edit("tokenizer_config.json", extra_special_tokens=["<x>"]), "extra-special-tokens"),
    "6d rope_parameters only": (edit("config.json", rope_theta="REMOVE"), "rope-theta-version-4"),
}  # fmt: skip
# Not in those tables, and as wrong.
OTHERS = {
    "an index of another save": (_index_of_another_save, "stale-index"),
    "one tensor in two shards": (_twice, "tensor-twice"),
    "a value of another kind": (edit("config.json", rope_parameters={"rope_type": []}), "value-type"),
    "an index that is a list": (_write("model.safetensors.index.json", '{"weight_map": ["a"]}'), "weight-files"),
    "an index that leads out": (_outside, "weight-files"),
    "two tensors in one place": (_swapped_shards, "torn-weights"),
    "bytes after the last tensor": (
        lambda m: (m / "model.safetensors").write_bytes((m / "model.safetensors").read_bytes() + b"x"), "torn-weights"),
    "an embedding of another width": (_grown("model.embed_tokens.weight", 320, 32), "tensor-shape"),
    "a head of another shape": (_grown("lm_head.weight", 300, 64), "head-shape"),
    "integers where floats are due": (
        tensors_with(lambda t: t.update({"model.norm.weight": torch.ones(64, dtype=torch.int8)})), "tensor-type"),
    "a number of the config missing": (edit("config.json", hidden_size="REMOVE"), "config-number"),
    "a pickle": (_write("training_args.bin", "x"), "leftover-file"),
    "code": (_write("modeling_x.py", ""), "leftover-file"),
    "a link that leads nowhere": (lambda m: (m / "LICENSE").symlink_to("/nowhere"), "dangling-link"),
    "code from outside": (edit("config.json", auto_map={"AutoModel": "x.Y"}), "auto-map"),
    "code for the tokenizer": (edit("tokenizer_config.json", auto_map={"AutoTokenizer": ["x"]}), "auto-map"),
    "two thetas": (edit("config.json", rope_theta=1e6), "two-thetas"),
    "YaRN without its origin": (
        edit("config.json", rope_parameters="REMOVE", rope_scaling={"rope_type": "yarn", "factor": 4.0}),
        "rope-keys"),
    "YaRN served too far": (
        edit("config.json", rope_parameters="REMOVE", rope_scaling=YARN, max_position_embeddings=4096), "yarn-length"),
    "greedy here, sampled there": (edit("generation_config.json", temperature=0.7), "temperature"),
    "sampling at zero": (edit("generation_config.json", do_sample=True), "temperature"),
    "an impossible top_p": (edit("generation_config.json", top_p=1.5), "sampling-range"),
    "an impossible top_k": (edit("generation_config.json", top_k=-7), "sampling-range"),
    "no end of turn": (edit("generation_config.json", eos_token_id=[0]), "end-of-answer"),
    "an end beyond the vocabulary": (edit("generation_config.json", eos_token_id=[2, 99_999]), "end-ids"),
    "an unknown eos": (edit("tokenizer_config.json", eos_token="<nope>"), "eos-token"),
    "a template that raises": (_write("chat_template.jinja", "{{ raise_exception('no') }}"), "template-broken"),
    "a template that reaches out": (
        _write("chat_template.jinja", "{{ ''.__class__.__mro__[1].__subclasses__() }}"), "template-broken"),
    "a template that calls itself": (
        _write("chat_template.jinja", "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}"), "template-broken"),
    "a config nested without end": (_write("config.json", "[" * 100_000), "model-file"),
    "a generation config nested without end": (_write("generation_config.json", "[" * 100_000), "value-type"),
    "a header nested without end": (
        lambda m: (m / "model.safetensors").write_bytes((100_000).to_bytes(8, "little") + b"[" * 100_000),
        "torn-weights"),
    "a template that drops the question": (
        _write("chat_template.jinja", "hello{% if add_generation_prompt %}<|im_start|>{% endif %}"), "template-drops"),
    "a template without a prompt": (_write("chat_template.jinja", NEWLINE_TEMPLATE), "template-no-prompt"),
}  # fmt: skip
FAULTS = SILENT | HARD | OLDER | OTHERS

# 6c: identical output in vLLM, so no alarm, unless transformers reads it otherwise or it is nothing to hand over.
FINE = {
    "6c tied with a duplicate lm_head": (
        _both(edit("config.json", tie_word_embeddings=True),
              tensors_with(lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))), None),
    "6c missing dtype": (edit("config.json", dtype="REMOVE"), None),
    "6c torch_dtype of version 4": (edit("config.json", dtype="REMOVE", torch_dtype="bfloat16"), None),
    "6c float32 weights": (tensors_with(lambda t: {name: tensor.float() for name, tensor in t.items()}), None),
    "6c mixed weights": (
        tensors_with(lambda t: {n: tensor.float() if "norm" in n else tensor for n, tensor in t.items()}), None),
    "6c rotary inv_freq": (_grown(f"{LAYER}self_attn.rotary_emb.inv_freq", 16), None),
    "6c tokenizer_class Qwen2Tokenizer": (edit("tokenizer_config.json", tokenizer_class="Qwen2Tokenizer"), None),
    "6c tokenizer_class Qwen2TokenizerFast": (
        edit("tokenizer_config.json", tokenizer_class="Qwen2TokenizerFast"), None),
    "6c tokenizer_class bogus": (edit("tokenizer_config.json", tokenizer_class="Bogus"), None),
    "6c rope_theta of version 4 alone": (edit("config.json", rope_parameters="REMOVE"), None),
    "6c YaRN in rope_scaling": (
        edit("config.json", rope_parameters="REMOVE", rope_scaling=YARN, max_position_embeddings=1024), None),
    "6c YaRN by the legacy word type": (
        edit("config.json", rope_parameters="REMOVE", max_position_embeddings=1024,
              rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}), None),
    "6c YaRN in rope_parameters": (
        edit("config.json", rope_parameters=YARN | {"rope_theta": 10_000.0}, max_position_embeddings=1024), None),
    "6c generation tags in the template": (
        _edit_text("chat_template.jinja", "{%- if add_generation_prompt %}",
                   "{% generation %}{% endgeneration %}{%- if add_generation_prompt %}"), None),
    "6c a template in tokenizer_config as well": (edit("tokenizer_config.json", chat_template="{{ 1 / 0 }}"), None),
    "6c a template in tokenizer_config only": (
        lambda m: (edit("tokenizer_config.json", chat_template=(m / "chat_template.jinja").read_text())(m),
                   (m / "chat_template.jinja").unlink()), None),
    "6c consolidated.safetensors beside it": (
        lambda m: shutil.copy(m / "model.safetensors", m / "consolidated.safetensors"), None),
    "6c unsloth fields": (edit("config.json", unsloth_version="2026.1", unsloth_fixed=True), None),
    "6c sliding_window": (edit("config.json", sliding_window=4096, use_sliding_window=False), None),
    "a max_length, as good Llama 2 models carry it": (edit("generation_config.json", max_length=4096), None),
    "6c any model_max_length": (edit("tokenizer_config.json", model_max_length=10**30), None),
    # Served alike and refused here all the same, for the reason in docs/verifying.md.
    "6c TokenizersBackend": (edit("tokenizer_config.json", tokenizer_class="TokenizersBackend"), "tokenizer-class"),
    "6c auto_map": (edit("config.json", auto_map={"AutoModel": "x.Y"}), "auto-map"),
    "6c a trainer's pickle": (_write("optimizer.pt", "x"), "leftover-file"),
    "6c checkpoint-N": (lambda m: (m / "checkpoint-8").mkdir(), "leftover-file"),
    "6c pytorch_model.bin only": (
        lambda m: (m / "model.safetensors").rename(m / "pytorch_model.bin"), "weight-files"),
    "6c a shard without index": (
        lambda m: (m / "model.safetensors").rename(m / "model-00001-of-00001.safetensors"), "weight-files"),
}  # fmt: skip
