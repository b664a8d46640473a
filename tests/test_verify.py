"""VERIFY: every defect that a server would pass over is named, and nothing good is."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import make_adapter, make_base
from safetensors.torch import load_file, save_file

from finetune import merge
from finetune.verify import verify


def quiet(_: str) -> None:
    pass


def found(directory: Path, *, deep: bool = False) -> str:
    return "\n".join(map(str, verify(directory, deep=deep, say=quiet)))


@pytest.fixture(scope="module", params=[("qwen3", False, 1), ("qwen3", False, 3), ("llama", True, 1)], ids=str)
def good(request, tmp_path_factory) -> Path:
    kind, tied, shards = request.param
    folder = tmp_path_factory.mktemp("good")
    base = make_base(folder / "base", kind=kind, tied=tied, shards=shards)
    mode = "plain" if shards == 1 else None
    merge.merge_adapter(base, make_adapter(base, folder / "adapter"), folder / "out", say=quiet, default_mode=mode)
    return folder / "out/model"


def test_what_merge_writes_raises_no_alarm(good):
    assert found(good, deep=True) == ""


def test_the_embedded_models_give_no_alarm_about_weights_or_text(smollm2, tiny_qwen3):
    for directory in (smollm2, tiny_qwen3):
        alarms = [line for line in found(directory, deep=True).splitlines() if "temperature" not in line]
        assert alarms == []


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    base = make_base(folder / "base")
    merge.merge_adapter(base, make_adapter(base, folder / "adapter"), folder / "out", say=quiet, default_mode="plain")
    return folder / "out/model"


def _json(name: str, **changes):
    def change(model: Path) -> None:
        content = json.loads((model / name).read_text()) | changes
        kept = {key: value for key, value in content.items() if value != "REMOVE"}
        (model / name).write_text(json.dumps(kept))

    return change


def _tensors(change):
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
FAULTS = {
    # tensors
    "untied without a head": (_tensors(lambda t: t.pop("lm_head.weight") is None), "tied to the embedding"),
    "tie flag absent, no head": (
        lambda m: (_tensors(lambda t: t.pop("lm_head.weight") is None)(m),
                   _json("config.json", tie_word_embeddings="REMOVE")(m)), "tied to the embedding"),
    "a linear tensor missing": (_tensors(lambda t: t.pop(f"{LAYER}self_attn.k_proj.weight") is None), "promises"),
    "a norm missing": (_tensors(lambda t: t.pop("model.norm.weight") is None), "model.norm.weight"),
    "an extra head": (_tensors(lambda t: t.update({"v_head.weight": torch.ones(1, 64)})), "does not know"),
    "names of an adapter": (
        _tensors(lambda t: {f"base_model.model.{k}": v for k, v in t.items()}), "unmerged adapter"),
    "an unmerged layer": (
        _tensors(lambda t: t.update({f"{LAYER}self_attn.q_proj.base_layer.weight": torch.ones(2)})), "finetune merge"),
    "names of a compiled model": (_tensors(lambda t: {f"_orig_mod.{k}": v for k, v in t.items()}), "does not know"),
    "bias promised": (_json("config.json", attention_bias=True), "bias"),
    "fewer kv heads": (_json("config.json", num_key_value_heads=1), "num_key_value_heads"),
    "fewer heads": (_json("config.json", num_attention_heads=2), "num_attention_heads"),
    "smaller feed-forward": (_json("config.json", intermediate_size=64), "intermediate_size"),
    "too many rows": (
        _tensors(lambda t: t.update({f"{LAYER}self_attn.k_proj.weight": torch.ones(128, 64)})), "k_proj"),
    "fewer layers in the files": (_json("config.json", num_hidden_layers=3), "model.layers.2"),
    "fewer layers in the config": (_json("config.json", num_hidden_layers=1), "does not know"),
    "vocab_size too large": (_json("config.json", vocab_size=384), "vocab_size"),
    "vocab_size too small": (_json("config.json", vocab_size=300), "320 rows"),
    "head_dim missing": (_json("config.json", head_dim="REMOVE"), "head_dim"),
    # files
    "a stale index": (_stale_index, "stale"),
    "an index of another save": (_index_of_another_save, "stale"),
    "a missing shard": (_missing_shard, "not there"),
    "a file cut short": (_cut_short, "not a complete safetensors"),
    "foreign weights": (_foreign("optimizer2.safetensors"), "servers load every"),
    "a leftover adapter": (_foreign("adapter_model.safetensors"), "leftover"),
    "a leftover adapter config": (_write("adapter_config.json", "{}"), "leftover"),
    "a pickle": (_write("training_args.bin", "x"), "leftover"),
    "code": (_write("modeling_x.py", ""), "leftover"),
    "private weights": (lambda m: (m / "model.safetensors").chmod(0o600), "only its owner"),
    # config
    "no config": (lambda m: (m / "config.json").unlink(), "is missing"),
    "no model type": (_json("config.json", model_type="REMOVE"), "model_type"),
    "no architecture": (_json("config.json", architectures="REMOVE"), "architectures"),
    "a headless architecture": (_json("config.json", architectures=["Qwen3Model"]), "pooling"),
    "a wrapper's architecture": (_json("config.json", architectures=["PeftModelForCausalLM"]), "architectures"),
    "code from outside": (_json("config.json", auto_map={"AutoModel": "x.Y"}), "auto_map"),
    "quantisation left over": (
        _json("config.json", quantization_config={"quant_method": "bitsandbytes"}), "leftover of QLoRA"),
    "gptq left over": (_json("config.json", quantization_config={"quant_method": "gptq"}), "the weights are not"),
    "layer types": (_json("config.json", layer_types=["full_attention"]), "layer_types"),
    "no rope at all": (_json("config.json", rope_theta="REMOVE", rope_parameters="REMOVE"), "theta of their own"),
    "rope for version 5 only": (_json("config.json", rope_theta="REMOVE"), "transformers 4"),
    "two ropes": (_json("config.json", rope_scaling=YARN), "beside it"),
    "two thetas": (_json("config.json", rope_theta=1e6), "rope_parameters says"),
    "unknown rope": (_json("config.json", rope_parameters={"rope_type": "foo", "rope_theta": 1e4}), "known are"),
    "yarn without factor": (
        _json("config.json", rope_parameters="REMOVE", rope_scaling={"rope_type": "yarn"}), "factor"),
    "yarn without its origin": (
        _json("config.json", rope_parameters="REMOVE", rope_scaling={"rope_type": "yarn", "factor": 4.0}),
        "original_max"),
    "yarn served too far": (
        _json("config.json", rope_parameters="REMOVE", rope_scaling=YARN, max_position_embeddings=4096), "not reach"),
    "yarn that extends nothing": (_json("config.json", rope_parameters="REMOVE", rope_scaling=YARN), "write 1024"),
    # generation
    "no generation config": (lambda m: (m / "generation_config.json").unlink(), "temperature 1.0"),
    "a broken generation config": (_write("generation_config.json", "{"), "temperature 1.0"),
    "no temperature": (_json("generation_config.json", temperature="REMOVE"), "ignores do_sample"),
    "greedy here, sampled there": (_json("generation_config.json", temperature=0.7), "vLLM samples"),
    "sampling at zero": (_json("generation_config.json", do_sample=True), "refuses to sample"),
    "a length for all": (_json("generation_config.json", max_new_tokens=3), "length of every answer"),
    "an impossible top_p": (_json("generation_config.json", top_p=1.5), "top_p"),
    "no end of turn": (_json("generation_config.json", eos_token_id=[0]), "talk on"),
    "an end beyond the vocabulary": (_json("generation_config.json", eos_token_id=[2, 99_999]), "not ids"),
    # tokenizer and template
    "no tokenizer": (lambda m: (m / "tokenizer.json").unlink(), "tokenizer.json"),
    "no tokenizer config": (lambda m: (m / "tokenizer_config.json").unlink(), "tokenizer_config.json"),
    "a class of version 5": (_json("tokenizer_config.json", tokenizer_class="TokenizersBackend"), "does not know"),
    "special tokens as a list": (_json("tokenizer_config.json", extra_special_tokens=["<x>"]), "fails on a list"),
    "code for the tokenizer": (_json("tokenizer_config.json", auto_map={"AutoTokenizer": ["x"]}), "auto_map"),
    "an unknown eos": (_json("tokenizer_config.json", eos_token="<nope>"), "not a token"),
    "ids beyond the embedding": (
        _edit_text("tokenizer.json", '"<|im_end|>": 2', '"<|im_end|>": 2, "<beyond>": 500'), "beyond"),
    "no template": (lambda m: (m / "chat_template.jinja").unlink(), "refuse every chat"),
    "only chat_template.json": (
        lambda m: (m / "chat_template.jinja").rename(m / "chat_template.json"), "refuse every chat"),
    "a template with a syntax error": (_write("chat_template.jinja", "{% for m in messages %}"), "does not render"),
    "a template that raises": (_write("chat_template.jinja", "{{ raise_exception('no') }}"), "does not render"),
    "a template that drops the question": (
        _write("chat_template.jinja", "hello{% if add_generation_prompt %}<|im_start|>{% endif %}"), "drops"),
    "a template without a prompt": (
        _write("chat_template.jinja", "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"), "continue the"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "word"), FAULTS.values(), ids=FAULTS.keys())
def test_a_seeded_fault_is_named(original, tmp_path, spoil, word):
    model = tmp_path / "m"
    shutil.copytree(original, model)
    assert found(model) == ""
    spoil(model)
    assert word in found(model)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_are_found_by_reading_deep(original, tmp_path, value):
    shutil.copytree(original, tmp_path / "m")

    def spoil(tensors) -> None:
        tensors[f"{LAYER}mlp.up_proj.weight"][7, 5] = value

    _tensors(spoil)(tmp_path / "m")
    assert found(tmp_path / "m") == ""
    assert "mlp.up_proj.weight" in found(tmp_path / "m", deep=True)


def test_a_tied_head_that_differs_is_found_by_reading_deep(original, tmp_path):
    shutil.copytree(original, tmp_path / "m")
    _json("config.json", tie_word_embeddings=True)(tmp_path / "m")
    assert "disagree which" in found(tmp_path / "m", deep=True)


def test_yarn_in_the_spelling_that_all_readers_know_is_no_alarm(original, tmp_path):
    shutil.copytree(original, tmp_path / "m")
    _json("config.json", rope_parameters="REMOVE", rope_scaling=YARN, max_position_embeddings=1024)(tmp_path / "m")
    assert found(tmp_path / "m") == ""


def test_a_folder_that_is_not_there_is_said(tmp_path):
    assert "no such folder" in found(tmp_path / "nowhere")


def test_verifying_needs_neither_torch_nor_transformers(original):
    code = (
        "import sys; from pathlib import Path; from finetune.verify import verify;"
        f"assert verify(Path({str(original)!r}), deep=True) == [];"
        "print(sorted({'torch', 'transformers', 'tokenizers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
