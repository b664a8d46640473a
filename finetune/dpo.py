"""Stage DPO: prefer the better answer, measured from where SFT ended, with TRL's DPOTrainer and any of its losses.

The reference is the frozen adapter that training starts from, never the bare base. Prompts are the ones a server
renders; answers end with the end of turn.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from finetune.artifacts import Artifact, Stage
from finetune.base import device_of, load_adapter, load_base, quantised_modules, set_threads
from finetune.chat import ChatFormat
from finetune.config.machine import Machine
from finetune.config.model import Model
from finetune.config.section import Section
from finetune.config.training import Dpo, Method
from finetune.corpus.records import Preference
from finetune.errors import RecipeError
from finetune.order import plan_order, steps_of

_METRICS = (
    "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected",
)


class Config(Section):
    """What changes the result of DPO."""

    seed: int
    model: Model
    method: Method
    dpo: Dpo


def run(
    config: Mapping[str, Any],
    *,
    out: Path,
    base: Artifact,
    prepared: Artifact,
    preferences: Artifact,
    adapter: Artifact,
    machine: Machine,
    tracker: Any,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train `adapter` further on `preferences.jsonl`; facts count what was left out and why."""
    settings = Config.model_validate(config)
    training = settings.dpo
    began = time.monotonic()
    threads = set_threads(machine)
    rows, dropped, origins = read_pairs(
        preferences.file("preferences.jsonl"), ChatFormat.read(base.path), max_length=training.max_length
    )
    if not rows:
        raise RecipeError.one(
            "stages", "dpo", f"no preference pair is left to train on ({dict(dropped) or 'there was none'})",
            "give dpo.pairs or a source of ready-made preferences, or take dpo out of stages",
        )

    from finetune import arguments, loop
    from finetune.resume import step_of

    timings = {"load": 0.0, "train": 0.0}
    epochs = training.epochs
    steps = steps_of(len(rows), batch_size=training.batch_size, epochs=epochs, max_steps=training.max_steps)
    lengths = [len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows]
    order = plan_order(lengths, batch_size=training.batch_size, steps=steps, seed=settings.seed)
    device = device_of(machine)
    layout = arguments.layout_of(machine, training.batch_size, "dpo")
    this = loop.Run(
        name="dpo", out=out, layout=layout, steps=steps, eval_steps=training.eval_steps, log_steps=training.log_steps,
        row_ids=[row["id"] for row in rows], tracker=tracker, say=say,
    )
    trl_config = arguments.build(
        "DPOConfig", this, training, machine, device, seed=settings.seed, model=settings.model
    )
    if (done := loop.finished(out)) is not None:
        return {**done, "timings": timings}
    checkpoint = loop.find_start(this)
    if checkpoint is None or step_of(checkpoint) < steps:
        model = load_base(base, settings.model, settings.method, device=device)
        in_float32 = machine.layout != "zero3" or settings.method.bnb is not None
        adapted = load_adapter(model, adapter, trainable=True, in_float32=in_float32)
        this.facts = {
            "pairs": len(rows),
            "origins": dict(sorted(origins.items())),
            "dropped": dict(sorted(dropped.items())),
            "supervised_tokens": sum(len(rows[row]["chosen_ids"]) + len(rows[row]["rejected_ids"]) for row in order),
            "quantised_modules": quantised_modules(adapted),
            "threads": threads,
            "loss_is_sum": False,
            "metrics": list(_METRICS),
        }
        trainer = _trainer(adapted, trl_config, [{**rows[row], "row": row} for row in order], base=base)
        loaded = time.monotonic()
        checkpoint = loop.train(trainer, this, checkpoint, eval_batches=[])
        timings = {"load": round(loaded - began, 2), "train": round(time.monotonic() - loaded, 2)}
        del trainer, adapted, model
        loop.give_back_memory()
    return {**loop.publish(this, checkpoint), "timings": timings}


STAGE = Stage("dpo", 1, run)


