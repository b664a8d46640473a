"""Quantised linears: which tensors stand for one weight, and with which shapes, per format.

Formats as vLLM 0.32 loads them: compressed-tensors (packed integers, int8, FP8, FP4), GPTQ, AWQ (gemm) and FP8 with
block scales. A server leaves a missing scale uninitialised, as it does a missing weight.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from finetune.findings import Finding, finding
from finetune.shards import Tensor

Shape = tuple[int, ...]
_PARTS = (
    "weight", "weight_packed", "weight_scale", "weight_scale_inv", "weight_global_scale", "weight_zero_point",
    "weight_shape", "weight_g_idx", "input_scale", "input_zero_point", "input_global_scale", "output_scale",
    "qweight", "qzeros", "scales", "g_idx",
)  # fmt: skip
_CACHE = ("k_scale", "v_scale", "q_scale", "k_zero_point", "v_zero_point", "k_proj.output_scale", "v_proj.output_scale")
_PACKED = ("gptq", "awq", "auto-round", "auto_gptq", "auto_awq", "intel/auto-round", "gptq_marlin", "awq_marlin")
_PLAIN = ("compressed-tensors", "fp8", "fbgemm_fp8", "modelopt")


def check(
    where: str, settings: Mapping[str, Any], shapes: Mapping[str, Shape], tensors: Mapping[str, Tensor],
    notes: list[str],
) -> tuple[list[Finding], set[str] | None]:
    """Findings of the quantised linears, and every tensor name, expected or found, that they account for.

    None instead of names where nothing more can be said: no linear is quantised at all, or the format is unknown here.
    """
    method = str(settings.get("quant_method"))
    if method == "bitsandbytes":  # refused as a leftover of training; its tensors need no second word
        return [], None
    if method not in (*_PACKED, *_PLAIN):
        notes.append(f"not checked: shapes of weights quantised by {method}")
        return [], None
    found: list[Finding] = []
    accounted: set[str] = set()
    linears = {name.removesuffix(".weight"): (shape[0], shape[1]) for name, shape in shapes.items() if len(shape) == 2}
    for module, (rows, columns) in linears.items():
        parts = {part: tensors[f"{module}.{part}"] for part in _PARTS if f"{module}.{part}" in tensors}
        if not set(parts) - {"weight"} and not (parts and _is_small(parts["weight"])):
            continue  # a plain linear: checked like any other
        accounted |= {f"{module}.weight", *(f"{module}.{part}" for part in parts)}
        if method in _PACKED:  # AutoGPTQ writes a bias of zeros where the model has none, and servers pass it over
            accounted.add(f"{module}.bias")
        found += _linear(module, parts, rows, columns, settings)
    accounted |= {name for name in tensors if ".self_attn." in name and name.endswith(_CACHE)}
    if not any(name in accounted for name in tensors):
        return [finding(
            "unquantised-weights", f"{where}: quantization_config", method,
            "the config says quantised, the weights are not", "remove quantization_config",
        )], None  # fmt: skip
    return found, accounted


def _is_small(tensor: Tensor) -> bool:
    return tensor.dtype in ("I8", "U8") or tensor.dtype.startswith("F8")


def _linear(
    module: str, parts: Mapping[str, Tensor], rows: int, columns: int, settings: Mapping[str, Any]
) -> Iterator[Finding]:
    if "qweight" in parts:
        yield from _gptq_or_awq(module, parts, rows, columns, settings)
    elif "weight_packed" in parts:
        packed = parts["weight_packed"]
        bits = _numbers(settings, "num_bits")
        widths = {columns // 2} if packed.dtype == "U8" else {-(-columns * bit // 32) for bit in bits}
        yield from _shaped(f"{module}.weight_packed", packed, {(rows, width) for width in widths})
        yield from _scaled(module, parts, rows, columns, settings)
    elif "weight" in parts:
        yield from _shaped(f"{module}.weight", parts["weight"], {(rows, columns)})
        yield from _scaled(module, parts, rows, columns, settings)
    else:
        yield _lacking(module, "weight", parts)


def _gptq_or_awq(
    module: str, parts: Mapping[str, Tensor], rows: int, columns: int, settings: Mapping[str, Any]
) -> Iterator[Finding]:
    """GPTQ packs along the inputs, AWQ along the outputs; the config tells bits and group size, -1 for one group."""
    bits, group = int(settings.get("bits") or settings.get("w_bit") or 4), int(settings.get("group_size") or 128)
    groups = 1 if group < 1 else -(-columns // group)
    by_inputs, by_outputs = (columns * bits // 32, rows), (columns, rows * bits // 32)
    method = f"{settings.get('quant_method')} {settings.get('packing_format')}"
    yield from _shaped(
        f"{module}.qweight", parts["qweight"],
        {by_outputs} if "awq" in method else {by_inputs} if "gptq" in method else {by_inputs, by_outputs},
    )  # fmt: skip
    for part, wanted in (("qzeros", (groups, rows * bits // 32)), ("scales", (groups, rows))):
        if part in parts:
            yield from _shaped(f"{module}.{part}", parts[part], {wanted})
        else:
            yield _lacking(module, part, parts)
    if "g_idx" in parts:
        yield from _shaped(f"{module}.g_idx", parts["g_idx"], {(columns,)})


def _scaled(
    module: str, parts: Mapping[str, Tensor], rows: int, columns: int, settings: Mapping[str, Any]
) -> Iterator[Finding]:
    """One scale for all, for each row, for each group of a row, or for each block."""
    scale = parts.get("weight_scale", parts.get("weight_scale_inv"))
    if scale is None:
        yield _lacking(module, "weight_scale", parts)
        return
    wanted: set[Shape] = {(), (1,), (rows,), (rows, 1)}
    wanted |= {(rows, -(-columns // size)) for size in _numbers(settings, "group_size") if size > 0}
    blocks = [group.get("weights", {}).get("block_structure") for group in _groups(settings)]
    for block in [*blocks, settings.get("weight_block_size")]:
        if isinstance(block, list) and len(block) == 2:
            wanted.add((-(-rows // int(block[0])), -(-columns // int(block[1]))))
    yield from _shaped(f"{module}.weight_scale", scale, wanted)


def _groups(settings: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    groups = settings.get("config_groups")
    return [group for group in groups.values() if isinstance(group, dict)] if isinstance(groups, dict) else []


def _numbers(settings: Mapping[str, Any], key: str) -> set[int]:
    found = {group["weights"].get(key) for group in _groups(settings) if isinstance(group.get("weights"), dict)}
    return {int(number) for number in found if number is not None}


def _shaped(name: str, tensor: Tensor, wanted: set[Shape]) -> Iterator[Finding]:
    if tensor.shape not in wanted:
        yield finding(
            "quantised-shape", name, list(tensor.shape),
            f"the config makes it {' or '.join(str(list(shape)) for shape in sorted(wanted))}",
            "restore config.json (heads, sizes, bits, group size), or quantise again",
        )  # fmt: skip


def _lacking(module: str, part: str, parts: Mapping[str, Tensor]) -> Finding:
    return finding("quantised-part", f"{module}.{part}", None, f"missing beside {', '.join(sorted(parts))}: a server "
                   "would take what its memory holds", "quantise again")  # fmt: skip
