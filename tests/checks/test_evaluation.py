"""What SCORE is asked to measure must fit the model."""

import pytest

from finetune.checks import check
from finetune.config import load


def problems(*words: str) -> list[str]:
    recipe = load(["recipe=legal", "model=smollm2_135m", "machine=cpu", *words])
    return [str(problem) for problem in check(recipe) if problem.path.startswith("score")]


def test_a_context_longer_than_the_model_is_refused_with_lengths_that_fit():
    (told,) = problems("score.context.lengths=[1024,4096,8161]")
    assert told.startswith("score.context.lengths=8161: with 32 tokens for the answer is more than the 8192 positions")
    assert "score.context.lengths=[1024,4096]" in told
    assert "score.context.lengths=[8160]" in problems("score.context.lengths=[9000]")[0]


@pytest.mark.parametrize("words", [(), ("score.context.lengths=[8160]",), ("score.context=null",)])
def test_contexts_that_fit_are_measured(words):
    assert problems(*words) == []


def test_long_contexts_are_made_of_training_rows():
    (told,) = problems("score.context.lengths=[512]", "tasks.title.train_rows=0", "tasks.term.train_rows=0")
    assert "needs training rows" in told
