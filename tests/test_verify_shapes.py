"""VERIFY gives no alarm on good checkpoints of real shapes, plain and quantised, and reads headers only."""

import ast
import json
import random
import re
import shutil
from pathlib import Path

import pytest
import shapes
from shapes import LLAMA3_1B, LLAMA3_8B, QWEN3_32B, QWEN3_600M

from finetune.findings import Finding
from finetune.verify import verify
from finetune.verify.reading import finite
from finetune.verify.weights import expected_shapes


def quiet(_: str) -> None:
    pass


def found(directory: Path) -> list[Finding]:
    return list(verify(directory, say=quiet))


def bytes_read() -> int:
    """Bytes that this process has read so far, whether the disk or the kernel's cache gave them."""
    return int(re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())[1])


@pytest.mark.parametrize(
    ("config", "shards"), [(QWEN3_600M, 1), (QWEN3_600M, 2), (LLAMA3_8B, 4), (LLAMA3_1B, 1)],
    ids=["Qwen3 0.6B, tied", "Qwen3 0.6B, tied, sharded", "Llama 3.1 8B, sharded", "Llama 3.2 1B, tied"],
)  # fmt: skip
def test_good_checkpoints_of_real_shapes_give_no_alarm(tiny_qwen3, tmp_path, config, shards):
    tokenizer = tiny_qwen3 if config["model_type"] == "qwen3" else None
    assert found(shapes.make(tmp_path / "m", config, tokenizer, shards=shards)) == []


def test_a_32b_checkpoint_is_checked_by_its_headers_and_texts_alone(tiny_qwen3, tmp_path):
    """65 GB of weights in 17 files, of which nothing but the headers is read."""
    model = shapes.make(tmp_path / "m", QWEN3_32B, tiny_qwen3, shards=17)
    weights = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    small = sum(file.stat().st_size for file in model.iterdir()) - weights
    before = bytes_read()
    assert found(model) == []
    read = bytes_read() - before
    assert weights > 65_000_000_000
    assert read < 3 * small + 1_000_000


def test_a_missing_tensor_and_smaller_heads_are_seen_at_32b_too(tmp_path):
    entries = [(name, "BF16", shape) for name, shape in expected_shapes(QWEN3_32B).items()]
    del entries[400]
    config = QWEN3_32B | {"num_key_value_heads": 4}
    rules = {finding.name for finding in found(shapes.make(tmp_path / "m", config, tensors=entries))}
    assert rules == {"missing-tensor", "tensor-shape"}


PACKED = {"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"]}


def _groups(**weights) -> dict:
    return {"config_groups": {"group_0": {"targets": ["Linear"], "weights": {"type": "int"} | weights}}}


