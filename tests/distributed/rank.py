"""One rank of trainings of the tiny model, alone or started by torchrun: `rank.py LAYOUT ROOT`.

Everything that one layout has to show happens in one process: SFT then DPO with LoRA and with QLoRA, a step that breaks
on the last rank only, and the resume after it.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", OMP_WAIT_POLICY="PASSIVE", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")

from finetune import dpo, ranks, sft
from finetune.artifacts import Artifact, read
from finetune.config.machine import Machine
from finetune.errors import RecipeError
from tests import tiny

ZERO3 = {
    "zero_optimization": {
        "stage": 3, "overlap_comm": False, "contiguous_gradients": True,
        "stage3_param_persistence_threshold": 0,  # else a model so small is gathered once
    },
    "gradient_clipping": "auto", "train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto", "bf16": {"enabled": "auto"},
}
BROKEN_STEP = 3


def inputs_in(root: Path) -> dict[str, Artifact]:
    return {
        "base": Artifact(root / "base", {"stage": "base", "digest": "tiny", "facts": {"name": "tiny/random"}}),
        "prepared": Artifact(root / "prepared", {"stage": "prepare", "digest": "p", "facts": {}}),
    }


def config_of(method: str) -> dict[str, Any]:
    plain = {**(tiny.QLORA if method == "qlora" else tiny.METHOD)}
    plain["lora"] = {**plain["lora"], "lora_dropout": 0.0}
    return tiny.sft_config(method=plain, max_steps=4, log_steps=1, save_steps=1)


def train(method: str, root: Path, common: dict[str, Any]) -> list[str]:
    inputs, config = inputs_in(root), config_of(method)
    adapter = ranks.build_together(sft.SFT_STAGE, config, inputs=inputs, root=root / "work", **common)
    preferences = Artifact(root / "preferences", {"stage": "pairs", "digest": "q", "facts": {}})
    config["dpo"] = {**config.pop("sft"), "trl": {"learning_rate": 1e-3}}
    given = {**inputs, "preferences": preferences, "adapter": adapter}
    after = ranks.build_together(dpo.STAGE, config, inputs=given, root=root / "work", **common)
    if ranks.is_first():
        assert read(after.path).digest == after.digest
    return [str(adapter.path), str(after.path)]


def train_packed(root: Path, common: dict[str, Any]) -> list[str]:
    config = config_of("lora")
    config["sft"]["packing"] = True
    made = ranks.build_together(sft.SFT_STAGE, config, inputs=inputs_in(root), root=root / "work", **common)
    return [str(made.path)]


def check_placement(trainer: Any) -> None:
    """No move copies the base (cpu:0 is not cpu to torch), and DDP broadcasts nothing that every rank has read."""
    assert trainer.args.device.index is None
    assert trainer.accelerator.device.index is None
    wrapped = trainer.model_wrapped
    if type(wrapped).__name__ == "DistributedDataParallel":
        frozen = {name for name, parameter in wrapped.module.named_parameters() if not parameter.requires_grad}
        assert frozen == set(wrapped.parameters_to_ignore)


@contextmanager
def poisoned(what: str) -> Iterator[None]:
    """On the last rank only, the loss or a gradient of one step is not a finite number."""
    from finetune import guard

    original = guard.Guarded.compute_loss

    def compute_loss(self: Any, *args: Any, **kwargs: Any) -> Any:
        check_placement(self)
        mine = ranks.rank() == ranks.world() - 1 and self.state.global_step + 1 == BROKEN_STEP
        if mine and what == "gradient":
            one = next(parameter for parameter in self.model.parameters() if parameter.requires_grad)
            hook = one.register_hook(lambda grad: (hook.remove(), grad * float("inf"))[1])
        if mine and what == "loss":
            loss = type(self).__mro__[2].compute_loss

            def broken(*inner: Any, **named: Any) -> Any:
                return loss(*inner, **named) * float("nan")

            with swapped(type(self).__mro__[2], "compute_loss", broken):
                return original(self, *args, **kwargs)
        return original(self, *args, **kwargs)

    with swapped(guard.Guarded, "compute_loss", compute_loss):
        yield


@contextmanager
def swapped(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def break_and_resume(what: str, root: Path, common: dict[str, Any]) -> dict[str, Any]:
    """What this rank was told, what was on disk then, and the adapter that the same command made afterwards."""
    place, told = root / f"broken-{what}", ""
    with poisoned(what):
        try:
            ranks.build_together(sft.SFT_STAGE, config_of("lora"), inputs=inputs_in(root), root=place, **common)
        except RecipeError as error:
            told = str(error)
    on_disk = sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.name == "COMPLETE")
    after = ranks.build_together(sft.SFT_STAGE, config_of("lora"), inputs=inputs_in(root), root=place, **common)
    return {"told": told, "sealed": on_disk, "path": str(after.path)}


def main(layout: str, root: Path) -> None:
    world = ranks.world()
    machine = Machine(
        name="test", device="cpu", threads=1, processes=world, layout=layout, per_device_batch_size=4 // world,
        deepspeed=ZERO3 if layout == "zero3" else None,
    )
    say = print if ranks.is_first() else (lambda line: None)
    common = {"machine": machine, "tracker": tiny.Silent(), "say": say}
    result: dict[str, Any] = {method: train(method, root, common) for method in ("lora", "qlora")}
    result["packed"] = train_packed(root, common)
    result |= {what: break_and_resume(what, root, common) for what in ("loss", "gradient")}
    (root / f"rank-{ranks.rank()}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
