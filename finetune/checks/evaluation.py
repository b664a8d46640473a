"""Rules of what SCORE is asked to measure."""

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
