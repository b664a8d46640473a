"""Static checks of a model directory or a bundle, for whoever receives it: no torch, no transformers, headers only.

A server starts on most defective checkpoints and answers wrongly without a word, so each known kind is looked for.
"""

from collections.abc import Callable
from pathlib import Path

from finetune.errors import Problem
from finetune.verify import bundle, model

Say = Callable[[str], None]


def verify(directory: Path, *, deep: bool = False, say: Say = print) -> list[Problem]:
    """Everything that is wrong with a model directory, or with a bundle (which holds `model/`); empty: nothing found.

    `deep` also reads every byte: hashes against SHA256SUMS, and NaN or infinity in the weights.
    """
    if not directory.is_dir():
        return [Problem(str(directory), None, "there is no such folder", "give a model directory or a bundle")]
    if (directory / "model").is_dir():
        return bundle.check(directory, deep=deep, say=say)
    return model.check(directory, deep=deep, say=say)
