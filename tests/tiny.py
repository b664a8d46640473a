"""A model, a corpus and preferences so small that a training step takes milliseconds. Random: it learns nothing."""

import gc
import json
import random
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune.artifacts import Artifact

MODEL = {
    "name": "tiny/random", "key": "tiny", "licence": "none", "dtype": "float32", "attn_implementation": "eager",
    "architecture": {
        "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 128,
        "tie_word_embeddings": True, "max_position_embeddings": 256,
    },
}
METHOD = {"name": "lora", "lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "target_modules": "all-linear"}}
QLORA = {
    **METHOD, "name": "qlora",
    "bnb": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
}
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_base(directory: Path) -> Artifact:
    """A random Llama of two layers with a character tokenizer of 128 entries and a ChatML template."""
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    directory.mkdir(parents=True, exist_ok=True)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unk>"]
    letters = [chr(code) for code in range(32, 127)] + ["\n"]
    tokens = Tokenizer(models.WordLevel({token: i for i, token in enumerate(special + letters)}, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokens.decoder = decoders.Fuse()
    tokens.add_special_tokens(special)
    PreTrainedTokenizerFast(
        tokenizer_object=tokens, eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token="<unk>",
        chat_template=TEMPLATE,
    ).save_pretrained(directory)
    torch.manual_seed(0)
    shape = {**MODEL["architecture"]}
    del shape["model_type"]
    config = LlamaConfig(**shape, eos_token_id=2, pad_token_id=0, bos_token_id=None)
    LlamaForCausalLM(config).save_pretrained(directory)
    return Artifact(directory, {"stage": "base", "digest": "tiny", "facts": {"name": MODEL["name"]}})


def make_prepared(directory: Path, *, rows: int = 40, seed: int = 0) -> Artifact:
    """Rows of random letters: a prompt without labels, an answer with labels, end of turn included."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    directory.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)

    def one(number: int) -> dict[str, Any]:
        prompt = [1] + [draw.randrange(4, 99) for _ in range(draw.randrange(6, 20))]
        answer = [draw.randrange(4, 99) for _ in range(draw.randrange(2, 8))] + [2]
        return {
            "id": f"row-{number}", "task": "t", "input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer,
            "mode": "plain",
        }

    for name, count in (("train", rows), ("valid", 6)):
        made = [one(number) for number in range(count)]
        pq.write_table(pa.Table.from_pylist(made), directory / f"sft_{name}.parquet")
        texts = [{"id": row["id"], "input_ids": row["input_ids"]} for row in made]
        pq.write_table(pa.Table.from_pylist(texts), directory / f"text_{name}.parquet")
    return Artifact(directory, {"stage": "prepare", "digest": f"prepared-{rows}-{seed}", "facts": {}})


def make_preferences(directory: Path, *, pairs: int = 24, seed: int = 0) -> Artifact:
    directory.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)

    def words(low: int, high: int) -> str:
        return "".join(chr(draw.randrange(97, 123)) for _ in range(draw.randrange(low, high)))

    lines = [
        {
            "id": f"pair-{number}", "task": "t", "messages": [{"role": "user", "content": words(5, 25)}],
            "chosen": {"role": "assistant", "content": words(2, 9)},
            "rejected": {"role": "assistant", "content": words(2, 9)},
            "origin": "corrupted", "group": f"pair-{number}", "held_out": number % 6 == 5, "score_chosen": 1.0,
            "score_rejected": 0.0,
        }
        for number in range(pairs)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (directory / "preferences.jsonl").write_text(text, encoding="utf-8")
    return Artifact(directory, {"stage": "pairs", "digest": f"pairs-{pairs}-{seed}", "facts": {}})


class Silent:
    """Stands where a Tracker stands and keeps what it was told."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any], int]] = []

    def log(self, prefix: str, metrics: dict[str, Any], step: int) -> None:
        self.lines.append((prefix, dict(metrics), step))


def machine(**changes: Any) -> Any:
    from finetune.config.machine import Machine

    return Machine(**{"name": "test", "device": "cpu", "threads": 1, **changes})


def sft_config(**changes: Any) -> dict[str, Any]:
    sft = {
        "batch_size": 4, "max_length": 64, "max_steps": 8, "save_steps": 3, "eval_steps": 4, "log_steps": 2,
        "trl": {"learning_rate": 1e-2},
    }
    whole = {"seed": 0, "model": MODEL, "method": METHOD, "sft": sft}
    for key, value in changes.items():
        if key in whole:
            whole[key] = value
        else:
            whole["sft"] = {**sft, **whole["sft"], key: value}
    return whole


def models_left(stage: Any, train: Callable[[], object], patch: Any) -> list[Any]:
    """Models that `train` loaded through the module `stage` and that live on although no collector came by."""
    loaded: list[weakref.ref[Any]] = []
    load_base = stage.load_base

    def load(*args: Any, **keys: Any) -> Any:
        model = load_base(*args, **keys)
        loaded.append(weakref.ref(model))
        return model

    patch.setattr(stage, "load_base", load)
    gc.disable()
    try:
        train()
    finally:
        gc.enable()
    assert loaded, "nothing was loaded: the answer would say nothing"
    return [model() for model in loaded if model() is not None]
