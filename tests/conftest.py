"""Fixtures that every test may use, and the rule that in CI a skipped test is a failure."""

import os
import sys
from pathlib import Path

import pytest

from finetune import embedded, wheels

# The same surroundings whether the tests are started by `make test` or by hand; before anything imports torch.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HOME", str(wheels.home() / "huggingface"))
os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(wheels.home() / "torch_extensions"))
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # accelerate, finetune, ninja

_skipped: list[str] = []


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The embedded SmolLM2-135M-Instruct as a Hugging Face model directory (built by `make setup`)."""
    return embedded.build_smollm2(embedded.models())


@pytest.fixture(scope="session")
def tiny_qwen3() -> Path:
    """A tiny random Qwen3ForCausalLM with Qwen3's real tokenizer and chat template."""
    return embedded.build_tiny_qwen3(embedded.models())


def _in_ci() -> bool:
    return os.environ.get("CI", "").lower() in {"1", "true", "yes"}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped:
        _skipped.append(report.nodeid)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.skipped:
        _skipped.append(report.nodeid)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if _skipped and _in_ci() and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _skipped and _in_ci():
        terminalreporter.write_line(f"skipped in CI, which counts as failed: {', '.join(_skipped)}", red=True)
