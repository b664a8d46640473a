"""Stages CPT and SFT: one adapter, trained on running text or on conversations, with TRL's SFTTrainer.

Rows come tokenised, with labels, from PREPARE; TRL's own templates and masks are switched off, so that what is
trained is exactly what a server will see. CPT is the same loop with every token
supervised; SFT goes on with its adapter.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.artifacts import Artifact, Stage
from finetune.base import device_of, find_start_of_adapter, load_base, set_threads
from finetune.config.machine import Machine
from finetune.config.model import Model
from finetune.config.section import Section
from finetune.config.training import Cpt, Method, Sft
from finetune.errors import RecipeError
from finetune.fourbit import RoundTrip
from finetune.order import filling, pack_room, place_rows, plan_order, plan_packs, steps_of

if TYPE_CHECKING:
    from finetune.sequence import Share

_FULL = 0.98
"""Packs that hold less are worth a word: reached where a pack has room for a dozen rows."""


class Config(Section):
    """What changes the result of SFT."""

    seed: int
    model: Model
    method: Method
    sft: Sft


class CptConfig(Section):
    """What changes the result of CPT."""

    seed: int
    model: Model
    method: Method
    cpt: Cpt


def run(
    config: Mapping[str, Any],
    *,
    out: Path,
    base: Artifact,
    prepared: Artifact,
    start: Artifact | None = None,
    machine: Machine,
    tracker: Any,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train on `sft_train.parquet`; `start` is the adapter of CPT, if there was one."""
    settings = Config.model_validate(config)
    return _train(
        "sft", settings.sft, settings, out=out, base=base, train=prepared.file("sft_train.parquet"),
        valid=prepared.file("sft_valid.parquet"), start=start, machine=machine, tracker=tracker, say=say,
    )


