"""What SFT and DPO share: where a run starts again, when it stops, and what may be published.

`Guarded` goes in front of a TRL trainer class. It keeps TRL's loss and optimiser and takes over what a run that can
be killed needs: its own record of every step (kept in the checkpoint, so that the log does not depend on where a run
was interrupted), evaluation weighted by tokens, a stop flag that all ranks agree on, and checkpoints that count only
when they are whole.
"""

import gc
import json
import math
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

from finetune import artifacts, base, resume
from finetune.errors import Preempted, RecipeError
from finetune.resume import Layout, step_of

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


# --- ranks -----------------------------------------------------------------------------------------------------------


def _world() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def is_first() -> bool:
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def _sum_over_ranks(values: list[float], device: torch.device) -> list[float]:
    if _world() == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(tensor)
    return list(tensor.tolist())


def _wait_for_all() -> None:
    if _world() > 1:
        torch.distributed.barrier()


# --- one trainer -----------------------------------------------------------------------------------------------------


class Guarded:
    """Mixin in front of a TRL trainer. Set `run` right after construction through `train()`."""

    run: Run
    history: list[dict[str, float]]
    kept: dict[str, Any]
    """JSON that a trainer wants back after a resume; it travels in the checkpoint of a single process."""
    _step_batches: list[tuple[list[int], float]]

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """TRL writes a card beside every checkpoint; the bundle has one of its own."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        rows = inputs.pop("row", None)
        result = super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]
        if self.model.training and rows is not None:  # type: ignore[attr-defined]
            loss = result[0] if isinstance(result, tuple) else result
            self._step_batches.append((rows.tolist(), float(loss.detach())))
        return result

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> float:
        """Called after backward and before the optimiser: the last place where a broken step can still be stopped."""
        norm = float(super()._get_grad_norm(model, grad_norm=grad_norm))  # type: ignore[misc]
        self._last_norm = norm
        finite = math.isfinite(norm) and all(math.isfinite(loss) for _, loss in self._step_batches)
        broken = _sum_over_ranks([0.0 if finite else 1.0], self.args.device)[0]  # type: ignore[attr-defined]
        if broken:
            self._stop_for_nan(norm)
        return norm

    def _stop_for_nan(self, norm: float) -> None:
        suspects = [rows for rows, loss in self._step_batches if not math.isfinite(loss)]
        mine = [row for rows in suspects or [rows for rows, _ in self._step_batches] for row in rows]
        everywhere: list[list[int]] = [mine]
        if _world() > 1:
            everywhere = [[] for _ in range(_world())]
            torch.distributed.all_gather_object(everywhere, mine)
        names = [self.run.row_ids[row] for rows in everywhere for row in rows]
        step = self.state.global_step + 1  # type: ignore[attr-defined]
        raise RecipeError.one(
            f"{self.run.name}.trl.learning_rate", self.args.learning_rate,  # type: ignore[attr-defined]
            f"loss or gradient was not a finite number in step {step}; records of that batch: {', '.join(names)}",
            "look at these records, or lower the learning rate; nothing of this step was kept",
        )

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Only the policy's adapter: no tokenizer, no pickled arguments, no frozen reference copy."""
        if not self.args.should_save:  # type: ignore[attr-defined]
            return
        target = Path(output_dir or self.args.output_dir)  # type: ignore[attr-defined]
        target.mkdir(parents=True, exist_ok=True)
        model = self.accelerator.unwrap_model(self.model)  # type: ignore[attr-defined]
        model.save_pretrained(
            target, state_dict=state_dict, selected_adapters=["default"], save_embedding_layers=False,
        )
        (target / "README.md").unlink(missing_ok=True)

    def measure(self) -> dict[str, float]:
        """Evaluation loss: the mean over all supervised tokens, whatever the batches and the number of ranks."""
        batches = self.eval_batches  # type: ignore[attr-defined]
        model = self.model_wrapped  # type: ignore[attr-defined]
        world, me = _world(), torch.distributed.get_rank() if _world() > 1 else 0
        rounds = -(-len(batches) // world)
        total, tokens = 0.0, 0.0
        model.eval()
        for turn in range(rounds):
            number = turn * world + me
            counts = number < len(batches)  # a rank without a batch repeats one: ZeRO-3 needs every rank in the forward
            batch = self.data_collator(batches[min(number, len(batches) - 1)])  # type: ignore[attr-defined]
            inputs = self._prepare_inputs(batch)  # type: ignore[attr-defined]
            inputs.pop("row", None)
            with torch.no_grad(), self.compute_loss_context_manager():  # type: ignore[attr-defined]
                scored = model(**inputs, use_cache=False, fused_lm_head=True)
            if counts:
                total -= float(scored.log_probs.double().sum())
                tokens += float(scored.label_mask.sum())
        model.train()
        device = self.args.device  # type: ignore[attr-defined]
        total, tokens = _sum_over_ranks([total, tokens], device)
        return {"eval_loss": total / tokens}


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
        # A SIGTERM does not wait for an evaluation; it is made up for here, on the weights of the step it belongs to.
        if history := self.trainer.history:
            self._measure_if_due(history[-1])

    def _measure_if_due(self, record: dict[str, Any]) -> None:
        step = record["step"]
        due = step % self.run.eval_steps == 0 or step >= self.run.steps
        if due and self.trainer.eval_batches and "eval_loss" not in record:
            record.update(self.trainer.measure())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer, run, step = self.trainer, self.run, state.global_step
        batches = trainer._step_batches
        loss = sum(value for _, value in batches) / (1 if run.facts["loss_is_sum"] else len(batches))
        total, stop = _sum_over_ranks([loss, float(self.stop.asked)], args.device)
        record: dict[str, Any] = {
            "step": step, "loss": total / _world(), "lr": trainer._get_learning_rate(), "grad_norm": trainer._last_norm,
        }
        for name in run.facts["metrics"]:
            values = trainer._metrics["train"].get(name)
            if values:
                record[name] = sum(values) / len(values)
        trainer._metrics["train"].clear()
        trainer._step_batches = []
        last = step >= run.steps
        if last or not stop:
            self._measure_if_due(record)
        trainer.history.append(record)
        if is_first():
            self._tell(record, last)
        if stop:
            self.stopped = True
            control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        _wait_for_all()
        if is_first():
            folder = self.run.work / f"{resume.PREFIX}{state.global_step}"
            tensors = check_adapter(folder / _ADAPTER, self.planned, trained=state.global_step > 0)
            facts = {**self.run.facts, "trainable_parameters": tensors}
            progress = {"history": self.trainer.history, "facts": facts, "kept": self.trainer.kept}
            artifacts.write_whole(folder / _PROGRESS, json.dumps(progress))
            resume.seal(folder, self.run.layout)
            resume.keep_last(self.run.work)
        _wait_for_all()

    def _tell(self, record: Mapping[str, Any], last: bool) -> None:
        run, step = self.run, record["step"]
        due = step % run.log_steps == 0 or last
        if due or "eval_loss" in record:
            run.tracker.log(run.name, {k: v for k, v in record.items() if k != "step"}, step)
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
    found: list[str | None] = [None]
    if is_first():
        run.work.mkdir(parents=True, exist_ok=True)
        newest = resume.newest(run.work, run.layout, run.say)
        found = [str(newest) if newest else None]
    if _world() > 1:
        torch.distributed.broadcast_object_list(found, src=0)
    return Path(found[0]) if found[0] else None


def train(trainer: Any, run: Run, start: Path | None, eval_batches: list[list[dict[str, Any]]]) -> Path:
    """Train to the last step, from the checkpoint `start` on, and return the sealed checkpoint of that step.

    Raises Preempted (exit code 75) after SIGTERM, once a checkpoint is sealed.
    """
    trainer.run, trainer.history, trainer.kept, trainer._step_batches = run, [], {}, []
    trainer.eval_batches = eval_batches
    trainer.remove_callback(PrinterCallback)
    if start is not None:
        progress = json.loads((start / _PROGRESS).read_text(encoding="utf-8"))
        trainer.history, trainer.kept = progress["history"], progress["kept"]
        run.say(f"{run.name}: going on after step {step_of(start)} of {run.steps}")
    with _StopSignal() as stop:
        watch = _Watch(trainer, run, stop)
        trainer.add_callback(watch)
        trainer.train(resume_from_checkpoint=str(start) if start else None)
    trainer.accelerator.free_memory()
    if watch.stopped and trainer.state.global_step < run.steps:
        preempted = Preempted(run.name, trainer.state.global_step, run.steps)
        run.say(preempted.message)
        raise preempted
    return run.work / f"{resume.PREFIX}{run.steps}"


def check_adapter(path: Path, planned: set[str], *, trained: bool) -> int:
    """Prove a saved adapter: the planned tensors, none empty, all finite, not inert. Return its parameter count."""
    tensors = load_file(str(path))
    assert set(tensors) == planned, f"saved adapter and plan disagree: {sorted(set(tensors) ^ planned)[:4]}"
    empty = [name for name, tensor in tensors.items() if tensor.numel() == 0]
    assert not empty, f"saved adapter has empty tensors: {empty[:4]}"
    broken = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    assert not broken, f"saved adapter has values that are not finite: {broken[:4]}"
    second = [tensor for name, tensor in tensors.items() if "lora_B" in name or "lora_embedding_B" in name]
    assert not trained or any(bool(tensor.any()) for tensor in second), "every lora_B is zero: nothing was trained"
    return sum(tensor.numel() for tensor in tensors.values())


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
    }
    _wait_for_all()
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
    found = [_read_finished(out) if is_first() else None]
    if _world() > 1:
        torch.distributed.broadcast_object_list(found, src=0)
    return found[0]


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
            names = [name for name in record if name not in ("step", "lr", "eval_loss")]
            line: dict[str, Any] = {name: sum(r[name] for r in window) / len(window) for name in names}
            kept: dict[str, Any] = {name: record[name] for name in ("lr", "eval_loss") if name in record}
            lines.append({"step": record["step"], **line, **kept})
            window = []
    return lines
