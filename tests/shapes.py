"""Checkpoints of real size that take no room: true headers, holes for weights, real tokenizer files."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.shards import WIDTH, header_bytes
from finetune.verify.weights import expected_shapes

Entry = tuple[str, str, tuple[int, ...]]
QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 128, "vocab_size": 151_936,
    "attention_bias": False, "max_position_embeddings": 40_960, "rope_theta": 1_000_000, "rope_scaling": None,
    "bos_token_id": 151_643, "eos_token_id": 151_645, "sliding_window": None, "use_sliding_window": False,
    "max_window_layers": 64, "torch_dtype": "bfloat16", "transformers_version": "4.51.0",
}  # fmt: skip
QWEN3_32B = QWEN3 | {
    "hidden_size": 5120, "intermediate_size": 25_600, "num_hidden_layers": 64, "num_attention_heads": 64,
    "num_key_value_heads": 8, "tie_word_embeddings": False,
}  # fmt: skip
QWEN3_600M = QWEN3 | {
    "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
    "num_key_value_heads": 8, "tie_word_embeddings": True,
}  # fmt: skip
LLAMA3 = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128_256, "attention_bias": False,
    "mlp_bias": False, "max_position_embeddings": 131_072, "rope_theta": 500_000.0, "bos_token_id": 128_000,
    "eos_token_id": [128_001, 128_008, 128_009], "pretraining_tp": 1, "torch_dtype": "bfloat16",
    "rope_scaling": {
        "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
}  # fmt: skip
LLAMA3_8B = LLAMA3 | {
    "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "tie_word_embeddings": False,
}  # fmt: skip
LLAMA3_1B = LLAMA3 | {
    "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": True,
}  # fmt: skip
LLAMA_TEMPLATE = (
    "{{- bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] "
    "+ '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)


def make(
    folder: Path, config: Mapping[str, Any], tokenizer: Path | None = None, *, shards: int = 1,
    tensors: list[Entry] | None = None,
) -> Path:
    """A checkpoint of `config` in `folder`, with `tokenizer`'s text files or a few tokens in the manner of Llama 3.

    `tensors` in place of those expected.
    """
    folder.mkdir(parents=True)
    shapes = expected_shapes(config)
    assert shapes is not None
    entries = tensors if tensors is not None else [(name, "BF16", shape) for name, shape in shapes.items()]
    (folder / "config.json").write_text(json.dumps(config))
    if tokenizer is not None:
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
            shutil.copyfile(tokenizer / name, folder / name)
    else:
        _text(folder)
    if shards == 1:
        _write(folder / "model.safetensors", entries)
        return folder
    where = {}
    for number in range(shards):
        name = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = entries[number::shards]
        _write(folder / name, part)
        where |= dict.fromkeys((entry[0] for entry in part), name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


def bytes_of(entry: Entry) -> int:
    size = WIDTH[entry[1]]
    for length in entry[2]:
        size *= length
    return size


def _write(file: Path, entries: list[Entry]) -> None:
    header = header_bytes(entries)
    with file.open("wb") as handle:
        handle.write(header)
        handle.truncate(len(header) + sum(map(bytes_of, entries)))


def _text(folder: Path) -> None:
    special = {
        "<|begin_of_text|>": 128_000, "<|end_of_text|>": 128_001, "<|start_header_id|>": 128_006,
        "<|end_header_id|>": 128_007, "<|eom_id|>": 128_008, "<|eot_id|>": 128_009,
    }  # fmt: skip
    added = [{"id": number, "content": token, "special": True} for token, number in special.items()]
    (folder / "tokenizer.json").write_text(
        json.dumps({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}, "added_tokens": added})
    )
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>",
        "model_max_length": 131_072, "chat_template": LLAMA_TEMPLATE,
    }))  # fmt: skip
    (folder / "generation_config.json").write_text(json.dumps({
        "bos_token_id": 128_000, "do_sample": True, "eos_token_id": [128_001, 128_008, 128_009], "temperature": 0.6,
        "top_p": 0.9,
    }))  # fmt: skip
