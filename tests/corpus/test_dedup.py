"""Duplicates: sketches propose, the real similarity decides, the best copy stays."""

import random
import re
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.duplicates.run import measure, ours, read_shipped
from finetune.corpus import dedup
from finetune.corpus.dedup import Found, find_exact, jaccard, keys, normalise, shingles, sketches
from finetune.corpus.near import band_rows, find_near

TEXT = "replaced the broken left bucket tooth after the shovel hit a rock in the north pit on monday morning"
DATA = Path("data")


def exact(texts: Sequence[str]) -> list[tuple[int, int, float]]:
    return listed(find_exact(keys(texts)))


def near(texts: Sequence[str], threshold: float, scratch: Path | None = None) -> list[tuple[int, int, float]]:
    return listed(find_near(sketches(texts), threshold, lambda places: [texts[i] for i in places], scratch))


def listed(found: Found) -> list[tuple[int, int, float]]:
    return list(zip(found.dropped.tolist(), found.kept.tolist(), found.similarity.tolist(), strict=True))


def test_case_space_width_and_punctuation_make_no_difference() -> None:
    assert normalise("  Ｗork-Order:\tDONE!!") == normalise("work order done")
    assert exact(["Work order: done", "other", "work order done!!"]) == [(0, 2, 1.0)]


@given(st.text(st.one_of(st.characters(max_codepoint=127), st.characters())))
def test_plain_letters_are_normalised_as_all_others_are(text: str) -> None:
    """The short way for ASCII gives what Unicode's rules give."""
    assert normalise(f"{text} a") == normalise(f"{text} a\u3002")


def test_a_number_with_another_sign_is_another_text() -> None:
    """`-5` and `5`, `< 5` and `> 5` were exact duplicates, and texts of nothing but signs all the same."""
    differ = ["at -5 C", "at 5 C", "x < 5", "x > 5", "x ≤ 5", "x = 5", "p 0.5", "p 0 5", "+++", "---", "±5", "+5"]
    assert len({normalise(text) for text in differ}) == len(differ)
    assert not exact(differ)
    for one, same in (("x<5", "X  ＜ 5!"), ("at −5 C", "At -5 C."), ("2026-11-22", "2026 11 22"), ("A 5.", "a-5")):
        assert normalise(one) == normalise(same)
    assert normalise("at -0.5 C", signs=False) == "at 0 5 c"
    assert normalise("+++", signs=False) == ""


def test_the_longest_copy_is_kept_and_of_equals_the_first() -> None:
    assert exact(["a b", "a b", "a  b!", "c"]) == [(0, 2, 1.0), (1, 2, 1.0)]


def test_an_edited_copy_is_near_and_another_text_is_not() -> None:
    edited = TEXT.replace("monday", "tuesday")
    ((dropped, kept, similarity),) = near(
        [TEXT, edited, "grease line leaking at the boom pin, called the mechanic"], 0.8
    )
    assert (dropped, kept) == (0, 1)
    assert similarity == round(jaccard(shingles(TEXT), shingles(edited)), 4)


def test_near_duplicates_are_found_in_chinese_too() -> None:
    text = "当事人应当按照约定全面履行自己的义务,遵循诚实信用原则,根据合同的性质、目的和交易习惯履行通知等义务。"
    assert len(near([text, text.replace("按照", "依照"), "国家保护自然人的人身权利。"], 0.75)) == 1


def brute_force(texts: Sequence[str], threshold: float) -> list[tuple[int, int, float]]:
    """Better rows first, each compared with every kept one."""
    sets = [shingles(text) for text in texts]
    kept: list[int] = []
    found = []
    for index in sorted(range(len(texts)), key=lambda i: (-len(texts[i]), i)):
        best = max(((jaccard(sets[index], sets[other]), -other) for other in kept), default=(0.0, 0))
        if best[0] >= threshold:
            found.append((index, -best[1], round(best[0], 4)))
        else:
            kept.append(index)
    return sorted(found)


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.85, 0.95])
def test_it_drops_what_comparing_every_pair_drops(threshold: float) -> None:
    draw = random.Random(int(threshold * 100))
    words = TEXT.split()
    texts = []
    for _ in range(300):
        copy = list(words)
        for _ in range(draw.randrange(6)):
            copy[draw.randrange(len(copy))] = draw.choice(words)
        texts.append(" ".join(copy))
    expected = brute_force(texts, threshold)
    found = near(texts, threshold)
    assert len(expected) > 20
    assert [dropped for dropped, *_ in found] == [dropped for dropped, *_ in expected]
    assert all(similarity >= threshold - 1e-4 for *_, similarity in found)


