"""Stage PROOF: the merged model answers as the adapter does.

All of it teacher-forced over the adapter's own answers. In float32 arithmetic, where nothing but the weights can
differ: adapter against the published weights (KL, top-1), and exactly equal greedy tokens before the published weights
were rounded. In the number format that is served: the adapter on the base it was trained on (4-bit where it was)
against the published checkpoint, and beside it the adapter against itself under another attention kernel, which is
what rounding alone does. On SmolLM2 in bfloat16 that floor is 1.9e-3 nats where the weights differ by 2.0e-4: a limit
of 1e-3 can only be held to float32. Where float32 does not fit, the served figures stand in its place and
`arithmetic` says so.
"""

import gc
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from finetune import parity
from finetune.adapter import Adapter
from finetune.artifacts import Artifact, Stage, clear, write_whole
from finetune.base import device_of, load_adapter, load_base, set_threads
from finetune.chat import ChatFormat
from finetune.config.machine import Machine
from finetune.config.model import Model
from finetune.config.section import Section
from finetune.config.training import Method
from finetune.corpus.records import Chat
from finetune.errors import RecipeError
from finetune.fourbit import RoundTrip
from finetune.generate import generate
from finetune.shards import read_header, shard_names

Say = Callable[[str], None]
_LONGEST_ANSWER = 64
"""Positions compared in one answer: logits over the whole vocabulary are kept for each."""
_FLOAT32_PROMPTS, _FLOAT32_TOKENS = 3, 24


class Asked(Section):
    """What PROOF reads of section `score`: other intervals must not compare anew."""

    parity_prompts: int
    batch_tokens: int


class Config(Section):
    """What changes what is measured."""

    model: Model
    method: Method
    score: Asked


