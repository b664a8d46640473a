"""Groups, not rows, are dealt to train, valid and test; what leaks across the sides is found and dropped."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Literal

from finetune.config.prepare import Split
from finetune.corpus.dedup import normalise
from finetune.corpus.times import side_at

Side = Literal["train", "valid", "test"]
SIDES: tuple[Side, ...] = ("train", "valid", "test")


def side_of(group: str, seed: int, split: Split, latest: float | None = None) -> Side:
    """Where all rows of this group go. It depends on the group's name and the seed alone, so that adding rows, files
    or tasks never moves a group, and two sources that name the same group share its side. With a split by time it
    depends on `latest`, the seconds of the group's latest row (see corpus.latest); None where its source has none."""
    if split.time is not None and latest is not None:
        return SIDES[side_at(latest, split.time)]
    point = draw(seed, "split", group)
    if point < split.test:
        return "test"
    return "valid" if point < split.test + split.valid else "train"


def draw(seed: int, *names: str) -> float:
    """A number in [0, 1) that is the same on every machine."""
    digest = hashlib.blake2b("\0".join((str(seed), *names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def choose(ids: Sequence[str], count: int, seed: int, purpose: str) -> set[str]:
    """`count` of the ids, drawn by hash: which ones does not depend on their order."""
    return set(sorted(ids, key=lambda name: (draw(seed, purpose, name), name))[:count])


_CJK = re.compile(r"([\u3400-\u9fff\uf900-\ufaff])")


def words(text: str) -> list[str]:
    """Normalised words; each Chinese character counts as one, since no spaces stand between them."""
    return _CJK.sub(r" \1 ", normalise(text)).split()


def ngrams(text: str, n: int) -> set[tuple[str, ...]]:
    found = words(text)
    return {tuple(found[i : i + n]) for i in range(len(found) - n + 1)}


class EvaluationIndex:
    """What the evaluation rows say, to be looked for in training rows.

    Built from the values that fill the templates, never from the templates, whose words all rows share.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self._ngrams: dict[tuple[str, ...], str] = {}
        self._prompts: dict[str, str] = {}

    def add(self, name: str, values: Iterable[str], prompt_values: Sequence[str] = ()) -> None:
        """`values`: prompt and answer columns of the evaluation row `name`; `prompt_values`: those of its prompt."""
        for value in values:
            for gram in ngrams(value, self.n):
                self._ngrams.setdefault(gram, name)
        if key := self._prompt_key(prompt_values):
            self._prompts.setdefault(key, name)

    def find(self, values: Iterable[str], prompt_values: Sequence[str] = ()) -> tuple[str, str] | None:
        """(evaluation row, shared passage) for a training row that says the same, or None."""
        key = self._prompt_key(prompt_values)
        if key and key in self._prompts:
            return self._prompts[key], "the whole prompt"
        for value in values:
            found = words(value)
            for i in range(len(found) - self.n + 1):
                gram = tuple(found[i : i + self.n])
                if gram in self._ngrams:
                    return self._ngrams[gram], " ".join(gram)
        return None

    @staticmethod
    def _prompt_key(values: Sequence[str]) -> str:
        # A row too short for one n-gram is caught when its whole prompt is an evaluation row's.
        return "\0".join(" ".join(words(value)) for value in values).strip("\0")