@pytest.mark.parametrize(
    "path", ["maintenance/work_orders.csv", "legal/constitution_of_india.html", "finance/line_items.csv"]
)
def test_on_real_corpora_it_finds_what_comparing_every_pair_finds(path: str, tmp_path: Path) -> None:
    texts = [line for line in (DATA / path).read_text("utf-8").splitlines() if len(line) > 20][:700]
    expected = brute_force(texts, 0.85)
    assert near(texts, 0.85) == near(texts, 0.85, tmp_path) == expected
    assert expected
    assert not [*tmp_path.iterdir()]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text("ab c", max_size=12), max_size=12), st.sampled_from([0.6, 0.85, 1.0]))
def test_what_stands_for_a_dropped_row_is_kept(texts: list[str], threshold: float) -> None:
    found = near(texts, threshold)
    dropped = {row for row, *_ in found}
    assert not dropped & {kept for _, kept, _ in found}
    assert found == near(texts, threshold)
    assert [row for row, *_ in found] == [row for row, *_ in brute_force(texts, threshold)]


@given(st.lists(st.text(max_size=40), min_size=1, max_size=6), st.data())
def test_a_sketch_depends_on_its_text_alone(texts: list[str], data: st.DataObject) -> None:
    """Pieces of any size, in any process, make the same array."""
    cut = data.draw(st.integers(0, len(texts)))
    apart = np.concatenate((sketches(texts[:cut]), sketches(texts[cut:])))
    assert sketches(texts).tobytes() == apart.tobytes()
    assert dedup.sketch(texts[0]).tobytes() == apart[0].tobytes()
    assert (keys(texts)["key"] == apart["key"]).all()


def test_signatures_estimate_the_real_similarity_without_bias() -> None:
    draw = random.Random(3)
    words = re.findall(r"\w+", (DATA / "maintenance/work_orders.csv").read_text("utf-8"))
    pairs = []
    for edits in range(600):
        text = draw.choices(words, k=30)
        copy = list(text)
        for _ in range(edits % 12):
            copy[draw.randrange(30)] = draw.choice(words)
        pairs.append((" ".join(text), " ".join(copy)))
    made = [sketches(side)["signature"] for side in zip(*pairs, strict=True)]
    estimate = (made[0] == made[1]).mean(axis=1)
    real = np.array([jaccard(shingles(a), shingles(b)) for a, b in pairs])
    assert abs((estimate - real).mean()) < 0.005
    # The spread of 128 independent draws: a signature whose values hang together would have more.
    spread = np.sqrt(real * (1 - real) / 128)
    assert np.sqrt((((estimate - real)[spread > 0] / spread[spread > 0]) ** 2).mean()) < 1.1


def test_a_cluster_of_thousands_costs_no_comparison_of_every_pair() -> None:
    texts = [f"{TEXT}, order {number:05}" for number in range(8000)]
    read: list[int] = []

    def read_texts(places: Sequence[int]) -> list[str]:
        read.extend(places)
        return [texts[place] for place in places]

    began = time.process_time()
    found = find_near(sketches(texts), 0.8, read_texts)
    assert time.process_time() - began < 8
    assert len(found.dropped) == 7999
    assert dedup.clusters(found) == {"rows": 7999, "clusters": 1, "sizes": {"8000": 1}}
    assert len(read) < 2.2 * len(texts)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0])
def test_a_pair_at_the_threshold_is_nearly_never_missed(threshold: float) -> None:
    rows = band_rows(threshold)
    assert 1 - (1 - threshold**rows) ** (128 // rows) >= 0.9995


def test_on_labels_that_are_not_ours_it_finds_what_people_called_duplicates() -> None:
    """The threshold is chosen on one half of the clusters; what is held is said of the other."""
    texts, gold = read_shipped()
    assert (len(texts), len(gold)) == (1856, 909)
    assert measure(texts, gold, ours)["f1"] >= 0.95
