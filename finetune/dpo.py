"""Stage DPO: prefer the better answer, measured from where SFT ended, with TRL's DPOTrainer and any of its losses.

The reference is the adapter that training starts from, never the bare base, and its scores are kept (reference.py).
Prompts are the ones a server renders, in the row's mode and with its tools; answers end with the end of turn.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from finetune.artifacts import Artifact, Stage
from finetune.base import device_of, load_adapter, load_base, set_threads
from finetune.chat import ChatFormat
from finetune.config.machine import Machine
from finetune.config.model import Model
from finetune.config.section import Section
from finetune.config.training import Dpo, Method
from finetune.corpus.records import Preference
from finetune.errors import Preempted, RecipeError
from finetune.fourbit import RoundTrip
from finetune.order import plan_order, steps_of
from finetune.reference import Pair, Scores, name_of, plan_batches, plan_rounds

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
    pairs, dropped, origins = read_pairs(
        preferences.file("preferences.jsonl"), ChatFormat.read(base.path), max_length=training.max_length
    )
    rows = [pair for pair in pairs if not pair["held_out"]]
    if not rows:
        raise RecipeError.one(
            "stages", "dpo", f"no preference pair is left to train on ({dict(dropped) or 'there was none'})",
            "give dpo.pairs or a source of ready-made preferences, or take dpo out of stages",
        )

    from finetune import arguments, loop
    from finetune.resume import step_of

    timings = {"load": 0.0, "reference": 0.0, "train": 0.0}
    epochs = training.epochs
    steps = steps_of(len(rows), batch_size=training.batch_size, epochs=epochs, max_steps=training.max_steps)
    order = plan_order([_length(row) for row in rows], batch_size=training.batch_size, steps=steps, seed=settings.seed)
    layout = arguments.layout_of(machine, training.batch_size, "dpo")
    numbered = [{**pair, "row": row} for row, pair in enumerate([*rows, *(p for p in pairs if p["held_out"])])]
    this = loop.Run(
        name="dpo", out=out, layout=layout, steps=steps, eval_steps=training.eval_steps, log_steps=training.log_steps,
        row_ids=[pair["id"] for pair in numbered], tracker=tracker, say=say,
    )
    trl_config = arguments.build(
        "DPOConfig", this, training, machine, device_of(machine), seed=settings.seed, model=settings.model
    )
    device = trl_config.device  # device_of() names the first GPU until the config has joined the ranks
    if (done := loop.finished(out)) is not None:
        return {**done, "timings": timings}
    checkpoint = loop.find_start(this)
    if checkpoint is None or step_of(checkpoint) < steps:
        model = load_base(base, settings.model, settings.method, device=device)
        in_float32 = machine.layout != "zero3" or settings.method.bnb is not None
        adapted = load_adapter(model, adapter, trainable=True, in_float32=in_float32)
        this.facts = {
            "pairs": len(rows),
            "held_out": len(numbered) - len(rows),
            "origins": dict(sorted(origins.items())),
            "dropped": dict(sorted(dropped.items())),
            "supervised_tokens": sum(len(rows[row]["chosen_ids"]) + len(rows[row]["rejected_ids"]) for row in order),
            "four_bit": trip.describe() if (trip := RoundTrip.seen(adapted)) else None,
            "threads": threads,
            "loss_is_sum": False,
            "metrics": list(_METRICS),
        }
        held_out = _batches(numbered[len(rows) :], size=layout.per_device)
        scores = Scores(out.parent, _identity(settings, base, adapter, machine, device))
        dropout = 0.0 if trl_config.disable_dropout else settings.method.lora.get("lora_dropout", 0.0)
        noise = dropout or trl_config.neftune_noise_alpha or 0.0
        bound = start_bound(order[: training.batch_size], dtype=settings.model.dtype, noise=noise)
        trainer = _trainer(
            adapted, trl_config, base=base, order=order, pairs=numbered, held_out=held_out, scores=scores, bound=bound
        )
        loaded = time.monotonic()
        checkpoint = loop.train(trainer, this, checkpoint, eval_batches=held_out)
        spent = time.monotonic() - loaded
        timings = {
            "load": round(loaded - began, 2),
            "reference": round(trainer.reference_seconds, 2),
            "train": round(spent - trainer.reference_seconds, 2),
        }
        del trainer, adapted, model
        loop.give_back_memory()
    return {**loop.publish(this, checkpoint), "timings": timings}


STAGE = Stage("dpo", 4, run)


def read_pairs(
    path: Path, chat: ChatFormat, *, max_length: int
) -> tuple[list[dict[str, Any]], Counter[str], Counter[str]]:
    """Tokenised pairs, what was left out by reason, and how many of each origin stay.

    `prompt_ids` are the served prompt, `chosen_ids` and `rejected_ids` what the model would have to emit, reasoning,
    calls and end of turn included. A group with trained and held-out pairs is a defect of whoever wrote the file.
    """
    rows: list[dict[str, Any]] = []
    dropped: Counter[str] = Counter()
    origins: Counter[str] = Counter()
    groups: dict[str, bool] = {}
    for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
        pair = Preference.from_json(line)
        assert groups.setdefault(pair.group, pair.held_out) == pair.held_out, f"{pair.group} is trained and held out"
        ids = {}
        for side, answer in (("chosen", pair.chosen), ("rejected", pair.rejected)):
            turn = chat.supervise([*pair.messages, answer], pair.mode, pair.tools)
            cut = next(place for place, label in enumerate(turn.labels) if label != -100)
            ids[side] = (list(turn.input_ids[:cut]), list(turn.input_ids[cut:]))
        assert ids["chosen"][0] == ids["rejected"][0], f"{pair.id}: the answers do not share their prompt"
        if ids["chosen"] == ids["rejected"]:
            dropped["both answers are the same"] += 1
            continue
        if max(len(prompt) + len(answer) for prompt, answer in ids.values()) > max_length:
            dropped["longer than dpo.max_length"] += 1
            continue
        origins[pair.origin] += 1
        rows.append(
            {
                "id": pair.id, "prompt_ids": ids["chosen"][0], "chosen_ids": ids["chosen"][1],
                "rejected_ids": ids["rejected"][1], "held_out": pair.held_out, "origin": pair.origin,
                "mode": pair.mode,
            }
        )
    return rows, dropped, origins


def _length(row: Mapping[str, Any]) -> int:
    return len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"])


def _batches(rows: list[dict[str, Any]], *, size: int) -> list[list[dict[str, Any]]]:
    by_length = sorted(rows, key=lambda row: (_length(row), row["row"]))
    return [by_length[i : i + size] for i in range(0, len(rows), size)]


def _identity(settings: Config, base: Artifact, adapter: Artifact, machine: Machine, device: Any) -> dict[str, Any]:
    """All that may change a bit of a reference score, beside the tokens: neither beta nor the learning rate."""
    import torch

    return {
        "stage": STAGE.version,
        "base": base.digest,
        "adapter": adapter.digest,
        "dtype": settings.model.dtype,
        "attention": settings.model.attn_implementation,
        "rope": settings.model.rope_parameters and settings.model.rope_parameters.model_dump(),
        "bnb": settings.method.bnb,
        "zero3": machine.layout == "zero3",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "trl", "bitsandbytes")},
        "tf32": settings.dpo.trl.get("tf32"),
        "ld_alpha": settings.dpo.trl.get("ld_alpha"),
    }


def start_bound(first: list[int], *, dtype: str, noise: float) -> float:
    """How far from 0 a reward of step 0 may be, `first` being the rows of that step.

    float32: 1e-6. The scores were taken in the same batches by the same weights, so that on a CPU it is 0 in bfloat16
    too; 1e-2 leaves room for kernels of a GPU that choose otherwise where gradients are wanted, and for a pair that
    stands in two batches of the first step and was scored in one. Under `noise` (dropout, or NEFTune's on the
    embeddings) no two forwards agree.
    """
    if noise:
        return math.inf
    return 1e-6 if dtype == "float32" and len(set(first)) == len(first) else 1e-2


def check_start(trainer: Any) -> None:
    """At step 0 the policy is its own reference: RecipeError where a reward is further from 0 than rounding explains.

    A margin off 0 is how DPO from the wrong policy looks (ms-swift#8047, LF#8974).
    """
    seen = trainer._metrics["train"]
    worst = max(abs(seen[name][-1]) for name in ("rewards/margins", "rewards/chosen", "rewards/rejected"))
    if worst > trainer.start_bound:  # a loss that is no number is told by the guard, with its records
        raise RecipeError.one(
            "dpo", worst,
            f"a reward at step 0 must be 0 (at most {trainer.start_bound:g}): the reference is not the SFT policy that "
            "training starts from",
            f"remove {trainer.scores.file} and run the same command again; report it if it comes back",
        )


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


def _trainer(
    adapted: Any,
    trl_config: Any,
    *,
    base: Artifact,
    order: list[int],
    pairs: list[dict[str, Any]],
    held_out: list[list[dict[str, Any]]],
    scores: Scores,
    bound: float,
) -> Any:
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import DPOTrainer

    from finetune import arguments, collective, guard

    class GuardedDPOTrainer(guard.Guarded, DPOTrainer):
        reference_seconds = 0.0

        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            """Rows are tokenised already; TRL would render them with its own template."""
            return dataset

        def before_first_step(self, asked_to_stop: Callable[[], bool]) -> None:
            """Score every pair by the policy as it is now, where the checkpoint does not bring the scores along."""
            if self.kept:
                return
            assert self.state.global_step == 0, "a checkpoint holds its reference"
            began = time.monotonic()
            trained = plan_batches(order, self.args.per_device_train_batch_size)
            batches = [*([pairs[row] for row in rows] for rows in trained), *held_out]
            known = self._score(batches, asked_to_stop)
            for batch in batches:
                for pair, score in zip(batch, known[name_of(batch)], strict=True):
                    self.kept.setdefault(str(pair["row"]), list(score))
            self.reference_seconds = time.monotonic() - began

        def _score(
            self, batches: list[list[dict[str, Any]]], asked_to_stop: Callable[[], bool]
        ) -> dict[str, list[Pair]]:
            known: dict[str, list[Pair]] = collective.tell(scores.read() if collective.is_first() else {})
            missing = list({name_of(batch): batch for batch in batches if name_of(batch) not in known}.values())
            rounds = plan_rounds(missing, collective.world())
            said = time.monotonic()
            if missing:
                self.run.say(f"dpo: scoring the reference in {len(missing)} batches ({len(known)} are kept)")
            for number, of_ranks in enumerate(rounds, start=1):
                found = collective.gather((self._score_batch(of_ranks[collective.rank()]), asked_to_stop()))
                new = {name_of(batch): score for batch, (score, _) in zip(of_ranks, found, strict=True)}
                known |= new
                if collective.is_first():
                    scores.add(new)
                if any(asked for _, asked in found):
                    preempted = Preempted(self.run.name, 0, self.run.steps)
                    self.run.say(preempted.message)
                    raise preempted
                if time.monotonic() - said > 10:
                    said = time.monotonic()
                    self.run.say(f"dpo: reference scored in {number} of {len(rounds)} rounds")
            return known

        def _score_batch(self, batch: list[dict[str, Any]]) -> list[Pair]:
            inputs = self._prepare_inputs(self.data_collator(batch))
            inputs.pop("row")
            self.model_wrapped.eval()
            self.ref_model = self.model  # TRL then switches no adapter off: the policy itself is the reference
            chosen, rejected = self.compute_ref_log_probs(self.model_wrapped, inputs)
            self.ref_model = None
            self.model_wrapped.train()
            return list(zip(chosen.tolist(), rejected.tolist(), strict=True))

        def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            """TRL's loss, with the kept scores in the place of those of a second adapter."""
            found = torch.tensor([self.kept[str(row)] for row in inputs["row"].tolist()], device=self.args.device)
            inputs["ref_chosen_logps"], inputs["ref_rejected_logps"] = found.unbind(1)
            result = super().compute_loss(model, inputs, *args, **kwargs)
            if self.model.training and self.state.global_step == 0:
                check_start(self)
            return result

        def measure(self) -> dict[str, float]:
            """Held-out pairs: TRL's loss, reward margin and how often the chosen answer is ahead, means over pairs."""
            total = {"eval_loss": 0.0, "eval_margin": 0.0, "eval_accuracy": 0.0}
            model, count = self.model_wrapped, 0
            model.eval()
            for of_ranks in plan_rounds(self.eval_batches, collective.world()):
                inputs = self._prepare_inputs(self.data_collator(of_ranks[collective.rank()]))
                with torch.no_grad(), self.compute_loss_context_manager():
                    loss = self.compute_loss(model, inputs)
                # Batches of a round are of one size, so that a mean over ranks is one over pairs.
                size = sum(map(len, {id(batch): batch for batch in of_ranks}.values()))
                seen = self._metrics["eval"]
                total["eval_loss"] += size * float(self.accelerator.gather(loss.detach()).mean())
                total["eval_margin"] += size * seen["rewards/margins"][-1]
                total["eval_accuracy"] += size * seen["rewards/accuracies"][-1]
                seen.clear()
                count += size
            model.train()
            return {name: value / count for name, value in total.items()}

    tokenizer = AutoTokenizer.from_pretrained(base.path, local_files_only=True)
    columns = ("prompt_ids", "chosen_ids", "rejected_ids", "row")
    data = Dataset.from_dict({name: [pairs[row][name] for row in order] for name in columns})
    trainer = GuardedDPOTrainer(
        model=adapted, args=trl_config, train_dataset=data, processing_class=tokenizer,
        data_collator=Collator(tokenizer.pad_token_id),
    )
    trainer.model.delete_adapter("ref")  # TRL's copy of the adapter, in whose place the scores are kept
    trainer.precompute_ref_logps = True
    trainer.scores, trainer.start_bound = scores, bound
    weighting = ("log_sum_sq_probs",) if trainer.use_weighting else ()
    outputs = ("log_probs", "entropy", "mean_logits", "is_top1", *weighting)
    arguments.settle(trainer, outputs=outputs, pairs=True)
    return trainer
