"""Stage PROOF: the merged model answers as the adapter does.

All of it teacher-forced over the adapter's own answers. In float32 arithmetic, where nothing but the weights can
differ: adapter against the published weights (KL, top-1), and exactly equal greedy tokens before the published weights
were rounded. In the number format that is served: the adapter on the base it was trained on (4-bit where it was)
against the published checkpoint, and beside it the adapter against itself under another attention kernel, which is
what rounding alone does. On SmolLM2 in bfloat16 that floor is 1.9e-3 nats where the weights differ by 2.0e-4: a limit
of 1e-3 can only be held to float32. Weights are widened one matrix at a time, so float32 fits where serving fits.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune import parity
from finetune.adapter import Adapter
from finetune.artifacts import Artifact, Stage, write_whole
from finetune.asked import Asked
from finetune.base import device_of, give_back_memory, load_adapter, load_base, set_threads
from finetune.chat import ChatFormat
from finetune.config.machine import Machine
from finetune.config.model import Model
from finetune.config.section import Section
from finetune.config.training import Method
from finetune.errors import RecipeError
from finetune.exact import compute_in_float32, exactly_merged
from finetune.generate import generate

Say = Callable[[str], None]
FULL = 200
"""Prompts that a proof of a release asks; fewer are said to be few wherever the figures stand."""
_FLOAT32_PROMPTS, _FLOAT32_TOKENS = 3, 24


class Wanted(Section):
    """What PROOF reads of section `score`: other intervals must not compare anew."""

    parity_prompts: int
    batch_tokens: int


class Config(Section):
    """What changes what is measured."""

    model: Model
    method: Method
    score: Wanted


def run(
    config: Mapping[str, Any], *, out: Path, base: Artifact, prepared: Artifact, adapter: Artifact,
    checkpoint: Artifact, machine: Machine, say: Say = print,
) -> dict[str, Any]:
    """Write parity.json {kl_mean, kl_max, kl_max_at, top1, modes, arithmetic, served_kl_mean, bases, ...} and
    answers.jsonl {id, task, mode, prompt, answer} in token ids: what EXPORT holds quantised weights against."""
    settings = Config.model_validate(config)
    set_threads(machine)
    device = device_of(machine)
    asked = Asked.choose(prepared, base, settings.score.parity_prompts)
    _check_prompts(asked, checkpoint.file("model"))
    prompts, ids, batch_tokens, dtype = asked.prompts, asked.ids, settings.score.batch_tokens, settings.model.dtype
    modes = asked.modes if len(set(asked.modes)) > 1 else []

    say(f"proof: the adapter answers {len(prompts)} prompts")
    kept, served, exact = out / ".answers.jsonl", out / ".served_logits", out / ".float32_logits"
    model = load_adapter(load_base(base, settings.model, settings.method, device=device), adapter)
    answers = asked.answers(model, batch_tokens, kept)
    parity.store(model, prompts, answers, served)
    other = "eager" if settings.model.attn_implementation == "sdpa" else "sdpa"
    model.get_base_model().set_attn_implementation(other)
    rounding = parity.compare(model, prompts, answers, served, ids, dtype)

    say("proof: the same in float32 arithmetic")
    compute_in_float32(model)
    few = prompts[:_FLOAT32_PROMPTS]
    greedy = generate(
        model, few, max_new_tokens=_FLOAT32_TOKENS, stop_ids=asked.chat.stop_ids, pad_id=asked.chat.pad_id,
        batch_tokens=batch_tokens,
    )  # fmt: skip
    parity.store(model, prompts, answers, exact, batch_tokens=batch_tokens)
    plain = model.unload()
    compute_in_float32(plain, exactly_merged(base.path, Adapter.read(adapter.path)))
    same = [logits.argmax(-1).tolist() for logits in parity.logits_of(plain, few, greedy, batch_tokens)] == greedy
    del model, plain
    give_back_memory()

    say("proof: the merged model reads the same answers")
    merged = _load_merged(checkpoint, settings.model, device)
    found = parity.compare(merged, prompts, answers, served, ids, dtype)
    compute_in_float32(merged)
    full = parity.compare(merged, prompts, answers, exact, ids, "float32", modes=modes, batch_tokens=batch_tokens)
    for file in (served, exact, kept):
        file.unlink()
    full |= {f"served_{name}": found[name] for name in ("kl_mean", "kl_max", "kl_max_at", "top1")}
    full |= {"rounding_kl_mean": rounding["kl_mean"], "rounding_top1": rounding["top1"]}
    full |= {
        "dtype": dtype,
        "arithmetic": "float32",
        "greedy_equal_float32": same,
        "greedy_float32_prompts": len(few),
        "greedy_float32_tokens": sum(map(len, greedy)),
        "full_prompts": FULL,
        "quantised_base": bool(adapter.facts.get("four_bit")),
        "bases": json.loads(checkpoint.file("merge.json").read_text(encoding="utf-8")).get("bases"),
    }
    write_whole(out / "answers.jsonl", _lines(asked, answers))
    write_whole(out / "parity.json", json.dumps(full, indent=1, ensure_ascii=False) + "\n")
    shown = ("kl_mean", "kl_max", "top1", "n_prompts", "n_positions", "served_kl_mean", "rounding_kl_mean",
             "greedy_equal_float32")  # fmt: skip
    return {key: full[key] for key in shown}


def _check_prompts(asked: Asked, merged_dir: Path) -> None:
    served = ChatFormat.read(merged_dir)
    for row, prompt in zip(asked.rows, asked.prompts, strict=True):
        if served.prompt_ids(row.prompt, row.mode, row.tools) != prompt:
            raise RecipeError.one(
                str(merged_dir), row.id, "the checkpoint's template or tokenizer makes another prompt than in training",
                "restore tokenizer and template of the base (the MERGE stage writes them)",
            )  # fmt: skip


def _lines(asked: Asked, answers: Sequence[Sequence[int]]) -> str:
    entries = [
        {"id": row.id, "task": row.task, "mode": row.mode, "prompt": prompt, "answer": answer}
        for row, prompt, answer in zip(asked.rows, asked.prompts, answers, strict=True)
    ]
    return "".join(json.dumps(entry) + "\n" for entry in entries)


def _load_merged(checkpoint: Artifact, model: Model, device: Any) -> Any:
    """The published files and nothing else, as a server would see them."""
    whole = Artifact(checkpoint.file("model"), checkpoint.manifest)
    return load_base(whole, model.model_copy(update={"rope_parameters": None}), None, device=device)


STAGE = Stage("proof", 3, run)