def _linear(kind: str, name: str, rows: int, columns: int) -> list[shapes.Entry]:
    """The tensors that stand for one linear, as llm-compressor 0.14, AutoGPTQ and AutoAWQ write them."""
    made = {
        "w4a16": [("weight_packed", "I32", (rows, columns // 8)), ("weight_scale", "BF16", (rows, columns // 128)),
                  ("weight_shape", "I64", (2,))],
        "w4a16 asymmetric": [
            ("weight_packed", "I32", (rows, columns // 8)), ("weight_scale", "BF16", (rows, columns // 128)),
            ("weight_zero_point", "I32", (rows // 8, columns // 128)), ("weight_shape", "I64", (2,))],
        "w4a16 with g_idx": [
            ("weight_packed", "I32", (rows, columns // 8)), ("weight_scale", "BF16", (rows, columns // 128)),
            ("weight_g_idx", "I32", (columns,)), ("weight_shape", "I64", (2,))],
        "w8a8": [("weight", "I8", (rows, columns)), ("weight_scale", "BF16", (rows, 1))],
        "w8a8 static": [("weight", "I8", (rows, columns)), ("weight_scale", "BF16", (rows, 1)),
                        ("input_scale", "BF16", (1,)), ("input_zero_point", "I8", (1,))],
        "fp8 dynamic": [("weight", "F8_E4M3", (rows, columns)), ("weight_scale", "BF16", (rows, 1))],
        "fp8 per tensor": [("weight", "F8_E4M3", (rows, columns)), ("weight_scale", "BF16", (1,)),
                           ("input_scale", "BF16", (1,))],
        "fp8 blocks": [("weight", "F8_E4M3", (rows, columns)),
                       ("weight_scale_inv", "F32", (-(-rows // 128), -(-columns // 128)))],
        "nvfp4": [("weight_packed", "U8", (rows, columns // 2)), ("weight_scale", "F8_E4M3", (rows, columns // 16)),
                  ("weight_global_scale", "F32", (1,))],
        "gptq": [("qweight", "I32", (columns // 8, rows)), ("qzeros", "I32", (columns // 128, rows // 8)),
                 ("scales", "F16", (columns // 128, rows)), ("g_idx", "I32", (columns,)), ("bias", "F16", (rows,))],
        "gptq, one group": [("qweight", "I32", (columns // 8, rows)), ("qzeros", "I32", (1, rows // 8)),
                            ("scales", "F16", (1, rows)), ("g_idx", "I32", (columns,))],
        "awq": [("qweight", "I32", (columns, rows // 8)), ("qzeros", "I32", (columns // 128, rows // 8)),
                ("scales", "F16", (columns // 128, rows))],
        "auto-round": [("qweight", "I32", (columns // 8, rows)), ("qzeros", "I32", (columns // 128, rows // 8)),
                       ("scales", "F16", (columns // 128, rows))],
    }[kind]  # fmt: skip
    return [(f"{name.removesuffix('.weight')}.{part}", dtype, shape) for part, dtype, shape in made]


QUANTISED = {
    "w4a16": PACKED | _groups(num_bits=4, group_size=128, strategy="group"),
    "w4a16 asymmetric": PACKED | _groups(num_bits=4, group_size=128, strategy="group", symmetric=False),
    "w4a16 with g_idx": PACKED | _groups(num_bits=4, group_size=128, strategy="group", actorder="group"),
    "w8a8": PACKED | _groups(num_bits=8, group_size=None, strategy="channel") | {"format": "int-quantized"},
    "w8a8 static": PACKED | _groups(num_bits=8, strategy="channel") | {"format": "int-quantized"},
    "fp8 dynamic": PACKED | _groups(num_bits=8, type="float", strategy="channel") | {"format": "float-quantized"},
    "fp8 per tensor": PACKED | _groups(num_bits=8, type="float", strategy="tensor") | {"format": "float-quantized"},
    "fp8 blocks": {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"},
    "nvfp4": PACKED | _groups(num_bits=4, type="float", group_size=16) | {"format": "nvfp4-pack-quantized"},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True},
    "gptq, one group": {"quant_method": "gptq", "bits": 4, "group_size": -1, "desc_act": True, "sym": True},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True},
    "auto-round": {"quant_method": "auto-round", "bits": 4, "group_size": 128,
                   "packing_format": "auto_round:auto_gptq"},
}  # fmt: skip


def quantised(kind: str, folder: Path, config: dict, change=None, **settings) -> list[Finding]:
    """Findings of a checkpoint whose linears are quantised; `change(entries)` spoils it."""
    config = config | {"num_hidden_layers": 2, "quantization_config": QUANTISED[kind] | settings}
    entries = []
    for name, shape in expected_shapes(config).items():
        plain = len(shape) != 2 or "embed" in name or "lm_head" in name
        entries += [(name, "BF16", shape)] if plain else _linear(kind, name, *shape)
    return found(shapes.make(folder, config, tensors=change(entries) if change else entries))


@pytest.mark.parametrize("kind", QUANTISED)
def test_good_quantised_checkpoints_give_no_alarm(tmp_path, kind):
    assert quantised(kind, tmp_path / "qwen", QWEN3_600M) == []
    assert quantised(kind, tmp_path / "llama", LLAMA3_8B) == []


@pytest.mark.parametrize(("kind", "part"), [("w4a16", "weight_scale"), ("w8a8", "weight_scale"), ("gptq", "qzeros"),
                                            ("awq", "scales"), ("fp8 blocks", "weight_scale_inv")])  # fmt: skip
def test_a_missing_scale_of_a_quantised_linear_is_named(tmp_path, kind, part):
    gone = f"model.layers.1.mlp.up_proj.{part}"
    (finding,) = quantised(kind, tmp_path / "m", QWEN3_600M, lambda es: [e for e in es if e[0] != gone])
    assert finding.name == "quantised-part"
    assert "model.layers.1.mlp.up_proj" in finding.path


@pytest.mark.parametrize("kind", QUANTISED)
def test_a_quantised_linear_that_is_missing_altogether_is_named(tmp_path, kind):
    (finding,) = quantised(
        kind, tmp_path / "m", QWEN3_600M, lambda es: [e for e in es if "layers.1.mlp.up_proj" not in e[0]]
    )
    assert finding.name == "missing-tensor"
    assert finding.path == "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize("kind", ["w4a16", "w8a8", "gptq", "awq"])
def test_a_config_with_smaller_sizes_than_the_quantised_weights_is_refused(tmp_path, kind):
    larger = quantised(kind, tmp_path / "m", QWEN3_600M)
    assert larger == []
    config = json.loads((tmp_path / "m/config.json").read_text()) | {"num_key_value_heads": 4}
    (tmp_path / "m/config.json").write_text(json.dumps(config))
    assert {finding.name for finding in found(tmp_path / "m")} == {"quantised-shape"}


def test_other_bits_or_group_sizes_than_the_weights_are_refused(tmp_path):
    assert {f.name for f in quantised("gptq", tmp_path / "a", QWEN3_600M, group_size=64)} == {
        "quantised-shape"
    }
    groups = _groups(num_bits=8, group_size=128, strategy="group")
    assert {f.name for f in quantised("w4a16", tmp_path / "b", QWEN3_600M, **groups)} == {"quantised-shape"}


def test_an_unknown_format_is_said_and_not_guessed(tmp_path):
    said: list[str] = []
    config = QWEN3_600M | {"quantization_config": {"quant_method": "quip"}}
    assert verify(shapes.make(tmp_path / "m", config), say=said.append) == []
    assert any("not checked: shapes of weights quantised by quip" in line for line in said)


def test_the_bit_test_agrees_with_torch_on_every_half_precision_number():
    """All 65,536 bit patterns of both types, one at a time in a page of zeros, and F8 and F32 by sample."""
    import torch

    for name, dtype in (("BF16", torch.bfloat16), ("F16", torch.float16)):
        bits = torch.arange(65_536, dtype=torch.int32).to(torch.uint16)
        good = torch.isfinite(bits.view(dtype).float())
        assert finite(name, bits[good].numpy().tobytes())
        for number in range(65_536):
            if not good[number] or number % 97 == 0:
                assert finite(name, number.to_bytes(2, "little")) == bool(good[number])
    eight = torch.arange(256, dtype=torch.int32).to(torch.uint8)
    for name, dtype in (("F8_E4M3", torch.float8_e4m3fn), ("F8_E5M2", torch.float8_e5m2)):
        good = torch.isfinite(eight.view(dtype).float())
        assert [finite(name, bytes([number])) for number in range(256)] == good.tolist()
    draw = random.Random(0)
    for _ in range(2000):
        number = draw.getrandbits(32) | (0x7F800000 if draw.random() < 0.3 else 0)
        value = torch.tensor([number]).to(torch.uint32).view(torch.float32)
        assert finite("F32", number.to_bytes(4, "little")) == bool(torch.isfinite(value))


def test_one_bad_number_is_seen_at_every_place_of_a_long_tensor():
    page = bytearray(200_000)
    for place in (0, 65_534, 65_536, 131_070, 199_998):
        page[place : place + 2] = (0x7F80).to_bytes(2, "little")
        assert not finite("BF16", bytes(page))
        page[place : place + 2] = b"\0\0"
    assert finite("BF16", bytes(page))


def test_files_with_values_of_any_other_type_end_in_findings_never_in_a_traceback(tmp_path):
    """What arrives may be anything: each value of each JSON file is replaced in turn by values of other types."""
    good = shapes.make(tmp_path / "good", QWEN3_600M | {"num_hidden_layers": 1})
    tokenizer = {"model": {"type": "BPE", "vocab": {"a": 0}}, "added_tokens": [{"id": 1, "content": "<|im_end|>"}]}
    (good / "tokenizer.json").write_text(json.dumps(tokenizer))
    for name in ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"):
        content = json.loads((good / name).read_text())
        for key in [*content, "quantization_config", "rope_parameters", "rope_scaling", "layer_types", "top_k"]:
            for value in (
                None, -1, 0, 1.5, "x", [], [None], {}, {"x": 1}, True, [{}], {"vocab": 3}, {"content": []},
                {"quant_method": "gptq", "bits": "x"}, {"quant_method": [], "config_groups": {"a": 1}},
                {"rope_type": [], "rope_theta": "x"}, {"rope_type": "yarn", "factor": "x"},
            ):  # fmt: skip
                (good / name).write_text(json.dumps(content | {key: value}))
                assert isinstance(found(good), list)
        (good / name).write_text(json.dumps(content))
    shutil.rmtree(good)


def test_every_rule_is_explained_in_the_docs_and_tried_in_a_test():
    root = Path(__file__).parents[1]
    sources = [*(root / "finetune/verify").glob("*.py"), root / "finetune/signing.py"]
    rules = {
        node.args[0].value
        for source in sources for node in ast.walk(ast.parse(source.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("finding", "named")
        if isinstance(node.args[0], ast.Constant)
    }  # fmt: skip
    explained = re.findall(r"(?m)^\| `([a-z0-9-]+)` \|", (root / "docs/verifying.md").read_text(encoding="utf-8"))
    assert sorted(explained) == sorted(rules)
    tests = "".join(file.read_text(encoding="utf-8") for file in (root / "tests").glob("*.py"))
    assert {rule for rule in rules if f'"{rule}"' not in tests and f"[{rule}]" not in tests} == set()
