"""MERGE: the same bytes as PEFT, everything used, nothing half published, killed and resumed alike."""

import json
from pathlib import Path

import jinja2
import jinja2.meta
import pytest
import torch
from checkpoints import MODEL, TEMPLATE, make_adapter, make_base, weights
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from finetune import merge
from finetune.artifacts import hash_file
from finetune.checkpoint import bake_mode
from finetune.errors import RecipeError
from finetune.fourbit import RoundTrip
from finetune.shards import read_header


def quiet(_: str) -> None:
    pass


def merge_with_peft(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype="auto"), adapter)
    return dict(model.merge_and_unload().state_dict())


def assert_same(merged: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tied: bool) -> None:
    names = set(expected) - ({"lm_head.weight"} if tied else set())
    assert set(merged) == names
    for name in names:
        assert merged[name].dtype == expected[name].dtype, name
        assert torch.equal(merged[name], expected[name]), name


LORAS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 8, "layers.1.mlp.up_proj": 2}, "alpha_pattern": {"v_proj": 3}},
    "attention only": {"target_modules": ["q_proj", "v_proj"]},
    "dora": {"use_dora": True},
    "dora, rslora and patterns": {"use_dora": True, "use_rslora": True, "rank_pattern": {"k_proj": 8}},
}


@pytest.mark.parametrize("lora", LORAS.values(), ids=LORAS.keys())
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "f32"])
@pytest.mark.parametrize(("kind", "tied"), [("qwen3", False), ("llama", True)])
def test_merged_bytes_equal_those_of_peft(tmp_path, kind, tied, dtype, lora):
    base = make_base(tmp_path / "base", kind=kind, tied=tied, dtype=dtype)
    adapter = make_adapter(base, tmp_path / "adapter", **lora)
    merge.merge_adapter(base, adapter, tmp_path / "out", say=quiet)
    merged = weights(tmp_path / "out/model")
    assert_same(merged, merge_with_peft(base, adapter), tied)
    assert any(not torch.equal(merged[name], tensor) for name, tensor in weights(base).items()), "nothing was merged"


