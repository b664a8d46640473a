"""Rules of what SCORE is asked to measure."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator

from finetune.config import Recipe
from finetune.config.evaluation import CONTEXT_ANSWER
from finetune.errors import Problem, RecipeError


def check_score(recipe: Recipe) -> Iterator[Problem]:
    try:
        recipe.latency  # noqa: B018 - HANDOFF reads it, when all is trained
    except RecipeError as error:
        yield from error.problems
    if unknown := [mode for mode in recipe.score.modes if mode not in recipe.model.modes]:
        yield Problem(
            "score.modes", list(recipe.score.modes),
            f"the chat template of {recipe.model.name} has no mode {unknown[0]!r} (model.modes={recipe.model.modes})",
            "score.modes=[]",
        )
    asked, room = recipe.score.context, recipe.model.positions - CONTEXT_ANSWER
    if asked is not None and max(asked.lengths) > room:
        fit = sorted(length for length in asked.lengths if length <= room) or [room]
        yield Problem(
            "score.context.lengths", max(asked.lengths),
            f"with {CONTEXT_ANSWER} tokens for the answer is more than the {recipe.model.positions} positions of "
            f"{recipe.model.name}",
            f"score.context.lengths={fit}".replace(" ", "") + ", or more positions (model.rope_parameters)",
        )  # fmt: skip
    if asked is not None and not any(task.train_rows for task in recipe.tasks.values()):
        yield Problem(
            "score.context", None, "needs training rows, of whose text the long contexts are made", "score.context=null"
        )


def check_harness(recipe: Recipe) -> Iterator[Problem]:
    """Tasks that lm-eval does not know or has no data for; found in a process of its own (8 s)."""
    asked = list(recipe.score.harness.tasks)
    if not asked:
        return
    if importlib.util.find_spec("lm_eval") is None:
        fix = "pip install --no-deps --require-hashes -r requirements/dev.txt, or score.harness.tasks=[]"
        yield Problem("score.harness.tasks", asked, "lm-eval is not installed", fix)
        return
    command = [sys.executable, "-m", "finetune.score.harness", *asked]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for found in json.loads(done.stdout.splitlines()[-1]):
        yield Problem("score.harness.tasks", *found)
