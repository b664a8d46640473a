"""Reference scores are found again by content alone, and never for another content."""

from pathlib import Path
from typing import Any

import pytest

from finetune.reference import Scores, name_of, plan_batches, plan_rounds

PAIR: dict[str, Any] = {"id": "1", "prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [4, 5]}


def test_a_batch_is_scored_where_a_row_comes_for_the_first_time() -> None:
    """The first step is made of such batches, which is why its margin is zero to the last bit."""
    assert plan_batches([0, 1, 2, 3, 1, 0, 4, 2], 2) == [[0, 1], [2, 3], [4, 2]]
    assert plan_batches([0, 1, 2], 2) == [[0, 1], [2]]


@pytest.mark.parametrize(
    "other",
    [{"prompt_ids": [1, 3]}, {"chosen_ids": [6]}, {"rejected_ids": [4]}, {"prompt_ids": [1], "chosen_ids": [2, 3]}],
)
def test_another_token_is_another_batch_and_another_name_is_not(other: dict[str, Any]) -> None:
    assert name_of([{**PAIR, **other}]) != name_of([PAIR])
    assert name_of([{**PAIR, "id": "2", "row": 7}]) == name_of([PAIR])


def test_the_batch_a_pair_stands_in_belongs_to_its_content() -> None:
    """Sums differ in the last bits between batches: a score from another batch would put the first margin off zero."""
    other = {**PAIR, "chosen_ids": [9]}
    assert len({name_of(batch) for batch in ([PAIR], [PAIR, other], [other, PAIR])}) == 3


def test_scores_come_back_exactly_and_a_torn_line_is_cut_off(tmp_path: Path) -> None:
    scores = Scores(tmp_path, {"adapter": "a"})
    assert scores.read() == {}
    scores.add({"one": [(-1 / 3, -2e-7)], "two": [(0.1, 0.2), (0.3, 0.4)]})
    whole = scores.file.read_bytes()
    scores.file.write_bytes(whole[:-5])
    assert scores.read() == {"one": [(-1 / 3, -2e-7)]}
    scores.add({"two": [(0.1, 0.2), (0.3, 0.4)]})
    assert scores.file.read_bytes() == whole
    assert Scores(tmp_path, {"adapter": "b"}).read() == {}


def test_ranks_share_batches_of_one_size_and_repeat_what_is_left() -> None:
    """A gather of unequal batches hangs; every batch is measured, and by whom does not matter."""
    batches = [["a", "b"], ["c", "d"], ["e", "f"], ["g"]]
    assert plan_rounds(batches, 1) == [[batch] for batch in batches]
    assert plan_rounds(batches, 2) == [batches[:2], [batches[2]] * 2, [batches[3]] * 2]
