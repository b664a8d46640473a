"""Bytes that one device (a GPU, or a process on a CPU) holds in one training stage."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from finetune.config.machine import Layout
from finetune.config.model import Architecture, Model
from finetune.config.training import Method
from finetune.memory.counts import (
    DTYPE_BYTES,
    adapted_modules,
    linear_shapes,
    lora_parameters,
    parameters,
    weight_bytes,
)

_MIB = 2**20
# DeepSpeed's own defaults (runtime/zero/config.py), in elements.
_LIVE, _PREFETCH, _BUCKET = 1_000_000_000, 50_000_000, 500_000_000
# The fused head (trl/kernels/chunked_logprob.py, finetune/head.py) walks logits in tiles of so many tokens x words.
_TILE_TOKENS, _TILE_VOCABULARY = 4096, 32_768
# The lean head (finetune/head.py) makes logits of so many positions at a time off CUDA, and lifts so many to float32.
_LEAN_POSITIONS, _LEAN_LINES = 256, 16
_FP32 = 4

# What a CPU process holds beside its tensors, measured on 2026-11-22 by benchmarks/memory/run.py (2 CPU cores, glibc,
# torch 2.13): the interpreter with what it has imported, DeepSpeed and its copies under ZeRO-3, a tokenizer's table.
_LIBRARIES = {"single": 620 * _MIB, "ddp": 620 * _MIB, "zero3": 770 * _MIB}
TOKENIZER = 500
"""Bytes for each entry of the vocabulary."""
# Tensors that die young leave holes in glibc's heap between those that the backward pass waits for. Held against what
# one pass makes, kept or recomputed: fewer where layers are fused, more where the adapter has the type of the base,
# because its branch then keeps less of what it makes. Imports leave free memory behind that is used up first. A lower
# M_MMAP_THRESHOLD does away with holes and doubles the CPU time with page faults (measured).
_HOLES = {"fused": 0.21, "cast": 0.45, "same": 0.93}
_HOLES_RECOMPUTED = {"fused": 0.24, "cast": 0.62, "same": 0.82}
_HOLES_SCORES = {"fused": 0.34, "cast": 0.05, "same": 0.05}  # of attention's score matrices
_FREE_AT_START = {"fused": 60 * _MIB, "cast": 120 * _MIB, "same": 120 * _MIB}


@dataclass(frozen=True)
class DeviceBytes:
    """Bytes by what holds them; `peak` is what must fit."""

    weights: int
    """The frozen base: whole (single, DDP) or this device's share (ZeRO-3); 4 bit on a CPU: the file's pages too."""
    adapter: int
    gradients: int
    optimiser: int
    """AdamW: two moments in float32, under ZeRO-3 also float32 master weights; for the adapter only."""
    buffers: int
    """ZeRO-3: what is gathered at one time, the reduce bucket; DDP: gradient buckets; 4-bit: one layer unpacked."""
    activations: int
    logits: int
    load_peak: int
    """While loading: under ZeRO-3 every rank first holds the whole model when it is quantised."""
    offloaded: int = 0
    """Held by the host for this device, no part of its peak: weights and optimiser that DeepSpeed offloads."""
    libraries: int = 0
    """CPU only: the interpreter and what it has imported; a GPU's context and NCCL are no part of what is usable."""
    holes: int = 0
    """CPU only: pages of the C heap that are resident and free, see `_HOLES`."""

    @property
    def training(self) -> int:
        return sum(getattr(self, f.name) for f in fields(self) if f.name not in ("load_peak", "offloaded"))

    @property
    def peak(self) -> int:
        return max(self.training, self.load_peak + self.libraries)


