"""The mixin that goes in front of a TRL trainer class: it keeps TRL's loss and optimiser and watches over them.

It remembers which records a step was made of, ends the run at a broken step before anything of it is saved, saves the
adapter and nothing else, and measures the evaluation loss over tokens.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from finetune import base, collective
from finetune.errors import RecipeError

if TYPE_CHECKING:
    from finetune.loop import Run


class Guarded:
    """Mixin in front of a TRL trainer. Set `run` right after construction through `loop.train()`."""

    run: "Run"
    history: list[dict[str, Any]]
    kept: dict[str, Any]
    """JSON that a trainer wants back after a resume, the same on every rank; it travels in the checkpoint."""
    step_batches: list[tuple[list[int], float]]
    """Row numbers and loss of every batch of the running step, on this rank."""
    last_norm: float
    """Gradient norm of the running step, over all ranks."""

    def before_first_step(self, asked_to_stop: Callable[[], bool]) -> None:
        """Called once on every rank when the model is in place, before the first step of this process."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """TRL writes a card beside every checkpoint; the bundle has one of its own."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        rows = inputs.pop("row", None)
        result = super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]
        if self.model.training and rows is not None:  # type: ignore[attr-defined]
            loss = result[0] if isinstance(result, tuple) else result
            self.step_batches.append((rows.tolist(), float(loss.detach())))
        return result

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> float:
        """Called after backward and before the optimiser: the last place where a broken step can still be stopped.

        Under DeepSpeed the optimiser has stepped by then: accelerate's backward ends with the engine's step. The engine
        leaves out a step whose gradient norm is not finite (zero/stage3.py) and reports it as infinite; where only a
        loss is broken, the weights in memory have moved, and the run ends here before they are saved.
        """
        norm = float(super()._get_grad_norm(model, grad_norm=grad_norm))  # type: ignore[misc]
        self.last_norm = norm
        finite = math.isfinite(norm) and all(math.isfinite(loss) for _, loss in self.step_batches)
        if collective.sum_over_ranks([float(not finite)], self.args.device)[0]:  # type: ignore[attr-defined]
            self._stop_for_nan()
        return norm

    def _stop_for_nan(self) -> None:
        """Name the batches whose own loss is broken; where only the gradient is, every record of the step."""
        batches = self.batches_of_step()
        suspects = [rows for rows, loss in batches if not math.isfinite(loss)] or [rows for rows, _ in batches]
        names = dict.fromkeys(self.run.row_ids[row] for rows in suspects for row in rows)
        step = self.state.global_step + 1  # type: ignore[attr-defined]
        raise RecipeError.one(
            f"{self.run.name}.trl.learning_rate", self.args.learning_rate,  # type: ignore[attr-defined]
            f"loss or gradient was not a finite number in step {step}; records of that batch: {', '.join(names)}",
            "look at these records, or lower the learning rate; nothing of this step was kept",
        )

    def batches_of_step(self) -> list[tuple[list[int], float]]:
        """Row numbers and loss of every batch of the running step on all ranks; every rank has to ask."""
        return [batch for batches in collective.gather(self.step_batches) for batch in batches]

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

    def live_adapter(self) -> dict[str, torch.Tensor]:
        """Copies of the policy's tensors as they are in memory now, by their names on disk; every rank has to ask.

        Under ZeRO-3 a rank holds only its part of them: they are gathered, and only the first rank gets the copies.
        """
        model = self.accelerator.unwrap_model(self.model)  # type: ignore[attr-defined]
        live = base.adapter_parameters(model)
        if not any(hasattr(parameter, "ds_id") for parameter in live.values()):
            return {name: parameter.detach().cpu().clone() for name, parameter in live.items()}
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(live.values())):
            if not collective.is_first():
                return {}
            return {name: parameter.detach().cpu().clone() for name, parameter in live.items()}

    def measure(self) -> dict[str, float]:
        """Evaluation loss: the mean over all supervised tokens, whatever the batches and the number of ranks."""
        batches = self.eval_batches  # type: ignore[attr-defined]
        model = self.model_wrapped  # type: ignore[attr-defined]
        together = self.run.layout.sequence  # ranks that share a row work on the same batch
        world, me = collective.world() // together, collective.rank() // together
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
        total, tokens = collective.sum_over_ranks([total, tokens], self.args.device)  # type: ignore[attr-defined]
        return {"eval_loss": total / tokens}
