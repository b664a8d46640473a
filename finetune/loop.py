"""What SFT and DPO share: where a run starts again, when it stops, and what may be published.

What a run that can be killed needs: its own record of every step (kept in the checkpoint, so that the log does not
depend on where a run was interrupted), a stop flag that all ranks agree on, and checkpoints that count only when they
are whole and hold what was in memory.
"""

import gc
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback

from finetune import artifacts, base, collective, resume
from finetune.collective import is_first
from finetune.errors import Preempted
from finetune.resume import Layout, step_of
from finetune.spikes import WINDOW, spike_in

WORK = ".checkpoints"
_PROGRESS = "progress.json"
_ADAPTER = "adapter_model.safetensors"
_FINISHED = ".finished.json"


@dataclass
class Run:
    """What a training stage hands to the loop."""

    name: str
    """cpt, sft or dpo: the prefix of messages and of tracked metrics."""
    out: Path
    layout: Layout
    steps: int
    eval_steps: int
    log_steps: int
    row_ids: Sequence[str]
    """Record ids by row number, to name the records of a batch."""
    tracker: Any
    say: Callable[[str], None]
    facts: dict[str, Any] = field(default_factory=dict)
    """Facts known before training; they travel in the checkpoint."""

    @property
    def work(self) -> Path:
        return self.out / WORK

    @property
    def owner(self) -> str:
        """Stage and key of what is being trained: a checkpoint of any other is not ours."""
        return self.out.name.removesuffix(".partial")


# --- one trainer -----------------------------------------------------------------------------------------------------


class _Watch(TrainerCallback):
    """After every step: record it, measure when it is time, agree on stopping; after every save: prove and seal."""

    def __init__(self, trainer: Any, run: Run, stop: "_StopSignal") -> None:
        self.trainer, self.run, self.stop = trainer, run, stop
        self.planned = base.adapter_keys(trainer.accelerator.unwrap_model(trainer.model))
        self.stopped = False
        self.began = self.said = time.monotonic()
        self.first = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.first = state.global_step
        self.trainer.before_first_step(lambda: self.stop.asked)
        # A SIGTERM does not wait for an evaluation; it is made up for here, on the weights of the step it belongs to.
        if history := self.trainer.history:
            self._measure_if_due(history[-1])
        # The tracker may have lost the last lines before a kill, and takes only those that it does not hold.
        for at in range(len(history)):
            self._track(at)

    def _measure_if_due(self, record: dict[str, Any]) -> None:
        if self._owes_evaluation(record):
            record.update(self.trainer.measure())

    def _owes_evaluation(self, record: Mapping[str, Any]) -> bool:
        due = record["step"] % self.run.eval_steps == 0 or record["step"] >= self.run.steps
        return due and bool(self.trainer.eval_batches) and "eval_loss" not in record

    def _warn(self, record: dict[str, Any], spike: str) -> None:
        """A step that stands out is kept in the log with its records, the batch of the greatest loss first."""
        batches = sorted(self.trainer.batches_of_step(), key=lambda batch: -batch[1])
        names = [self.run.row_ids[row] for rows, _ in batches for row in rows]
        record["spike"] = {"what": spike, "records": names}
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        step = record["step"]
        self.run.say(f"{self.run.name}: warning: step {step}: {spike}; records: {', '.join(names[:8])}{more}")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer, run, step = self.trainer, self.run, state.global_step
        batches = trainer.step_batches
        loss = sum(value for _, value in batches) / (1 if run.facts["loss_is_sum"] else len(batches))
        sums = collective.sum_over_ranks([loss, trainer.last_norm, float(self.stop.asked)], args.device)
        total, norm, stop = sums  # the norm is the same everywhere; as a sum it is so to the last bit
        record: dict[str, Any] = {
            "step": step, "loss": total / collective.world(), "lr": trainer._get_learning_rate(),
            "grad_norm": norm / collective.world(),
        }
        for name in run.facts["metrics"]:
            values = trainer._metrics["train"].get(name)
            if values:
                record[name] = sum(values) / len(values)
        trainer._metrics["train"].clear()
        if (spike := spike_in([*trainer.history[-WINDOW:], record])) is not None:
            self._warn(record, spike)
        trainer.step_batches = []
        last = step >= run.steps
        if last or not stop:
            self._measure_if_due(record)
        trainer.history.append(record)
        if is_first():
            self._tell(record, last)
            self._track(len(trainer.history) - 1)
        if stop:
            self.stopped = True
            control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        collective.wait_for_all()
        live = self.trainer.live_adapter()
        if is_first():
            folder = self.run.work / f"{resume.PREFIX}{state.global_step}"
            parameters = check_adapter(folder / _ADAPTER, self.planned, live, trained=state.global_step > 0)
            facts = {**self.run.facts, "trainable_parameters": parameters}
            progress = {"history": self.trainer.history, "facts": facts, "kept": self.trainer.kept}
            artifacts.write_whole(folder / _PROGRESS, json.dumps(progress))
            resume.seal(folder, self.run.layout, owner=self.run.owner)
            resume.keep_last(self.run.work)
        collective.wait_for_all()

    def _track(self, at: int) -> None:
        """The line of log.jsonl that ends at this place of the history, where one does.

        A step whose evaluation is still owed is tracked when that was made up for: a step is tracked once.
        """
        record = self.trainer.history[at]
        step = record["step"]
        due = step % self.run.log_steps == 0 or step >= self.run.steps or "eval_loss" in record
        if due and is_first() and not self._owes_evaluation(record):
            line = _thin(self.trainer.history[max(0, at + 1 - self.run.log_steps) : at + 1], self.run)[-1]
            self.run.tracker.log(self.run.name, {k: v for k, v in line.items() if k != "step"}, step)

    def _tell(self, record: Mapping[str, Any], last: bool) -> None:
        run, step = self.run, record["step"]
        due = step % run.log_steps == 0 or last
        now = time.monotonic()
        if due and (last or now - self.said > 10 or step == run.log_steps) and not sys.stderr.isatty():
            self.said = now
            pace = (now - self.began) / max(1, step - self.first)
            held_out = f", held-out {record['eval_loss']:.4f}" if "eval_loss" in record else ""
            run.say(f"{run.name}: step {step}/{run.steps}, loss {record['loss']:.4f}{held_out}, {pace:.1f} s a step")