def run_cpt(
    config: Mapping[str, Any],
    *,
    out: Path,
    base: Artifact,
    prepared: Artifact,
    start: Artifact | None = None,
    machine: Machine,
    tracker: Any,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train on `text_train.parquet`, every token supervised."""
    settings = CptConfig.model_validate(config)
    return _train(
        "cpt", settings.cpt, settings, out=out, base=base, train=prepared.file("text_train.parquet"),
        valid=prepared.file("text_valid.parquet"), start=start, machine=machine, tracker=tracker, say=say,
    )


CPT_STAGE = Stage("cpt", 4, run_cpt)
SFT_STAGE = Stage("sft", 4, run)


def read_rows(path: Path) -> dict[str, list[Any]]:
    """Columns id, input_ids and labels of a prepared parquet file; rows without labels are supervised throughout."""
    import pyarrow.parquet as pq

    columns: dict[str, list[Any]] = pq.read_table(path).to_pydict()
    rows = {"id": columns["id"], "input_ids": columns["input_ids"]}
    rows["labels"] = columns.get("labels") or [list(ids) for ids in columns["input_ids"]]
    return rows


def _train(
    name: str,
    training: Cpt | Sft,
    settings: Config | CptConfig,
    *,
    out: Path,
    base: Artifact,
    train: Path,
    valid: Path,
    start: Artifact | None,
    machine: Machine,
    tracker: Any,
    say: Callable[[str], None],
) -> dict[str, Any]:
    began = time.monotonic()
    threads = set_threads(machine)
    rows, held_out = read_rows(train), read_rows(valid)
    lengths = [len(ids) for ids in rows["input_ids"]]
    _check(name, training, rows)

    from finetune import arguments, loop, sequence
    from finetune.resume import step_of

    plan = plan_batches(lengths, training, seed=settings.seed)
    steps = len(plan) // training.batch_size
    layout = arguments.layout_of(machine, training.batch_size, name)
    this = loop.Run(
        name=name, out=out, layout=layout, steps=steps, eval_steps=training.eval_steps, log_steps=training.log_steps,
        row_ids=rows["id"], tracker=tracker, say=say,
    )
    trl_config = arguments.build(
        "SFTConfig", this, training, machine, device_of(machine), seed=settings.seed, model=settings.model
    )
    if (done := loop.finished(out)) is not None:
        return {**done, "timings": {"load": 0.0, "train": 0.0}}
    trl_config.dataset_kwargs = {"skip_prepare_dataset": True}
    checkpoint = loop.find_start(this)
    if checkpoint is None or step_of(checkpoint) < steps:
        # Not device_of(): before the config has joined the ranks, every process takes the first GPU for its own.
        model = load_base(base, settings.model, settings.method, device=trl_config.device)
        adapted = find_start_of_adapter(model, settings.method, start, seed=settings.seed, machine=machine)
        this.facts = {
            "supervised_tokens": sum(
                sum(label != -100 for label in rows["labels"][row][1:]) for pack in plan for row in pack
            ),
            "rows": len(lengths),
            **_filled(lengths, training, plan, per_device=layout.per_device),
            "four_bit": trip.describe() if (trip := RoundTrip.seen(adapted)) else None,
            "threads": threads,
            "loss_is_sum": True,
            "metrics": ["mean_token_accuracy"],
        }
        if training.packing and this.facts["filling"] < _FULL:
            say(
                f"{name}: packs are {this.facts['filling']:.1%} full: rows of {sum(lengths) / len(lengths):.0f} tokens "
                f"on average in packs of {training.max_length}; a larger {name}.max_length fills better"
            )
        share = sequence.join(layout.sequence) if layout.sequence > 1 else None
        trainer = _trainer(
            adapted, trl_config, rows, plan, base=base, packing=training.packing, share=share,
            per_device=layout.per_device,
        )  # fmt: skip
        eval_batches = _batches(held_out, tokens=layout.per_device * training.max_length)
        loaded = time.monotonic()
        checkpoint = loop.train(trainer, this, checkpoint, eval_batches)
        timings = {"load": round(loaded - began, 2), "train": round(time.monotonic() - loaded, 2)}
        del trainer, adapted, model
        loop.give_back_memory()
    else:
        timings = {"load": 0.0, "train": 0.0}
    return {**loop.publish(this, checkpoint), "timings": timings}


def plan_batches(lengths: list[int], training: Cpt | Sft, *, seed: int) -> list[list[int]]:
    """Row numbers of every place of every step, batch_size places a step; without packing a place holds one row."""
    size, epochs, limit = training.batch_size, training.epochs, training.max_steps
    if not training.packing:
        steps = steps_of(len(lengths), batch_size=size, epochs=epochs, max_steps=limit)
        return [[row] for row in plan_order(lengths, batch_size=size, steps=steps, seed=seed)]
    room = pack_room(lengths, max_length=training.max_length)
    steps = steps_of(len(place_rows(lengths, room=room)), batch_size=size, epochs=epochs, max_steps=limit)
    return plan_packs(lengths, room=room, batch_size=size, steps=steps, seed=seed)


def _filled(lengths: list[int], training: Cpt | Sft, plan: list[list[int]], *, per_device: int) -> dict[str, Any]:
    """Share of the places of a batch that hold a token: rows padded to the longest of their batch, or all packs to the
    longest pack.
    """
    if not training.packing:
        return {"filling": round(filling(lengths, [row for (row,) in plan], batch_size=per_device), 4)}
    packs = place_rows(lengths, room=pack_room(lengths, max_length=training.max_length))
    longest = max(sum(lengths[row] for row in pack) for pack in packs)
    full = sum(lengths) / (len(packs) * longest)
    return {"filling": round(full, 4), "packs": len(packs), "pack_length": longest}


def _check(name: str, training: Cpt | Sft, rows: dict[str, list[Any]]) -> None:
    if not rows["id"]:
        raise RecipeError.one(
            f"stages.{name}", None, "PREPARE left no row to train on",
            "see rejects.jsonl and ledger.json for the reasons",
        )
    for record, ids, labels in zip(rows["id"], rows["input_ids"], rows["labels"], strict=True):
        assert len(ids) == len(labels), f"{record}: ids and labels differ in length"
        assert len(ids) <= training.max_length, f"{record}: PREPARE let a row of {len(ids)} tokens through"
        assert any(label != -100 for label in labels[1:]), f"{record}: no supervised token"
        assert all(label in (-100, token) for token, label in zip(ids, labels, strict=True)), f"{record}: foreign label"


class Collator:
    """TRL's collator, plus the row numbers by which a broken batch is named. Pads on the right, or with `packing`
    makes one flat row: `position_ids` start again with every document, and there is no attention mask. With `share`
    the batch is this rank's slice of it.
    """

    def __init__(self, pad_id: int, *, packing: bool = False, share: "Share | None" = None) -> None:
        from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

        self._join = DataCollatorForLanguageModeling(
            pad_token_id=pad_id, padding_free=packing, pad_to_multiple_of=share.parts if share else None
        )
        self._share = share

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        import torch

        wanted = ("input_ids", "labels", "seq_lengths")
        batch: dict[str, Any] = self._join([{name: example[name] for name in wanted} for example in examples])
        batch["row"] = torch.tensor([row for example in examples for row in example["row"]])
        return self._share.of(batch) if self._share else batch


def _trainer(
    adapted: Any, trl_config: Any, rows: dict[str, list[Any]], plan: list[list[int]], *, base: Artifact, packing: bool,
    share: "Share | None", per_device: int,
) -> Any:
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTTrainer

    from finetune import arguments, guard, sequence

    tokenizer = AutoTokenizer.from_pretrained(base.path, local_files_only=True)
    data = Dataset.from_list([join_rows(rows, pack) for pack in plan])
    if share is not None:
        data = data.select(sequence.places(len(plan), per_device=per_device, parts=share.parts))
    kind = type("GuardedSFTTrainer", (guard.Guarded, SFTTrainer), {})
    trainer = kind(
        model=adapted, args=trl_config, train_dataset=data, processing_class=tokenizer,
        data_collator=Collator(tokenizer.pad_token_id, packing=packing, share=share),
    )
    outputs = ("log_probs", "entropy", "is_top1")
    arguments.settle(trainer, outputs=outputs, pairs=False, packing=packing, share=share)
    return trainer


def join_rows(rows: dict[str, list[Any]], pack: list[int]) -> dict[str, Any]:
    """One place of a batch as the collator takes it: the rows of `pack` one after another, with their lengths."""
    return {
        "input_ids": [token for row in pack for token in rows["input_ids"][row]],
        "labels": [label for row in pack for label in rows["labels"][row]],
        "seq_lengths": [len(rows["input_ids"][row]) for row in pack],
        "row": pack,
    }


def _batches(rows: dict[str, list[Any]], *, tokens: int) -> list[list[dict[str, Any]]]:
    """Evaluation batches of like lengths, none of more than `tokens` places, padding included: what training holds."""
    batches: list[list[dict[str, Any]]] = []
    for row in sorted(range(len(rows["id"])), key=lambda row: (len(rows["input_ids"][row]), row)):
        length = len(rows["input_ids"][row])
        if not batches or (len(batches[-1]) + 1) * length > tokens:
            batches.append([])
        batches[-1].append(join_rows(rows, [row]))
    return batches
