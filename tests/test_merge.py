"""MERGE: the same bytes as PEFT, everything used, nothing half published, killed and resumed alike."""

import json
import shutil
from pathlib import Path

import jinja2
import jinja2.meta
import pytest
import torch
from checkpoints import MODEL, TEMPLATE, make_adapter, make_base, weights
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from finetune import leftovers, merge
from finetune.artifacts import hash_file
from finetune.checkpoint import bake_mode
from finetune.errors import RecipeError
from finetune.fourbit import RoundTrip


def quiet(_: str) -> None:
    pass


def test_shards_keep_their_layout_and_the_index_names_every_tensor(tmp_path):
    base = make_base(tmp_path / "base", shards=3)
    names = sorted(path.name for path in base.glob("*.safetensors"))
    assert len(names) >= 3
    adapter = make_adapter(base, tmp_path / "adapter")
    summary = merge.merge_adapter(base, adapter, tmp_path / "out", say=quiet)
    model = tmp_path / "out/model"
    assert sorted(path.name for path in model.glob("*.safetensors")) == names
    index = json.loads((model / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {name: file.name for file in model.glob("*.safetensors") for name in load_file(file)}
    assert index["metadata"]["total_size"] == summary["bytes"]
    assert summary["files"] == {path.name: hash_file(path) for path in model.iterdir()}
    merge.merge_adapter(make_base(tmp_path / "one file"), adapter, tmp_path / "other", say=quiet)
    assert all(torch.equal(weights(tmp_path / "other/model")[name], tensor) for name, tensor in weights(model).items())


def test_a_merge_says_little_and_with_how_many_bytes_how_fast_and_how_long(monkeypatch):
    now = iter(float(second) for second in range(10_000))
    monkeypatch.setattr(merge.time, "monotonic", lambda: next(now))
    said: list[str] = []
    progress = merge._Progress(4_000_000_000, said.append)
    progress.skip(1_000_000_000, 2)
    for _ in range(3000):
        progress.add(1_000_000)
    assert said[0] == "merge: 2 files (1.00 GB) kept from before"
    assert 10 <= len(said) <= 21
    assert said[1].startswith("merge: 1.20 of 4.00 GB (30%), 0.00 GB/s, ")
    assert said[1].endswith(" s left")
    assert said[-1] == "merge: 4.00 of 4.00 GB (100%), 0.00 GB/s"


def test_a_small_merge_says_one_line(tmp_path):
    base = make_base(tmp_path / "base", shards=3)
    said: list[str] = []
    merge.merge_adapter(base, make_adapter(base, tmp_path / "adapter"), tmp_path / "out", say=said.append)
    assert len(said) == 1
    assert "(100%)" in said[0]


def test_a_disk_without_room_is_told_before_anything_is_written(tmp_path, monkeypatch):
    base = make_base(tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(merge.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(RecipeError, match="still to be written"):
        merge.merge_adapter(base, adapter, tmp_path / "out", say=quiet)
    assert not list(tmp_path.rglob("*.writing"))


def _edit(adapter: Path, change) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, adapter / "adapter_model.safetensors")


def _configure(adapter: Path, **changes) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


OURS = json.dumps({"config": {"model": MODEL}, "facts": {"four_bit": "HERE"}}).replace('"HERE"', "%s")
Q = "base_model.model.model.layers.0.self_attn.q_proj"
EMBEDDING = "base_model.model.model.embed_tokens"
TOKENS = "token_adapter.trainable_tokens_delta"
BAD_ADAPTERS = {
    "a tensor nobody uses": (lambda a: _edit(a, lambda t: t.update({"extra.weight": torch.ones(2)})), "left out"),
    "a target that the base lacks": (
        lambda a: _edit(a, lambda t: t.update({f"{Q}x.lora_A.weight": torch.ones(4, 64),
                                               f"{Q}x.lora_B.weight": torch.ones(128, 4)})), "do not have"),
    "half a pair": (lambda a: _edit(a, lambda t: t.pop(f"{Q}.lora_B.weight")), "not a whole set"),
    "NaN": (lambda a: _edit(a, lambda t: t[f"{Q}.lora_A.weight"].fill_(float("nan"))), "NaN"),
    "an overflow": (lambda a: _edit(a, lambda t: [t[f"{Q}.lora_{s}.weight"].fill_(1e30) for s in "AB"]), "infinity"),
    "a wrong shape": (lambda a: _edit(a, lambda t: t.update({f"{Q}.lora_A.weight": torch.ones(4, 32)})), "shape"),
    "a rank unlike the config": (lambda a: _configure(a, r=8), "r=8"),
    "an empty shard of ZeRO-3": (
        lambda a: _edit(a, lambda t: t.update({f"{Q}.lora_A.weight": torch.empty(0)})), "empty"),
    "trained biases": (lambda a: _configure(a, bias="lora_only"), "biases"),
    "biases of LoRA": (lambda a: _configure(a, lora_bias=True), "no bias in the base"),
    "transposed matrices": (lambda a: _configure(a, fan_in_fan_out=True), "Conv1D"),
    "copied layers": (lambda a: _configure(a, layer_replication=[[0, 2], [1, 2]]), "another architecture"),
    "bare parameters": (lambda a: _configure(a, target_parameters=["mlp.experts.gate_up_proj"]), "mixture"),
    "a choice token by token": (lambda a: _configure(a, arrow_config={"top_k": 2}), "token by token"),
    "DoRA on an embedding": (
        lambda a: _edit(a, lambda t: t.update({f"{EMBEDDING}.lora_embedding_A": torch.ones(4, 320),
                                               f"{EMBEDDING}.lora_embedding_B": torch.ones(64, 4),
                                               f"{EMBEDDING}.lora_magnitude_vector": torch.ones(64)})), "DoRA on an"),
    "a grown vocabulary": (
        lambda a: _edit(a, lambda t: t.update({f"{EMBEDDING}.weight": torch.ones(330, 64)})), "resized"),
    "a target without tensors": (
        lambda a: _edit(a, lambda t: [t.pop(f"{Q}.lora_{s}.weight") for s in "AB"]), "targets without"),
    "tensors without a target": (lambda a: _configure(a, layers_to_transform=[1]), "does not target"),
    "an excluded module": (lambda a: _configure(a, exclude_modules=["q_proj"]), "does not target"),
    "a saved module that is not there": (lambda a: _configure(a, modules_to_save=["norm"]), "nothing of this module"),
    "rows that the base lacks": (
        lambda a: (_configure(a, trainable_token_indices=[320]),
                   _edit(a, lambda t: t.update({f"{EMBEDDING}.{TOKENS}": torch.ones(1, 64)}))), "names a row"),
    "a base-changing start": (lambda a: _configure(a, init_lora_weights="pissa"), "changed the base"),
    "an unknown method": (lambda a: _configure(a, kasa_config={"beta": 1}), "not known"),
    "another kind of adapter": (lambda a: _configure(a, peft_type="IA3"), "only LoRA"),
    "DoRA without magnitudes": (lambda a: _configure(a, use_dora=True), "magnitude"),
    "pickled weights": (lambda a: (a / "adapter_model.safetensors").rename(a / "adapter_model.bin"), "pickled"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "word"), BAD_ADAPTERS.values(), ids=BAD_ADAPTERS.keys())
def test_what_cannot_be_merged_wholly_is_refused_and_nothing_is_published(tmp_path, spoil, word):
    base = make_base(tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter")
    spoil(adapter)
    with pytest.raises(RecipeError, match=word):
        merge.merge_adapter(base, adapter, tmp_path / "out", say=quiet)
    assert not (tmp_path / "out").exists()


def test_nan_in_the_base_is_refused(tmp_path):
    base = make_base(tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter")
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RecipeError, match=r"model\.norm\.weight.*in the base"):
        merge.merge_adapter(base, adapter, tmp_path / "out", say=quiet)
    assert not (tmp_path / "out").exists()


def test_an_output_that_exists_is_never_overwritten(tmp_path):
    base = make_base(tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter")
    (tmp_path / "out").mkdir()
    with pytest.raises(RecipeError, match="never reused"):
        merge.merge_adapter(base, adapter, tmp_path / "out", say=quiet)


@pytest.mark.parametrize("lacking", ["base", "adapter"])
def test_a_folder_that_is_not_there_is_named(tmp_path, lacking):
    folders = {"base": tmp_path / "base", "adapter": tmp_path / "adapter"}
    make_adapter(make_base(folders["base"]), folders["adapter"])
    with pytest.raises(RecipeError, match=f"--{lacking}=.*/nowhere: there is no such folder"):
        merge.merge_adapter(*(folders | {lacking: tmp_path / "nowhere"}).values(), tmp_path / "out", say=quiet)
    assert not list(tmp_path.glob("out*"))


def test_two_merges_into_one_output_do_not_meet(tmp_path):
    base = make_base(tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter")
    with leftovers.alone(tmp_path / "out.partial"), pytest.raises(RecipeError, match="another merge"):
        merge.merge_adapter(base, adapter, tmp_path / "out", say=quiet)
    merge.merge_adapter(base, adapter, tmp_path / "out", say=quiet)


def test_a_stale_index_beside_a_single_file_is_refused(tmp_path):
    base = make_base(tmp_path / "base", shards=3)
    make_base(tmp_path / "single")
    (tmp_path / "single/model.safetensors").rename(base / "model.safetensors")
    adapter = make_adapter(base, tmp_path / "adapter")
    with pytest.raises(RecipeError, match="stale"):
        merge.merge_adapter(base, adapter, tmp_path / "out", say=quiet)


def test_only_modules_that_were_4_bit_are_round_tripped_and_exactly_so(tmp_path):
    from bitsandbytes import functional

    base = make_base(tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    modules = frozenset(f"model.layers.{layer}.self_attn.{part}_proj" for layer in (0, 1) for part in "qv")
    summary = merge.merge_adapter(
        base, adapter, tmp_path / "out", say=quiet, round_trip=RoundTrip(modules)
    )
    before, after = weights(base), weights(tmp_path / "out/model")
    for name, tensor in before.items():
        if name.removesuffix(".weight") not in modules:
            assert torch.equal(after[name], tensor), name
    name = "model.layers.1.self_attn.v_proj.weight"
    packed, state = functional.quantize_4bit(before[name], quant_type="nf4", compress_statistics=True)
    assert torch.equal(after[name], functional.dequantize_4bit(packed, state))
    assert not torch.equal(after[name], before[name])
    assert summary["base_used"] == "round-tripped 4-bit"
    assert summary["round_trip"]["modules"] == sorted(modules)


def test_both_modes_render_as_before_when_asked_and_the_default_is_plain():
    def render(template: str, **switch) -> str:
        messages = [{"role": "user", "content": "Hi"}]
        return jinja2.Template(template).render(messages=messages, add_generation_prompt=True, **switch)

    baked = bake_mode(TEMPLATE, "plain")
    for switch in (True, False):
        assert render(baked, enable_thinking=switch) == render(TEMPLATE, enable_thinking=switch)
    assert render(TEMPLATE) == render(TEMPLATE, enable_thinking=True)
    assert render(baked) == render(TEMPLATE, enable_thinking=False)
    assert bake_mode(baked, "plain") == baked
    assert bake_mode(TEMPLATE, "think") == TEMPLATE
    # vLLM hands a template only the variables that it finds undeclared in it.
    assert "enable_thinking" in jinja2.meta.find_undeclared_variables(jinja2.Environment().parse(baked))


def test_the_merged_directory_holds_what_a_server_loads_and_nothing_else(tmp_path):
    base = make_base(tmp_path / "base")
    (base / "README.md").write_text("of the base")
    (base / "training_args.bin").write_text("x")
    adapter = make_adapter(base, tmp_path / "adapter")
    merge.merge_adapter(base, adapter, tmp_path / "out", say=quiet, default_mode="plain")
    model = tmp_path / "out/model"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model", "merge.json"}
    assert {path.name for path in model.iterdir()} == {
        "model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
        "chat_template.jinja",
    }  # fmt: skip
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in model.iterdir())
    generation = json.loads((model / "generation_config.json").read_text())
    assert generation == {"eos_token_id": [2, 0], "pad_token_id": 0, "bos_token_id": 1, "do_sample": False,
                          "temperature": 0.0}  # fmt: skip
    assert GenerationConfig.from_pretrained(model).temperature == 0.0
    config = json.loads((model / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 10_000.0
    assert config["dtype"] == "bfloat16"
    assert AutoTokenizer.from_pretrained(model).eos_token_id == 2


def test_an_adapter_from_elsewhere_keeps_the_template_and_the_sampling_of_its_base(tmp_path):
    base = make_base(tmp_path / "base")
    merge.merge_adapter(base, make_adapter(base, tmp_path / "adapter"), tmp_path / "out", say=quiet)
    assert (tmp_path / "out/model/chat_template.jinja").read_text() == TEMPLATE
    generation = json.loads((tmp_path / "out/model/generation_config.json").read_text())
    assert (generation["do_sample"], generation["temperature"], generation["top_p"]) == (True, 0.6, 0.95)


def test_an_adapter_of_our_own_says_itself_what_was_4_bit_and_which_mode_it_answers_in(tmp_path):
    base = make_base(tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter")
    module = "model.layers.0.mlp.up_proj"
    config = {"model": MODEL, "method": {"name": "qlora", "bnb": {"bnb_4bit_quant_type": "nf4"}}}
    four_bit = RoundTrip(frozenset([module]), double_quant=False).describe()
    (adapter / "manifest.json").write_text(json.dumps({"config": config, "facts": {"four_bit": four_bit}}))
    summary = merge.merge_adapter(base, adapter, tmp_path / "out", say=quiet)
    assert summary["round_trip"]["modules"] == [module]
    assert (summary["round_trip"]["quant_type"], summary["round_trip"]["double_quant"]) == ("nf4", False)
    template = (tmp_path / "out/model/chat_template.jinja").read_text()
    assert template == bake_mode(TEMPLATE, "plain") != TEMPLATE


def test_a_stack_whose_second_adapter_was_trained_in_4_bit_is_refused(tmp_path):
    base = make_base(tmp_path / "base")
    first, second = make_adapter(base, tmp_path / "first"), make_adapter(base, tmp_path / "second")
    (first / "manifest.json").write_text(OURS % "null")
    (second / "manifest.json").write_text(OURS % json.dumps(RoundTrip(frozenset({"model.norm"})).describe()))
    with pytest.raises(RecipeError, match="merge the adapters before it first"):
        merge.merge_adapter(base, first, tmp_path / "out", then=[second], say=quiet)


def test_the_merged_model_loads_without_a_missing_or_unexpected_tensor(tmp_path):
    base = make_base(tmp_path / "base", kind="llama", tied=True)
    adapter = make_adapter(base, tmp_path / "adapter")
    merge.merge_adapter(base, adapter, tmp_path / "out", say=quiet)
    _, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "out/model", dtype="auto", output_loading_info=True)
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


@pytest.mark.parametrize("where", ["card", "name"])
def test_a_4_bit_adapter_from_elsewhere_is_refused_until_its_base_is_told(tmp_path, where):
    """peft#2105, trl#1324: merged into the wrong base it answers worse without a word."""
    base = make_base(tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter")
    if where == "card":
        (adapter / "README.md").write_text("`bitsandbytes` quantization config was used:\n- load_in_4bit: True\n")
    else:
        (adapter / "README.md").unlink(missing_ok=True)
        config = json.loads((adapter / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = "someone/tiny-bnb-4bit"
        (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(RecipeError, match="--trained-on"):
        merge.merge_adapter(base, adapter, tmp_path / "out", say=quiet)
    assert not (tmp_path / "out").exists()
    summary = merge.merge_adapter(base, adapter, tmp_path / "nf4", say=quiet, trained_on="nf4-double")
    trip = summary["round_trip"]
    assert (trip["quant_type"], trip["double_quant"], trip["from_dtype"]) == ("nf4", True, "bfloat16")
    assert len(trip["modules"]) == 14, "the seven linear layers of both blocks, never the head"
    plain = merge.merge_adapter(base, adapter, tmp_path / "plain", say=quiet, trained_on="as-it-is")
    assert plain["base_used"] == "as it is"
    with pytest.raises(RecipeError, match="one of nf4-double"):
        merge.merge_adapter(base, adapter, tmp_path / "wrong", say=quiet, trained_on="int8")
