"""The maintenance recipe with something changed in it, and what the checks say of it."""

import copy
import functools

from finetune.checks import check
from finetune.config.load import compose, validate
from finetune.errors import Problem
from finetune.memory import Gpu, Here

CPU = Here(gpus=(), cores=2, memory_gib=24.0, disk_free_gib=100.0)
EIGHT = Here(gpus=(Gpu("A100-80GB", 80.0),) * 8, cores=64, memory_gib=1024.0, disk_free_gib=1000.0)
SMALL = ("model=smollm2_135m", "machine=cpu")
LARGE = ("model=qwen3_32b", "machine=a100x8")


@functools.cache
def _composed(words):
    return compose(["recipe=maintenance", *words])


def recipe_with(changes, words=SMALL):
    """The maintenance recipe with dotted keys set."""
    plain = copy.deepcopy(_composed(words))
    for path, value in changes.items():
        *folders, name = path.split(".")
        section = plain
        for folder in folders:
            section = section[folder] if section.get(folder) is not None else section.setdefault(folder, {})
        section[name] = value
    return validate(plain)


def problems(changes, words=SMALL, environment=None, **presence):
    return check(recipe_with(changes, words), environment=environment or {}, **presence)


def only(changes, words=SMALL, environment=None, **presence) -> Problem:
    found = problems(changes, words, environment, **presence)
    assert len(found) == 1, [str(problem) for problem in found]
    return found[0]