def read_pairs(
    path: Path, chat: ChatFormat, *, max_length: int
) -> tuple[list[dict[str, Any]], Counter[str], Counter[str]]:
    """Tokenised pairs, what was left out by reason, and how many of each origin stay.

    `prompt_ids` are the served prompt, `chosen_ids` and `rejected_ids` what the model would have to emit, end of turn
    included.
    """
    rows: list[dict[str, Any]] = []
    dropped: Counter[str] = Counter()
    origins: Counter[str] = Counter()
    for line in path.read_text(encoding="utf-8").splitlines():
        pair = Preference.from_json(line)
        if pair.chosen == pair.rejected:
            dropped["both answers are the same"] += 1
            continue
        ids = {}
        for side, answer in (("chosen", pair.chosen), ("rejected", pair.rejected)):
            turn = chat.supervise([*pair.messages, {"role": "assistant", "content": answer}])
            cut = next(place for place, label in enumerate(turn.labels) if label != -100)
            ids[side] = (list(turn.input_ids[:cut]), list(turn.input_ids[cut:]))
        assert ids["chosen"][0] == ids["rejected"][0], f"{pair.id}: the answers do not share their prompt"
        if max(len(prompt) + len(answer) for prompt, answer in ids.values()) > max_length:
            dropped["longer than dpo.max_length"] += 1
            continue
        origins[pair.origin] += 1
        rows.append(
            {
                "id": pair.id, "prompt_ids": ids["chosen"][0], "chosen_ids": ids["chosen"][1],
                "rejected_ids": ids["rejected"][1],
            }
        )
    return rows, dropped, origins


class Collator:
    """TRL's preference collator, plus the row numbers by which a broken batch is named. Pads on the right."""

    def __init__(self, pad_id: int) -> None:
        from trl.trainer.dpo_trainer import DataCollatorForPreference

        self._pad = DataCollatorForPreference(pad_token_id=pad_id)

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        import torch

        batch: dict[str, Any] = self._pad(examples)
        batch["row"] = torch.tensor([example["row"] for example in examples])
        return batch


def _trainer(adapted: Any, trl_config: Any, places: list[dict[str, Any]], *, base: Artifact) -> Any:
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import DPOTrainer

    from finetune import arguments, guard

    class GuardedDPOTrainer(guard.Guarded, DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            """Rows are tokenised already; TRL would render them with its own template."""
            return dataset

        def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            """One process: a row's reference score is computed when the row first comes, and kept for later epochs."""
            if self.args.world_size == 1:
                rows = [str(row) for row in inputs["row"].tolist()]
                if not all(row in self.kept for row in rows):
                    tensors = {name: value for name, value in inputs.items() if name != "row"}
                    chosen, rejected = self.compute_ref_log_probs(model, tensors)
                    for row, pair in zip(rows, zip(chosen.tolist(), rejected.tolist(), strict=True), strict=True):
                        self.kept.setdefault(row, list(pair))
                scores = [self.kept[row] for row in rows]
                device = self.args.device
                inputs["ref_chosen_logps"] = torch.tensor([score[0] for score in scores], device=device)
                inputs["ref_rejected_logps"] = torch.tensor([score[1] for score in scores], device=device)
                self.precompute_ref_logps = True
            return super().compute_loss(model, inputs, *args, **kwargs)

    tokenizer = AutoTokenizer.from_pretrained(base.path, local_files_only=True)
    columns = ("prompt_ids", "chosen_ids", "rejected_ids", "row")
    data = Dataset.from_dict({name: [place[name] for place in places] for name in columns})
    trainer = GuardedDPOTrainer(
        model=adapted, args=trl_config, train_dataset=data, processing_class=tokenizer,
        data_collator=Collator(tokenizer.pad_token_id),
    )
    weighting = ("log_sum_sq_probs",) if trainer.use_weighting else ()
    outputs = ("log_probs", "entropy", "mean_logits", "is_top1", *weighting)
    arguments.settle(trainer, outputs=outputs, pairs=True)
    return trainer
