"""Tensor names, shapes and values against what the config promises."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from finetune.errors import Problem
from finetune.shards import Tensor

_CHUNK = 32 << 20
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_FLOATS = ("F32", "BF16", "F16")


def expected_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]] | None:
    """Name -> shape of every tensor of a Qwen3 or Llama decoder with this config; None for other model types.

    Raises KeyError or TypeError when the config lacks a number it takes.
    """
    if config.get("model_type") not in ("qwen3", "llama"):
        return None
    hidden, inner = int(config["hidden_size"]), int(config["intermediate_size"])
    heads = int(config["num_attention_heads"])
    kv_heads = int(config.get("num_key_value_heads") or heads)
    # Qwen3's own default is 128, whatever the other sizes are; Llama's is derived.
    default = 128 if config["model_type"] == "qwen3" else hidden // heads
    width = int(config["head_dim"]) if config.get("head_dim") is not None else default
    block: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj.weight": (heads * width, hidden),
        "self_attn.k_proj.weight": (kv_heads * width, hidden),
        "self_attn.v_proj.weight": (kv_heads * width, hidden),
        "self_attn.o_proj.weight": (hidden, heads * width),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }
    if config["model_type"] == "qwen3":
        block |= {"self_attn.q_norm.weight": (width,), "self_attn.k_norm.weight": (width,)}
    if config.get("attention_bias"):
        block |= {f"self_attn.{part}_proj.bias": block[f"self_attn.{part}_proj.weight"][:1] for part in "qkvo"}
    if config.get("mlp_bias"):
        block |= {f"mlp.{part}_proj.bias": block[f"mlp.{part}_proj.weight"][:1] for part in ("gate", "up", "down")}
    shapes: dict[str, tuple[int, ...]] = {_EMBEDDING: (int(config["vocab_size"]), hidden)}
    for layer in range(int(config["num_hidden_layers"])):
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in block.items()}
    shapes["model.norm.weight"] = (hidden,)
    if not config.get("tie_word_embeddings"):
        shapes[_HEAD] = shapes[_EMBEDDING]
    return shapes


def check_names_and_shapes(
    directory: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], *, quantised: bool
) -> Iterator[Problem]:
    """Missing, foreign and misshapen tensors: a server fills what is missing with whatever memory holds."""
    where = str(directory / "config.json")
    try:
        shapes = expected_shapes(config)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        yield Problem(where, None, f"the config lacks a number that the shapes follow from ({error!r})",
                      "restore config.json of the base")  # fmt: skip
        return
    if shapes is None:
        return
    if quantised:
        packed = [name for name in tensors if name.endswith((".weight_packed", ".weight_scale", ".qweight"))]
        if not packed:
            yield Problem(
                f"{where}: quantization_config", config["quantization_config"].get("quant_method"),
                "the config says quantised, the weights are not", "remove quantization_config",
            )  # fmt: skip
            return
        shapes = {name: shape for name, shape in shapes.items() if f"{name}_packed" in tensors or name in tensors}
        tensors = {name: tensor for name, tensor in tensors.items() if name in shapes and tensor.dtype in _FLOATS}
        shapes = {name: shape for name, shape in shapes.items() if name in tensors}
    present = {name: tensor for name, tensor in tensors.items() if not name.endswith("rotary_emb.inv_freq")}
    allowed = set(shapes) | {_HEAD}
    missing = [name for name in shapes if name not in present]
    foreign = [name for name in present if name not in allowed]
    if _HEAD in missing:
        missing.remove(_HEAD)
        yield Problem(
            f"{where}: tie_word_embeddings", config.get("tie_word_embeddings"),
            "there is no lm_head.weight, and the config does not say that the head is tied to the embedding",
            "set tie_word_embeddings to true, or add the head's weights",
        )  # fmt: skip
    rows = tensors[_EMBEDDING].shape[0] if _EMBEDDING in tensors else None
    if rows is not None and rows != shapes[_EMBEDDING][0]:
        yield Problem(f"{where}: vocab_size", config["vocab_size"], f"the embedding has {rows} rows",
                      f"set vocab_size to {rows}")  # fmt: skip
    if missing:
        yield Problem(_some(missing), None, f"{len(missing)} tensors that the config promises are not in the files",
                      "save the model again, or restore config.json")  # fmt: skip
    if foreign:
        yield Problem(_some(foreign), None, f"{len(foreign)} tensors that this architecture does not know",
                      _advice(foreign))  # fmt: skip
    for name in (name for name in shapes if name in present and name not in (_EMBEDDING, _HEAD)):
        if present[name].shape != shapes[name]:
            yield Problem(
                name, list(present[name].shape), f"the config makes it {list(shapes[name])}",
                "restore the config (num_attention_heads, num_key_value_heads, head_dim, intermediate_size)",
            )  # fmt: skip
    if _HEAD in present and rows is not None and present[_HEAD].shape != tensors[_EMBEDDING].shape:
        yield Problem(_HEAD, list(present[_HEAD].shape), "head and embedding differ in shape", "save the model again")


def check_values(config: Mapping[str, Any], tensors: Mapping[str, Tensor], say: Callable[[str], None]) -> list[Problem]:
    """NaN or infinity anywhere, and a tied head that is not the embedding. Reads every byte once."""
    problems, done, said = [], 0, 0
    total = sum(tensor.bytes for tensor in tensors.values())
    for name, tensor in tensors.items():
        if tensor.dtype in _FLOATS and not all(_finite(tensor.dtype, chunk) for chunk in _chunks(tensor)):
            problems.append(Problem(name, tensor.file.name, "holds NaN or infinity", "merge again from good weights"))
        done += tensor.bytes
        if (done - said) * 10 >= total:
            said = done
            say(f"verify: {done / 1e9:.2f} of {total / 1e9:.2f} GB read")
    if config.get("tie_word_embeddings") and _HEAD in tensors and _EMBEDDING in tensors:
        pairs = zip(_chunks(tensors[_HEAD]), _chunks(tensors[_EMBEDDING]), strict=False)
        if any(ours != theirs for ours, theirs in pairs):
            problems.append(Problem(
                "tie_word_embeddings", True, "the head differs from the embedding it is said to be tied to, and "
                "readers disagree which of them counts", "set tie_word_embeddings to false",
            ))  # fmt: skip
    return problems


def _chunks(tensor: Tensor) -> Iterator[bytes]:
    with tensor.file.open("rb") as handle:
        handle.seek(tensor.start)
        left = tensor.bytes
        while left:
            chunk = handle.read(min(_CHUNK, left))
            assert chunk, f"{tensor.file} became shorter while it was read"
            left -= len(chunk)
            yield chunk


def _finite(dtype: str, chunk: bytes) -> bool:
    """A float whose exponent bits are all ones is NaN or infinite."""
    import numpy as np

    kind, mask = {"F32": ("<u4", 0x7F800000), "BF16": ("<u2", 0x7F80), "F16": ("<u2", 0x7C00)}[dtype]
    bits = np.frombuffer(chunk, dtype=kind)
    return not bool(((bits & np.array(mask, dtype=kind)) == mask).any())


def _advice(names: list[str]) -> str:
    if any("lora_" in name or ".base_layer." in name or name.startswith("base_model.") for name in names):
        return "these are the names of an unmerged adapter: use `finetune merge`"
    return "save the model under its own names, without wrappers or heads of training"


def _some(names: list[str]) -> str:
    return ", ".join(sorted(names)[:3]) + (" ..." if len(names) > 3 else "")