def device_bytes(
    model: Model,
    method: Method,
    *,
    layout: Layout,
    processes: int,
    cuda: bool,
    checkpointing: bool,
    rows: int,
    length: int,
    preference: bool = False,
    deepspeed: Mapping[str, Any] | None = None,
) -> DeviceBytes:
    """Bytes on each device for batches of `rows` sequences of `length` tokens (a preference row is two sequences)."""
    a, size = model.architecture, DTYPE_BYTES[model.dtype]
    whole = weight_bytes(a, model.dtype, method.bnb)
    trained = lora_parameters(a, method.lora)
    tokens = rows * length * (2 if preference else 1)
    zero3 = layout == "zero3"
    lean = not cuda and not zero3
    offload = zero3 and _offloads(deepspeed, "offload_param")
    share = -(-whole // processes) if zero3 else whole
    # What is not quantised points into the mapped file, and off CUDA all pages that were read stay resident with it.
    # Weights are published in bf16: for float32 they are copied.
    mapped = parameters(a).linear * size if method.bnb and not cuda and size == DTYPE_BYTES["bfloat16"] else 0
    trained_size = adapter_size(model, layout)
    adapter = trained * trained_size // (processes if zero3 else 1)
    # Off CUDA and DeepSpeed norms are one step of autograd, and so are adapted layers (fused.py) where PEFT has nothing
    # of its own to do; SFT and CPT attend to flat rows (attention.py).
    norms, flat = lean, lean and not preference
    linears = lean and not method.bnb and not method.lora.get("lora_dropout") and not method.lora.get("use_dora")
    # Beside bf16 weights a float32 adapter reads a cast copy of its input: bf16 under CUDA's autocast, float32 without.
    copy = 0 if linears or trained_size == size else size if cuda else _FP32
    masked = not cuda and not flat
    # The lean head reads a pair as one row: prompt, chosen and rejected.
    seen = 2 * length if lean and preference else length
    kept = kept_bytes(
        a, model.attn_implementation, method.lora, size=size, copy=copy, masked=masked, length=seen, norms=norms,
        linears=linears, flat=flat,
    )  # fmt: skip
    eager = model.attn_implementation == "eager"
    scores = (_FP32 + (0 if flat and size == _FP32 else size)) * a.num_attention_heads * seen if eager else 0
    kind = "fused" if linears else "cast" if copy else "same"
    depth = a.num_hidden_layers
    layers = kept + size * a.hidden_size * depth if checkpointing else kept * depth
    # The layer that is worked on: its values, on the way back their gradients, and what the operations make meanwhile.
    working = 3 * (copy or size) * (3 * a.intermediate_size + 2 * a.hidden_size)
    around = (size + _FP32) * a.hidden_size  # embedding and last norm
    # A fused layer keeps its adapter's weights in its own type.
    activations = tokens * (layers + working + around) + (trained * size if linears else 0)
    optimiser = trained * optimiser_size(layout) // (processes if zero3 else 1)
    away = zero3 and _offloads(deepspeed, "offload_optimizer")
    return DeviceBytes(
        weights=0 if offload else share + mapped,
        adapter=adapter,
        gradients=adapter,
        optimiser=0 if away else optimiser,
        buffers=_buffers(a, size, trained, method, layout, deepspeed, cuda),
        activations=activations,
        logits=_lean_logits(a, tokens, size) if lean else _logits(a, tokens, size, cuda),
        load_peak=whole if method.bnb or not zero3 else share,
        offloaded=(share if offload else 0) + (optimiser if away else 0),
        libraries=0 if cuda else _LIBRARIES[layout] + TOKENIZER * a.vocab_size,
        holes=0
        if cuda
        else _holes(tokens * (kept - scores) * depth, tokens * scores * depth, kind, checkpointing),
    )


def adapter_size(model: Model, layout: Layout) -> int:
    """Bytes of one parameter of the adapter, in memory and on disk.

    PEFT keeps adapters in float32 beside a bf16 base; ZeRO-3 gathers both in one message, so there they are bf16.
    """
    return DTYPE_BYTES[model.dtype] if layout == "zero3" else _FP32


def optimiser_size(layout: Layout) -> int:
    """Bytes of AdamW's state for one parameter: two moments in float32, under ZeRO-3 also the float32 master weight."""
    return (3 if layout == "zero3" else 2) * _FP32


def _holes(made: int, scores: int, kind: str, checkpointing: bool) -> int:
    """Bytes of free heap between live tensors at the peak; `made`: those of all layers, without attention `scores`."""
    share = (_HOLES_RECOMPUTED if checkpointing else _HOLES)[kind]
    return max(0, round(share * made + _HOLES_SCORES[kind] * scores) - _FREE_AT_START[kind])


def kept_bytes(
    a: Architecture,
    attention: str,
    lora: Mapping[str, Any],
    *,
    size: int,
    copy: int,
    masked: bool,
    length: int,
    norms: bool = False,
    linears: bool = False,
    flat: bool = False,
) -> int:
    """Bytes a token that autograd keeps for one decoder layer with frozen weights and LoRA beside them.

    A frozen linear layer keeps nothing of its input. Its LoRA branch keeps it once, shared with its neighbours, or
    where it must be cast first (`copy` bytes an element), once for each adapted layer. RMSNorm keeps its input in
    float32. `norms`, `linears`: these layers are fused (fused.py); `flat`: rows are one after another (attention.py).
    Held to torch's saved-tensor hooks in the tests.
    """
    q, kv = a.num_attention_heads * a.head_dim, a.num_key_value_heads * a.head_dim
    h, f, heads = a.hidden_size, a.intermediate_size, a.num_attention_heads
    # A fused norm keeps what it divided, in the model's type, and what by, one number for each row.
    layer = 2 * (size * h + _FP32 if norms else _FP32 * h)
    if a.model_type == "qwen3":
        layer += size * (q + kv) + _FP32 * (heads + a.num_key_value_heads) if norms else _FP32 * (q + kv)
    if attention == "eager" and flat:
        layer += size * (q + 2 * kv) + (_FP32 + (size if size < _FP32 else 0)) * heads * length
    elif attention == "eager":
        # Repeated keys and values, scores in float32 and once more in the model's type.
        layer += size * 3 * q + (_FP32 + size) * heads * length
    else:
        # With a padding mask transformers repeats keys and values, and expands the mask in every layer.
        layer += size * (2 * q + 2 * (q if masked else kv)) + _FP32 * heads
        layer += size * length if masked else 0
    layer += size * 3 * f
    layer += size * 2 * a.head_dim if linears else 0  # sines of a rotation of one step, for queries and for keys
    adapted = {name.rsplit(".", 1)[-1] for name in adapted_modules(a, lora)}
    for width, readers in (
        (h, {"q_proj", "k_proj", "v_proj"}),
        (q, {"o_proj"}),
        (h, {"gate_proj", "up_proj"}),
        (f, {"down_proj"}),
    ):
        used = len(adapted & readers)
        if copy:
            layer += copy * width * used
        elif readers != {"o_proj"} or flat:  # else its input is what attention has kept already
            layer += size * width * min(used, 1)
    return layer + (copy or size) * int(lora.get("r", 8)) * len(adapted)


def _buffers(
    a: Architecture,
    size: int,
    trained: int,
    method: Method,
    layout: Layout,
    deepspeed: Mapping[str, Any] | None,
    cuda: bool,
) -> int:
    # A quantised weight is unpacked for the one matrix product that uses it.
    unpacked = size * max(i * o for i, o in linear_shapes(a).values()) if method.bnb else 0
    if layout != "zero3":
        return unpacked + (trained * _FP32 if layout == "ddp" else 0)
    zero = (deepspeed or {}).get("zero_optimization", {})
    counts = parameters(a)
    live = _elements(zero, "stage3_max_live_parameters", _LIVE) + _elements(
        zero, "stage3_prefetch_bucket_size", _PREFETCH
    )
    # Never less than the largest single parameter and a layer, never more than all there are.
    live = min(max(live, counts.embedding + counts.layer_linear), counts.total)
    width = weight_bytes(a, "bfloat16" if size == 2 else "float32", method.bnb) / counts.total
    bucket = _elements(zero, "reduce_bucket_size", _BUCKET) if zero.get("contiguous_gradients", True) else 0
    if not cuda:  # pages that nothing is written to are not resident
        bucket = min(bucket, trained)
    # What is fetched ahead comes as one message and is copied out of it.
    message = min(_elements(zero, "stage3_prefetch_bucket_size", _PREFETCH), counts.total)
    return unpacked + round((live + message) * width) + bucket * size


def _elements(zero: Mapping[str, Any], key: str, default: int) -> int:
    value = zero.get(key, default)
    return default if value == "auto" else int(float(value))


def _offloads(deepspeed: Mapping[str, Any] | None, key: str) -> bool:
    zero = (deepspeed or {}).get("zero_optimization", {})
    return (zero.get(key) or {}).get("device", "none") != "none"


def _lean_logits(a: Architecture, tokens: int, size: int) -> int:
    """Logits of one tile, of a few lines of it in float32 as well; each position's state and its gradient."""
    tile = a.vocab_size * (min(tokens, _LEAN_POSITIONS) * size + (_LEAN_LINES * _FP32 if size < _FP32 else 0))
    return tile + 2 * tokens * a.hidden_size * size


def _logits(a: Architecture, tokens: int, size: int, cuda: bool) -> int:
    """TRL's fused head never holds all logits: one tile, and float32 states and their gradient where labels are.

    Its kernel folds a tile in place; what stands in for it off CUDA makes seven float32 copies on the way back.
    """
    tile = min(tokens, _TILE_TOKENS) * min(a.vocab_size, _TILE_VOCABULARY)
    return tile * (_FP32 if cuda else size + 7 * _FP32) + 2 * tokens * a.hidden_size * _FP32
