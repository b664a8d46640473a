"""What every contender is asked to do, and the command with which it does it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parents[2]

SFT: dict[str, Any] = {"learning_rate": 1e-3, "max_length": 256, "batch_size": 8, "steps": 60}
DPO: dict[str, Any] = {"learning_rate": 2e-5, "max_length": 256, "batch_size": 8, "steps": 16, "beta": 0.1}
LORA: dict[str, Any] = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0}
"""The numbers of `recipe=maintenance model=smollm2_135m`, linear schedule without warm-up. 8 pairs are 16 sequences."""
THREADS = 2
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
"""What SmolLM2's own template puts before a conversation that has no system turn."""


@dataclass(frozen=True)
class Job:
    """`rows` holds the exported files (rows.py), `base` the model, `adapter` what DPO starts from; work in `out`.

    `seed` draws the order of the rows and the random half of the adapter.
    """

    kind: Literal["sft", "dpo"]
    variant: str
    rows: Path
    base: Path
    adapter: Path
    out: Path
    seed: int = 0

    @property
    def numbers(self) -> dict[str, Any]:
        return SFT if self.kind == "sft" else DPO


@dataclass(frozen=True)
class Command:
    """`adapter` is where the trained adapter will lie."""

    words: list[str]
    adapter: Path
    environment: dict[str, str] = field(default_factory=dict)
    at: Path | None = None
    """Where it is started; None: in a folder of its own, because peers leave caches behind."""