class _StopSignal:
    """SIGTERM asks for a checkpoint after the running step; the schedulers' grace period is long enough for one."""

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def __enter__(self) -> "_StopSignal":
        self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def _ask(self, *_: object) -> None:
        self.asked = True


# --- one run ---------------------------------------------------------------------------------------------------------


def find_start(run: Run) -> Path | None:
    """The checkpoint to go on from; the first rank looks and removes what is unusable, the others are told."""
    found: str | None = None
    if is_first():
        run.work.mkdir(parents=True, exist_ok=True)
        newest = resume.newest(run.work, run.layout, run.say, owner=run.owner)
        found = str(newest) if newest else None
    found = collective.tell(found)
    return Path(found) if found else None


def train(trainer: Any, run: Run, start: Path | None, eval_batches: list[list[dict[str, Any]]]) -> Path:
    """Train to the last step, from the checkpoint `start` on, and return the sealed checkpoint of that step.

    Raises Preempted (exit code 75) after SIGTERM, once a checkpoint is sealed.
    """
    trainer.run, trainer.history, trainer.kept, trainer.step_batches = run, [], {}, []
    trainer.eval_batches = eval_batches
    trainer.remove_callback(PrinterCallback)
    if start is not None:
        progress = json.loads((start / _PROGRESS).read_text(encoding="utf-8"))
        trainer.history, trainer.kept = progress["history"], progress["kept"]
        run.say(f"{run.name}: going on after step {step_of(start)} of {run.steps}")
    with _StopSignal() as stop:
        watch = _Watch(trainer, run, stop)
        trainer.add_callback(watch)
        gc.freeze()  # the Trainer collects garbage before its first step: half a second over what was just imported
        try:
            trainer.train(resume_from_checkpoint=str(start) if start else None)
        finally:
            gc.unfreeze()
    trainer.accelerator.free_memory()
    if watch.stopped and trainer.state.global_step < run.steps:
        preempted = Preempted(run.name, trainer.state.global_step, run.steps)
        run.say(preempted.message)
        raise preempted
    return run.work / f"{resume.PREFIX}{run.steps}"


