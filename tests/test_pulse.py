"""The ranks that wait hear whether the first one lives, how it failed, and are not misled by an earlier run."""

import json
import time
from pathlib import Path

import pytest

from finetune import pulse
from finetune.errors import Preempted
from finetune.pulse import FILE, Listener, Pulse


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(pulse, "STALE_SECONDS", 0.2)
    monkeypatch.setattr(pulse, "SILENT_SECONDS", 0.5)


def listen(listener: Listener, seconds: float) -> tuple[int, str] | None:
    """What the listener learns within so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (failure := listener.failure()) is not None:
            return failure
        time.sleep(0.01)
    return None


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [(Preempted("sft", 3, 9), 75, "sft: stopped by SIGTERM after step 3 of 9"), (ValueError("broken"), 2, "broken"),
     (SystemExit(137), 137, "see what it said itself"), (KeyboardInterrupt(), 2, "KeyboardInterrupt")],
)  # fmt: skip
def test_a_failure_is_heard_at_once_with_its_code(tmp_path: Path, error: BaseException, code: int, words: str) -> None:
    listener, first = Listener(tmp_path), Pulse(tmp_path)
    first.__enter__()
    assert listen(listener, 0.7) is None, "a first rank that works for long is not silent"
    first.__exit__(type(error), error, None)
    heard = listener.failure()
    assert heard is not None
    assert heard[0] == code
    assert words in heard[1]


def test_the_failure_of_an_earlier_run_counts_only_when_nobody_replaces_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="old"), Pulse(tmp_path):
        raise ValueError("old")
    listener = Listener(tmp_path)
    assert listen(listener, 0.1) is None
    with Pulse(tmp_path):
        assert listen(listener, 0.4) is None
    late = Listener(tmp_path)
    (tmp_path / FILE).write_text(json.dumps({"launch": "a", "beat": -1, "failed": {"code": 2, "message": "old"}}))
    assert listen(late, 2) == (2, "the first rank failed: old")


@pytest.mark.parametrize("left", [None, "{", json.dumps({"launch": "a", "beat": 7, "failed": None})])
def test_silence_ends_the_wait_whatever_was_left_behind(tmp_path: Path, left: str | None) -> None:
    if left is not None:
        (tmp_path / FILE).write_text(left)
    heard = listen(Listener(tmp_path), 3)
    assert heard is not None
    assert heard[1].startswith("no sign of life from the first rank")


def test_a_long_training_between_two_waits_is_no_silence(tmp_path: Path) -> None:
    listener = Listener(tmp_path)
    time.sleep(0.6)
    listener.begin()
    assert listener.failure() is None


def test_a_run_that_ends_well_leaves_nothing(tmp_path: Path) -> None:
    with Pulse(tmp_path):
        pass
    assert not list(tmp_path.iterdir())
