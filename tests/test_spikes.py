"""A spike is called by the stated rule: nothing else, and never on what training looks like when it goes well."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from finetune.spikes import FEWEST, WINDOW, spike_in


def curve(steps: int, *, seed: int = 0, **last: float) -> list[dict[str, Any]]:
    """A falling loss with noise as SFT has it; `last` replaces numbers of the last step."""
    draw = random.Random(seed)
    lines = [
        {"step": step, "loss": 1 + 2 * math.exp(-step / 20) + draw.gauss(0, 0.1), "grad_norm": draw.uniform(0.5, 2)}
        for step in range(1, steps + 1)
    ]
    lines[-1].update(last)
    return lines


def test_a_planted_spike_is_named_with_its_number_and_the_usual() -> None:
    assert spike_in(curve(40)) is None
    said = spike_in(curve(40, loss=9.0))
    assert said is not None
    assert said.startswith("loss 9, where the 20 steps before it had at most 1.")
    said = spike_in(curve(40, grad_norm=50.0))
    assert said is not None
    assert said.startswith("gradient norm 50, where")


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_healthy_runs_of_a_recipe_have_none(stage: str) -> None:
    """Batches differ by kind: a rule with a median and a spread found three spikes in the first of these curves."""
    found = json.loads((Path(__file__).parent / "curves.json").read_text())[stage]
    lines = [{"loss": loss, "grad_norm": norm} for loss, norm in zip(found["loss"], found["grad_norm"], strict=True)]
    assert len(lines) > FEWEST + 5
    assert [spike_in(lines[:end]) for end in range(1, len(lines) + 1)] == [None] * len(lines)
    assert spike_in([*lines, {"loss": 10.8, "grad_norm": 1.0}]) is not None, "a model that only guesses is seen"


def test_a_dip_and_a_loss_just_within_the_rule_are_none() -> None:
    flat = [{"step": step, "loss": 1.0, "grad_norm": 1.0} for step in range(1, 31)]
    for last, spike in (({"loss": 0.1}, False), ({"loss": 1.5}, False), ({"loss": 1.51}, True),
                        ({"grad_norm": 3.0}, False), ({"grad_norm": 3.1}, True)):  # fmt: skip
        assert (spike_in([*flat, {"step": 31, "loss": 1.0, "grad_norm": 1.0, **last}]) is not None) == spike, last
    below_zero = [{"loss": -1.0, "grad_norm": 1.0}] * 20
    assert spike_in([*below_zero, {"loss": -0.6, "grad_norm": 1.0}]) is None
    assert spike_in([*below_zero, {"loss": -0.4, "grad_norm": 1.0}]) is not None


@pytest.mark.parametrize(("before", "spike"), [(FEWEST - 1, False), (FEWEST, True)])
def test_nothing_is_a_spike_before_there_is_something_to_compare_with(before: int, spike: bool) -> None:
    assert (spike_in(curve(before + 1, loss=50.0)) is not None) == spike


def test_only_the_window_counts_so_a_resumed_run_warns_as_an_undisturbed_one() -> None:
    long = curve(200, seed=3, loss=3.2)
    assert spike_in(long) == spike_in(long[-WINDOW - 1 :])
    assert spike_in(json.loads(json.dumps(long))) == spike_in(long)


def test_a_run_that_stays_broken_is_told_when_it_gets_worse_and_not_at_every_step() -> None:
    lines = curve(40, loss=9.0)
    assert spike_in([*lines, {"loss": 10.0, "grad_norm": 1.0}]) is None
    assert spike_in([*lines, {"loss": 14.0, "grad_norm": 1.0}]) is not None
