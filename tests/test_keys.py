"""Which change of a recipe does a stage again: exactly those that can change its result."""

import functools
from typing import Any

import pytest

from finetune import bases, dpo, export, handoff, merge, pairs, proof, sft
from finetune.config import Recipe, load
from finetune.corpus import prepare
from finetune.score import stage as score
from finetune.train import identity

CONFIGS = {
    "prepare": prepare.Config, "cpt": sft.CptConfig, "sft": sft.Config, "pairs": pairs.Config, "dpo": dpo.Config,
    "score": score.Config, "bases": bases.Config, "merge": merge.Config, "proof": proof.Config, "export": export.Config,
    "handoff": handoff.Config,
}  # fmt: skip
TRAINED = "cpt sft pairs dpo score bases merge proof handoff"
CHANGES = {
    "seed=7": "prepare cpt sft pairs dpo score export handoff",
    "prepare.split.test=0.3": "prepare handoff",
    "tasks.fields.train_rows=300": "prepare pairs score export handoff",
    "sft.max_length=200": "prepare sft handoff",
    "sft.trl.learning_rate=1e-5": "sft handoff",
    "sft.max_steps=3": "sft handoff",
    "cpt.trl.learning_rate=1e-5": "cpt handoff",
    "dpo.trl.beta=0.2": "dpo handoff",
    "dpo.pairs.temperature=0.5": "pairs dpo handoff",
    "method.lora.r=8": TRAINED,
    "method=qlora": TRAINED,
    "model.dtype=float32": TRAINED.replace("handoff", "export handoff"),
    "model.attn_implementation=sdpa": TRAINED,
    "model.default_mode=think": f"prepare {TRAINED}",
    "score.shots=3": "score handoff",
    "score.consistency.prompts=4": "score handoff",
    "score.context.lengths=[512]": "score handoff",
    "gates.consistency_min=0.5": "handoff",
    "score.general_tokens=100": "score handoff",
    "score.parity_prompts=5": "proof handoff",
    "gates.gain_above=0.1": "handoff",
    "export=[w4a16]": "export",
    "quantise.group_size=64": "export",
    "gates.export_loss_max=0.5": "handoff",
    "handoff.signer=x": "handoff",
    "handoff.signing_key=x": "",  # a finished bundle is signed, and none made for it
    # Said on the card and nowhere else.
    "model.note=x": "handoff",
    "model.licence=x": "handoff",
    "limits=x": "handoff",
    # Where and how fast a thing ran.
    "machine.threads=1": "",
    "machine.per_device_batch_size=1": "",
    "machine.gradient_checkpointing=true": "",
    "machine=cpu_zero3x2": "",
    "tracking=disabled": "",
    "work=elsewhere": "",
    "model.path=elsewhere": "",
}


def compose(*words: str) -> Recipe:
    return load(["recipe=maintenance", "model=smollm2_135m", "machine=cpu", *words])


@functools.cache
def before() -> dict[str, Any]:
    recipe = compose()
    return {name: identity(recipe, config) for name, config in CONFIGS.items()}


@pytest.mark.parametrize("word", CHANGES)
def test_a_change_does_again_what_it_can_change_and_nothing_else(word: str) -> None:
    recipe = compose(word)
    changed = [name for name, config in CONFIGS.items() if identity(recipe, config) != before()[name]]
    assert changed == CHANGES[word].split()
