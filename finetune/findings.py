"""Finding: what VERIFY has found wrong in a checkpoint or a bundle, under the name that docs/verifying.md explains."""

from dataclasses import dataclass
from typing import Any

from finetune.errors import Problem


@dataclass(frozen=True)
class Finding(Problem):
    """A Problem of a file that somebody hands over; `name` is the rule's short name, for filters and tickets."""

    name: str

    def __str__(self) -> str:
        return printable(f"{super().__str__()} [{self.name}]")

    def to_json(self) -> dict[str, Any]:
        return {"rule": self.name, "path": self.path, "value": self.value, "why": self.rule, "fix": self.fix}


def printable(text: str) -> str:
    """One line, whatever a stranger's file said: no control character of it reaches a terminal."""
    return "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in text)


def finding(name: str, path: object, value: Any, rule: str, fix: str) -> Finding:
    """`rule` says what is wrong with `value` at `path`, `fix` what to do about it."""
    return Finding(str(path), value, rule, fix, name)


def named(name: str, problem: Problem) -> Finding:
    """A Problem of a lower floor, which knows nothing of rule names."""
    return Finding(problem.path, problem.value, problem.rule, problem.fix, name)
