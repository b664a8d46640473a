"""Groups, not rows, are dealt to train, valid and test."""

import hashlib
from collections.abc import Sequence
from typing import Literal

from finetune.config.prepare import Split
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