def run(
    config: Mapping[str, Any], *, out: Path, base: Artifact, prepared: Artifact, adapter: Artifact,
    checkpoint: Artifact, machine: Machine, say: Say = print,
) -> dict[str, Any]:
    """Write parity.json: {kl_mean, kl_max, top1, arithmetic, served_kl_mean, rounding_kl_mean, ...}."""
    settings = Config.model_validate(config)
    clear(out)
    set_threads(machine)
    device = device_of(machine)
    merged_dir = checkpoint.file("model")
    chat, served = ChatFormat.read(base.path), ChatFormat.read(merged_dir)
    rows = choose_rows(prepared.file("test.jsonl"), settings.score.parity_prompts)
    if not rows:
        raise RecipeError.one(
            "tasks", None, "there is no test row to hold adapter and merged model against", "keep some rows for test"
        )
    prompts = [chat.prompt_ids(row.prompt, row.mode, row.tools) for row in rows]
    for row, prompt in zip(rows, prompts, strict=True):
        if served.prompt_ids(row.prompt, row.mode, row.tools) != prompt:
            raise RecipeError.one(
                str(merged_dir), row.id, "the checkpoint's template or tokenizer makes another prompt than in training",
                "restore tokenizer and template of the base (the MERGE stage writes them)",
            )  # fmt: skip

    say(f"proof: the adapter answers {len(prompts)} prompts")
    model = load_adapter(load_base(base, settings.model, settings.method, device=device), adapter)
    answers = generate(
        model, prompts, max_new_tokens=_LONGEST_ANSWER, stop_ids=chat.stop_ids, pad_id=chat.pad_id,
        batch_tokens=settings.score.batch_tokens,
    )  # fmt: skip
    ids = [row.id for row in rows]
    scratch = out / ".adapter_logits"
    parity.store(model, prompts, answers, scratch)
    other = "eager" if settings.model.attn_implementation == "sdpa" else "sdpa"
    model.get_base_model().set_attn_implementation(other)
    rounding = parity.compare(model, prompts, answers, scratch, ids, settings.model.dtype)
    del model
    gc.collect()

    say("proof: the merged model reads the same answers")
    merged = _load_merged(checkpoint, settings.model, device)
    found = parity.compare(merged, prompts, answers, scratch, ids, settings.model.dtype)
    del merged
    gc.collect()
    found |= {f"served_{name}": found[name] for name in ("kl_mean", "kl_max", "top1")}
    found |= {"rounding_kl_mean": rounding["kl_mean"], "rounding_top1": rounding["top1"]}
    found |= {"dtype": settings.model.dtype, "arithmetic": settings.model.dtype}
    found |= {"quantised_base": bool(adapter.facts.get("four_bit"))}

    say("proof: the same in float32 arithmetic")
    found |= _in_float32(settings, base, adapter, checkpoint, prompts, answers, ids, scratch, chat, device)
    scratch.unlink()
    write_whole(out / "parity.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    shown = ("kl_mean", "kl_max", "top1", "n_positions", "served_kl_mean", "rounding_kl_mean", "greedy_equal_float32")
    return {key: found[key] for key in shown}


def choose_rows(file: Path, count: int) -> list[Chat]:
    """The first rows of every task in turn, so that no task is left out."""
    tasks: dict[str, list[Chat]] = {}
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            row = Chat.from_json(line)
            tasks.setdefault(row.task, []).append(row)
    dealt = [row for turn in zip_longest(*tasks.values()) for row in turn if row is not None]
    return dealt[:count]


def _in_float32(
    settings: Config, base: Artifact, adapter: Artifact, checkpoint: Artifact, prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]], ids: Sequence[str], scratch: Path, chat: ChatFormat, device: Any,
) -> dict[str, Any]:
    """Greedy tokens of adapter and exact merge, then logits of adapter and published weights; {..: None} if too big."""
    import torch

    tensors = [tensor for name in shard_names(base.path) for tensor in read_header(base.path / name).values()]
    needed = sum(4 * tensor.bytes // (4 if tensor.dtype == "F32" else 2) for tensor in tensors)
    room = _free_bytes(device)
    if needed * 1.5 > room:
        why = f"float32 weights take {needed / 1e9:.1f} GB, {room / 1e9:.1f} GB are free"
        return {"greedy_equal_float32": None, "greedy_float32_not_measured": why}
    ask: dict[str, Any] = {
        "max_new_tokens": _FLOAT32_TOKENS, "stop_ids": chat.stop_ids, "pad_id": chat.pad_id,
        "batch_tokens": settings.score.batch_tokens,
    }  # fmt: skip
    plain = load_base(base, settings.model, None, device=device, dtype=torch.float32)
    trip = RoundTrip.of(adapter.facts)
    for module in sorted(trip.modules) if trip else ():
        weight = plain.get_submodule(module).weight
        weight.data = trip.apply(weight.data) if trip else weight.data
    adapted = load_adapter(plain, adapter)
    few = prompts[:_FLOAT32_PROMPTS]
    before = generate(adapted, few, **ask)
    parity.store(adapted, prompts, answers, scratch)
    plain = adapted.unload()
    own = Adapter.read(adapter.path)
    targets = own.plan({tensor.name: tensor for tensor in tensors})
    with torch.no_grad():
        for target, update in targets.items():
            weight = plain.get_parameter(target)
            weight.copy_(own.apply(update, weight.cpu(), 0, weight.shape[0]))
    after = generate(plain, few, **ask)
    _copy_published(plain, checkpoint.file("model"))
    return parity.compare(plain, prompts, answers, scratch, ids, "float32") | {
        "arithmetic": "float32",
        "greedy_equal_float32": before == after,
        "greedy_float32_prompts": len(few),
        "greedy_float32_tokens": sum(map(len, before)),
    }


def _copy_published(model: Any, directory: Path) -> None:
    """Overwrite every weight by the published one."""
    import torch
    from safetensors import safe_open

    weights = dict(model.named_parameters())
    with torch.no_grad():
        for shard in shard_names(directory):
            with safe_open(directory / shard, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
                    weights.pop(name).copy_(file.get_tensor(name))
    assert not weights, f"published without {sorted(weights)[:3]}"


def _load_merged(checkpoint: Artifact, model: Model, device: Any) -> Any:
    """The published files and nothing else, as a server would see them."""
    whole = Artifact(checkpoint.file("model"), checkpoint.manifest)
    return load_base(whole, model.model_copy(update={"rope_parameters": None}), None, device=device)


def _free_bytes(device: Any) -> int:
    if device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)


STAGE = Stage("proof", 2, run)
