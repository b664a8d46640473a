"""Stages CPT and SFT: one adapter, trained on running text or on conversations, with TRL's SFTTrainer.

Rows come tokenised, with labels, from PREPARE; TRL's own templates and masks are switched off, so that what is
trained is exactly what a server will see. CPT is the same loop with every token
supervised; SFT goes on with its adapter.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from finetune.artifacts import Artifact, Stage
from finetune.base import device_of, find_start_of_adapter, load_base, quantised_modules, set_threads
from finetune.config.machine import Machine
from finetune.config.model import Model
from finetune.config.section import Section
from finetune.config.training import Cpt, Method, Sft, Training
from finetune.errors import RecipeError
from finetune.order import filling, plan_order, steps_of


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


CPT_STAGE = Stage("cpt", 1, run_cpt)
SFT_STAGE = Stage("sft", 1, run)


def read_rows(path: Path) -> dict[str, list[Any]]:
    """Columns id, input_ids and labels of a prepared parquet file; rows without labels are supervised throughout."""
    import pyarrow.parquet as pq

    columns: dict[str, list[Any]] = pq.read_table(path).to_pydict()
    rows = {"id": columns["id"], "input_ids": columns["input_ids"]}
    rows["labels"] = columns.get("labels") or [list(ids) for ids in columns["input_ids"]]
    return rows


def _train(
    name: str,
    training: Training,
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

    from finetune import arguments, loop
    from finetune.resume import step_of

    epochs = training.epochs
    steps = steps_of(len(lengths), batch_size=training.batch_size, epochs=epochs, max_steps=training.max_steps)
    order = plan_order(lengths, batch_size=training.batch_size, steps=steps, seed=settings.seed)
    device = device_of(machine)
    layout = arguments.layout_of(machine, training.batch_size, name)
    this = loop.Run(
        name=name, out=out, layout=layout, steps=steps, eval_steps=training.eval_steps, log_steps=training.log_steps,
        row_ids=rows["id"], tracker=tracker, say=say,
    )
    trl_config = arguments.build(
        "SFTConfig", this, training, machine, device, seed=settings.seed, model=settings.model
    )
    if (done := loop.finished(out)) is not None:
        return {**done, "timings": {"load": 0.0, "train": 0.0}}
    trl_config.dataset_kwargs = {"skip_prepare_dataset": True}
    checkpoint = loop.find_start(this)
    if checkpoint is None or step_of(checkpoint) < steps:
        model = load_base(base, settings.model, settings.method, device=device)
        adapted = find_start_of_adapter(model, settings.method, start, seed=settings.seed, machine=machine)
        this.facts = {
            "supervised_tokens": sum(sum(label != -100 for label in rows["labels"][row][1:]) for row in order),
            "rows": len(lengths),
            "filling": round(filling(lengths, order, batch_size=layout.per_device), 4),
            "quantised_modules": quantised_modules(adapted),
            "threads": threads,
            "loss_is_sum": True,
            "metrics": ["mean_token_accuracy"],
        }
        trainer = _trainer(adapted, trl_config, rows, order, base=base)
        eval_batches = _batches(held_out, size=max(8, layout.per_device))
        loaded = time.monotonic()
        checkpoint = loop.train(trainer, this, checkpoint, eval_batches)
        timings = {"load": round(loaded - began, 2), "train": round(time.monotonic() - loaded, 2)}
        del trainer, adapted, model
        loop.give_back_memory()
    else:
        timings = {"load": 0.0, "train": 0.0}
    return {**loop.publish(this, checkpoint), "timings": timings}


def _check(name: str, training: Training, rows: dict[str, list[Any]]) -> None:
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
    """TRL's collator, plus the row numbers by which a broken batch is named. Pads on the right."""

    def __init__(self, pad_id: int) -> None:
        from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

        self._pad = DataCollatorForLanguageModeling(pad_token_id=pad_id)

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        import torch

        batch: dict[str, Any] = self._pad(
            [{"input_ids": example["input_ids"], "labels": example["labels"]} for example in examples]
        )
        batch["row"] = torch.tensor([example["row"] for example in examples])
        return batch


def _trainer(adapted: Any, trl_config: Any, rows: dict[str, list[Any]], order: list[int], *, base: Artifact) -> Any:
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTTrainer

    from finetune import arguments, guard

    tokenizer = AutoTokenizer.from_pretrained(base.path, local_files_only=True)
    data = Dataset.from_dict(
        {
            "input_ids": [rows["input_ids"][row] for row in order],
            "labels": [rows["labels"][row] for row in order],
            "row": order,
        }
    )
    kind = type("GuardedSFTTrainer", (guard.Guarded, SFTTrainer), {})
    trainer = kind(
        model=adapted, args=trl_config, train_dataset=data, processing_class=tokenizer,
        data_collator=Collator(tokenizer.pad_token_id),
    )
    arguments.settle(trainer, outputs=("log_probs", "entropy", "is_top1"), pairs=False)
    return trainer


def _batches(rows: dict[str, list[Any]], *, size: int) -> list[list[dict[str, Any]]]:
    order = sorted(range(len(rows["id"])), key=lambda row: (len(rows["input_ids"][row]), row))
    examples = [
        {"input_ids": rows["input_ids"][row], "labels": rows["labels"][row], "row": row} for row in order
    ]
    return [examples[i : i + size] for i in range(0, len(examples), size)]
