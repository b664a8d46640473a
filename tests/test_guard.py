"""A spike is told once, with its records, in a run that was stopped before it as in one that was not; and looking at a
model changes nothing in it."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from finetune import sft
from finetune.artifacts import Artifact, build
from finetune.errors import Preempted
from tests import tiny

pytestmark = pytest.mark.slow
STEPS, SPIKE, STOP = 16, 13, 5


class Terminating(tiny.Silent):
    """Sends SIGTERM to its own process when step STOP is logged: training ends after the step that follows."""

    def log(self, prefix: str, metrics: dict[str, Any], step: int) -> None:
        if step == STOP:
            os.kill(os.getpid(), signal.SIGTERM)


def train(root: Path, tracker: tiny.Silent, **changes: Any) -> Artifact:
    inputs = {"base": tiny.make_base(root / "base"), "prepared": tiny.make_prepared(root / "prepared")}
    usual = {"max_steps": STEPS, "save_steps": 100, "eval_steps": 100, "log_steps": 1, "trl": {"learning_rate": 1e-3}}
    config = tiny.sft_config(**{**usual, **changes})
    return build(sft.SFT_STAGE, config, root=root, inputs=inputs, machine=tiny.machine(), tracker=tracker)


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of one step is fifty times what it is."""
    from trl import SFTTrainer

    original = SFTTrainer.compute_loss

    def compute_loss(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = original(self, *args, **kwargs)
        return loss * 50 if self.state.global_step + 1 == SPIKE else loss

    monkeypatch.setattr(SFTTrainer, "compute_loss", compute_loss)


def warnings(said: str) -> list[str]:
    return [line for line in said.splitlines() if "warning" in line]


def test_a_planted_spike_is_told_with_its_records_and_a_resume_changes_nothing(
    tmp_path: Path, planted: None, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train(tmp_path / "straight", tiny.Silent())
    (told,) = warnings(capsys.readouterr().out)
    assert told.startswith(f"sft: warning: step {SPIKE}: loss ")
    assert whole.facts["spikes"] == 1
    lines = [json.loads(line) for line in whole.file("log.jsonl").read_text().splitlines()]
    (spike,) = [line["spikes"] for line in lines if "spikes" in line]
    assert spike[0]["step"] == SPIKE
    assert len(spike[0]["records"]) == 4
    assert all(record in told for record in spike[0]["records"])

    with pytest.raises(Preempted):
        train(tmp_path / "stopped", Terminating())
    assert warnings(capsys.readouterr().out) == []
    resumed = train(tmp_path / "stopped", tiny.Silent())
    after = capsys.readouterr().out
    # Fewer than ten steps are its own before the spike: the rule looks back over the stop.
    assert f"going on after step {STOP + 1} of {STEPS}" in after
    assert warnings(after) == [told]
    for name in ("log.jsonl", "adapter_model.safetensors"):
        assert resumed.file(name).read_bytes() == whole.file(name).read_bytes()


def test_without_a_spike_nothing_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = train(tmp_path, tiny.Silent())
    assert warnings(capsys.readouterr().out) == []
    assert made.facts["spikes"] == 0


def test_evaluating_between_the_steps_leaves_training_in_4_bit_as_it_was(tmp_path: Path) -> None:
    """On AVX512-bf16 CPUs the first forward in eval mode repacked the weights; every later gradient was wrong."""
    settings = {"method": tiny.QLORA, "model": {**tiny.MODEL, "dtype": "bfloat16"}, "max_steps": 4}
    often = train(tmp_path / "often", tiny.Silent(), eval_steps=1, **settings)
    once = train(tmp_path / "once", tiny.Silent(), eval_steps=4, **settings)
    assert len(often.file("log.jsonl").read_text().split("eval_loss")) == 5
    name = "adapter_model.safetensors"
    assert often.file(name).read_bytes() == once.file(name).read_bytes()