@pytest.mark.parametrize(
    "lora",
    [{"target_modules": ["q_proj", "embed_tokens", "lm_head"]}, {"modules_to_save": ["lm_head"]}],
    ids=["embedding and head targets", "modules_to_save"],
)
def test_an_untied_embedding_and_head_are_merged_as_peft_does(tmp_path, lora):
    base = make_base(tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter", **lora)
    merge.merge_adapter(base, adapter, tmp_path / "out", say=quiet)
    assert_same(weights(tmp_path / "out/model"), merge_with_peft(base, adapter), tied=False)


@pytest.mark.parametrize("lora", [LORAS["plain"], LORAS["dora"], {"target_modules": ["embed_tokens", "lm_head"]}])
@pytest.mark.parametrize("block_bytes", [1, 1 << 14])
def test_row_blocks_give_the_same_bytes_as_whole_tensors(tmp_path, lora, block_bytes):
    base = make_base(tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter", **lora)
    (tmp_path / "out").mkdir()
    assert len(merge._cuts(read_header(base / "model.safetensors")["lm_head.weight"], block_bytes)) > 2
    merge.write_merged(base, adapter, tmp_path / "out", identity="x", say=quiet, block_bytes=block_bytes)
    assert_same(weights(tmp_path / "out/model"), merge_with_peft(base, adapter), tied=False)


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
    assert_same(weights(model), merge_with_peft(base, adapter), tied=False)


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the code under test can catch it."""


def test_a_merge_killed_anywhere_goes_on_and_ends_with_the_same_bytes(tmp_path):
    base = make_base(tmp_path / "base", shards=4)
    adapter = make_adapter(base, tmp_path / "adapter")
    merge.merge_adapter(base, adapter, tmp_path / "undisturbed", say=quiet)
    expected = {p.name: hash_file(p) for p in (tmp_path / "undisturbed").rglob("*") if p.is_file()}
    shards = len(list(base.glob("*.safetensors")))
    resumed_with_kept_shards = 0
    for fatal in range(shards + 1):
        out, said = tmp_path / f"killed{fatal}", []
        _kill_in_shard(base, adapter, out, fatal)
        merge.merge_adapter(base, adapter, out, say=said.append)
        assert {p.name: hash_file(p) for p in out.rglob("*") if p.is_file()} == expected
        resumed_with_kept_shards += any("kept from before" in line for line in said)
    assert resumed_with_kept_shards == shards - 1


def _kill_in_shard(base: Path, adapter: Path, out: Path, fatal: int) -> None:
    calls, write = [], merge._write_shard

    def write_until_killed(handle, *arguments):
        if len(calls) == fatal:
            handle.write(b"half a header")
            raise Killed
        calls.append(1)
        return write(handle, *arguments)

    merge._write_shard = write_until_killed
    try:
        with pytest.raises(Killed):
            merge.merge_adapter(base, adapter, out, say=quiet)
    except pytest.fail.Exception:
        assert fatal == len(calls), "only a kill after the last shard lets the merge end"
    finally:
        merge._write_shard = write
    if not out.exists():
        return
    out.rename(out.with_name(out.name + ".partial-done"))


def test_leftovers_of_another_adapter_are_not_taken_over(tmp_path):
    base = make_base(tmp_path / "base", shards=3)
    first, second = make_adapter(base, tmp_path / "a"), make_adapter(base, tmp_path / "b", seed=2)
    _kill_in_shard(base, first, tmp_path / "out", 2)
    merge.merge_adapter(base, second, tmp_path / "out", say=quiet)
    assert_same(weights(tmp_path / "out/model"), merge_with_peft(base, second), tied=False)


def test_a_finished_shard_that_was_damaged_meanwhile_is_made_again(tmp_path):
    base = make_base(tmp_path / "base", shards=3)
    adapter = make_adapter(base, tmp_path / "adapter")
    _kill_in_shard(base, adapter, tmp_path / "out", 2)
    shard = sorted((tmp_path / "out.partial/model").glob("*.safetensors"))[0]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    merge.merge_adapter(base, adapter, tmp_path / "out", say=quiet)
    assert_same(weights(tmp_path / "out/model"), merge_with_peft(base, adapter), tied=False)


def _edit(adapter: Path, change) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, adapter / "adapter_model.safetensors")


def _configure(adapter: Path, **changes) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


Q = "base_model.model.model.layers.0.self_attn.q_proj"
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
    "a base-changing start": (lambda a: _configure(a, init_lora_weights="pissa"), "changed the base"),
    "an unknown method": (lambda a: _configure(a, alora_invocation_tokens=[1]), "not known"),
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


@pytest.mark.parametrize("lora", [{"target_modules": ["embed_tokens"]}, {"target_modules": ["lm_head"]}])
def test_training_one_side_of_tied_embeddings_is_refused(tmp_path, lora):
    base = make_base(tmp_path / "base", tied=True)
    adapter = make_adapter(base, tmp_path / "adapter", **lora)
    with pytest.raises(RecipeError, match=r"one tensor|do not have"):
        merge.merge_adapter(base, adapter, tmp_path / "out", say=quiet)


def test_an_output_that_exists_is_never_overwritten(tmp_path):
    base = make_base(tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter")
    (tmp_path / "out").mkdir()
    with pytest.raises(RecipeError, match="never reused"):
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


def test_the_merged_model_loads_without_a_missing_or_unexpected_tensor(tmp_path):
    base = make_base(tmp_path / "base", kind="llama", tied=True)
    adapter = make_adapter(base, tmp_path / "adapter")
    merge.merge_adapter(base, adapter, tmp_path / "out", say=quiet)
    _, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "out/model", dtype="auto", output_loading_info=True)
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
