"""RecipeError: what the user can fix by editing something. Everything else that goes wrong is a bug of ours."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, in the four parts that a reader needs to mend it.

    `path` is a config path (`sft.batch_size`), a command line word, or `file:line`; `value` is what stands there
    (None when nothing does); `rule` is the sentence it breaks; `fix` is what to type next.
    """

    path: str
    value: Any
    rule: str
    fix: str

    def __str__(self) -> str:
        head = self.path if self.value is None else f"{self.path}={_short(self.value)}"
        return f"{head}: {self.rule}: {self.fix}"


class RecipeError(Exception):
    """One or more problems that the user can mend, reported together, once, without a traceback (exit code 2)."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: Sequence[Problem] = tuple(problems)
        assert self.problems, "a RecipeError without a problem says nothing"
        super().__init__(self.render())

    def __reduce__(self) -> tuple[Any, ...]:
        """From another process it comes with its problems; an exception alone would be made again from its text."""
        return type(self), (self.problems,)

    @classmethod
    def one(cls, path: str, value: Any, rule: str, fix: str) -> "RecipeError":
        return cls([Problem(path, value, rule, fix)])

    def render(self) -> str:
        if len(self.problems) == 1:
            return str(self.problems[0])
        return f"{len(self.problems)} problems:\n" + "\n".join(f"  {problem}" for problem in self.problems)


class Preempted(SystemExit):
    """SIGTERM came during training: a checkpoint is sealed and nothing was published. Exit code 75 (EX_TEMPFAIL).

    A scheduler that sees 75 runs the same command again, and training goes on after the step named here.
    """

    EXIT_CODE = 75

    def __init__(self, stage: str, step: int, steps: int) -> None:
        super().__init__(self.EXIT_CODE)
        self.message = f"{stage}: stopped by SIGTERM after step {step} of {steps}; the same command goes on from there"


def _short(value: Any, limit: int = 120) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= limit else text[: limit - 1] + "…"