def check_adapter(path: Path, planned: set[str], live: Mapping[str, torch.Tensor], *, trained: bool) -> int:
    """Prove a saved adapter by reading it again: the planned tensors, none empty, all finite, not inert, and bit for
    bit those in memory (`live`). Return its parameter count.
    """
    tensors = load_file(str(path))
    assert set(tensors) == planned, f"saved adapter and plan disagree: {sorted(set(tensors) ^ planned)[:4]}"
    empty = [name for name, tensor in tensors.items() if tensor.numel() == 0]
    assert not empty, f"saved adapter has empty tensors: {empty[:4]}"
    broken = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    assert not broken, f"saved adapter has values that are not finite: {broken[:4]}"
    changed = [name for name, tensor in tensors.items() if not _same_bits(tensor, live[name])]
    assert not changed, f"saved adapter is not the one in memory: {changed[:4]}"
    second = [tensor for name, tensor in tensors.items() if "lora_B" in name or "lora_embedding_B" in name]
    assert not trained or any(bool(tensor.any()) for tensor in second), "every lora_B is zero: nothing was trained"
    return sum(tensor.numel() for tensor in tensors.values())


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def publish(run: Run, checkpoint: Path) -> dict[str, Any]:
    """Copy the adapter and its log out of the last checkpoint, drop the working files, return the facts."""
    progress = json.loads((checkpoint / _PROGRESS).read_text(encoding="utf-8"))
    history: list[dict[str, Any]] = progress["history"]
    measured = [line["eval_loss"] for line in history if "eval_loss" in line]
    facts = {
        **{key: value for key, value in progress["facts"].items() if key not in ("loss_is_sum", "metrics")},
        "steps": run.steps,
        "train_loss": sum(line["loss"] for line in history) / len(history),
        "eval_loss": measured[-1] if measured else None,
        "spikes": sum("spike" in line for line in history),
    }
    collective.wait_for_all()
    if is_first():
        shutil.copyfile(checkpoint / _ADAPTER, run.out / _ADAPTER)
        config = json.loads((checkpoint / "adapter_config.json").read_text(encoding="utf-8"))
        # PEFT writes sets in hash order, which differs from process to process.
        tidy = {key: sorted(value) if _is_names(value) else value for key, value in config.items()}
        tidy["inference_mode"] = True
        artifacts.write_whole(run.out / "adapter_config.json", json.dumps(tidy, indent=2, sort_keys=True) + "\n")
        artifacts.write_whole(run.out / "log.jsonl", "".join(f"{json.dumps(line)}\n" for line in _thin(history, run)))
        with (run.out / _ADAPTER).open("rb") as file:
            os.fsync(file.fileno())
        files = {path.name: artifacts.hash_file(path) for path in artifacts.walk(run.out)}
        assert files[_ADAPTER] == artifacts.hash_file(checkpoint / _ADAPTER), "the copy of the adapter differs"
        # From here on the checkpoints may go: a kill while they are deleted must not cost the training.
        artifacts.write_whole(run.out / _FINISHED, json.dumps({"files": files, "facts": facts}))
        shutil.rmtree(run.work)
    return facts


def finished(out: Path) -> dict[str, Any] | None:
    """Facts of a training that was done when the process was stopped, if its files are still what they were.

    The first rank looks and the others are told: it publishes these files next, so they may vanish under a reader.
    """
    found: dict[str, Any] | None = collective.tell(_read_finished(out) if is_first() else None)
    return found


def _read_finished(out: Path) -> dict[str, Any] | None:
    try:
        note = json.loads((out / _FINISHED).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    whole = {path.name: artifacts.hash_file(path) for path in artifacts.walk(out)} == note["files"]
    return dict(note["facts"]) if whole else None


def give_back_memory() -> None:
    """Free what a trainer that nobody names any more still holds: the next stage is a child that needs the device.

    A trainer and its callbacks point at each other, so that only the collector finds them.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _thin(history: list[dict[str, Any]], run: Run) -> list[dict[str, Any]]:
    """One line for every log_steps steps (means over them), and for every step that was evaluated."""
    lines: list[dict[str, Any]] = []
    window: list[dict[str, Any]] = []
    for record in history:
        window.append(record)
        if record["step"] % run.log_steps == 0 or "eval_loss" in record or record["step"] == run.steps:
            kept = {name: record[name] for name in record if name == "lr" or name.startswith("eval_")}
            names = [name for name in record if name not in ("step", "spike") and name not in kept]
            line: dict[str, Any] = {name: sum(r[name] for r in window) / len(window) for name in names}
            spikes = [{"step": r["step"], **r["spike"]} for r in window if "spike" in r]
            lines.append({"step": record["step"], **line, **kept, **({"spikes": spikes} if spikes else {})})
            window = []
    return lines
