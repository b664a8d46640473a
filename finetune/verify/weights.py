"""Tensor names and shapes against what the config promises."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.findings import Finding, finding
from finetune.shards import Tensor
from finetune.verify import quantised

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


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
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (int(config["vocab_size"]), hidden)}
    for layer in range(int(config["num_hidden_layers"])):
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in block.items()}
    shapes["model.norm.weight"] = (hidden,)
    if not config.get("tie_word_embeddings"):
        shapes[HEAD] = shapes[EMBEDDING]
    return shapes


def check_names_and_shapes(
    directory: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], notes: list[str]
) -> Iterator[Finding]:
    """Missing, foreign and misshapen tensors: a server fills what is missing with whatever memory holds."""
    where, layers = str(directory / "config.json"), config.get("num_hidden_layers")
    if isinstance(layers, int) and layers > len(tensors):  # a stranger's number must not fill this machine's memory
        yield finding("missing-tensor", f"{where}: num_hidden_layers", layers,
                      f"there are {len(tensors)} tensors in all", "restore config.json of the base")  # fmt: skip
        return
    try:
        shapes = expected_shapes(config)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        yield finding("config-number", where, None, f"a number that the shapes follow from is not there ({error!r})",
                      "restore config.json of the base")  # fmt: skip
        return
    if shapes is None:
        notes.append(f"not checked: names and shapes of tensors (model_type {config.get('model_type')}: unknown here)")
        return
    present = {name: tensor for name, tensor in tensors.items() if not name.endswith("rotary_emb.inv_freq")}
    if isinstance(config.get("quantization_config"), dict):
        wrong, accounted = quantised.check(where, config["quantization_config"], shapes, present, notes)
        yield from wrong
        if accounted is None:
            return
        shapes = {name: shape for name, shape in shapes.items() if name not in accounted}
        present = {name: tensor for name, tensor in present.items() if name not in accounted}
    missing = [name for name in shapes if name not in present]
    foreign = [name for name in present if name not in shapes and name != HEAD]
    if HEAD in missing:
        missing.remove(HEAD)
        yield finding(
            "tie-flag", f"{where}: tie_word_embeddings", config.get("tie_word_embeddings"),
            "there is no lm_head.weight, and the config does not say that the head is tied to the embedding",
            "set tie_word_embeddings to true, or add the head's weights",
        )  # fmt: skip
    rows = present[EMBEDDING].shape[0] if EMBEDDING in present and present[EMBEDDING].shape else None
    if rows is not None and rows != shapes[EMBEDDING][0]:
        yield finding("vocabulary-rows", f"{where}: vocab_size", config["vocab_size"], f"the embedding has {rows} rows",
                      f"set vocab_size to {rows}")  # fmt: skip
    elif rows is not None and present[EMBEDDING].shape != shapes[EMBEDDING]:
        yield _misshapen(EMBEDDING, present[EMBEDDING].shape, shapes[EMBEDDING])
    if missing:
        yield finding("missing-tensor", _some(missing), None,
                      f"{len(missing)} tensors that the config promises are not in the files",
                      "save the model again, or restore config.json")  # fmt: skip
    if foreign:
        yield finding("foreign-tensor", _some(foreign), None,
                      f"{len(foreign)} tensors that this architecture does not know", _advice(foreign))  # fmt: skip
    for name in (name for name in shapes if name in present and name not in (EMBEDDING, HEAD)):
        if present[name].shape != shapes[name]:
            yield _misshapen(name, present[name].shape, shapes[name])
        elif not present[name].dtype.startswith(("F", "BF")):
            yield finding("tensor-type", name, present[name].dtype,
                          "weights are floats, unless the config says quantised",
                          "save the model again, or restore quantization_config")  # fmt: skip
    if HEAD in present and rows is not None and present[HEAD].shape != present[EMBEDDING].shape:
        yield finding("head-shape", HEAD, list(present[HEAD].shape), "head and embedding differ in shape",
                      "save the model again")  # fmt: skip


def check_layout(file: Path, tensors: Sequence[Tensor]) -> Iterator[Finding]:
    """Tensors of one file, in file order, must fill it: readers refuse holes, and overlaps hide bytes twice used."""
    if not tensors:
        return
    position = tensors[0].start
    for tensor in tensors:
        if tensor.start != position:
            yield finding("torn-weights", file, tensor.name, "a hole or an overlap before this tensor",
                          "save the model again")  # fmt: skip
            return
        position = tensor.end
    if position != file.stat().st_size:
        yield finding("torn-weights", file, None, f"{file.stat().st_size - position} bytes after the last tensor",
                      "copy the file again")  # fmt: skip


def _misshapen(name: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> Finding:
    return finding(
        "tensor-shape", name, list(shape), f"the config makes it {list(wanted)}",
        "restore the config (num_attention_heads, num_key_value_heads, head_dim, intermediate_size)",
    )  # fmt: skip


def _advice(names: list[str]) -> str:
    if any("lora_" in name or ".base_layer." in name or name.startswith("base_model.") for name in names):
        return "these are the names of an unmerged adapter: use `finetune merge`"
    return "save the model under its own names, without wrappers or heads of training"


def _some(names: list[str]) -> str:
    return ", ".join(sorted(names)[:3]) + (" ..." if len(names) > 3 else "")
