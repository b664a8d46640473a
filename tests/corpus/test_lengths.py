"""A text that is too long is cut at its own boundaries, and nothing of it is lost."""

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.corpus.lengths import split_text


def at_most(limit: int) -> Callable[[str], bool]:
    return lambda text: len(text) <= limit


def test_paragraphs_come_before_lines_and_lines_before_sentences() -> None:
    text = "One. Two.\nThree.\n\nFour. Five.\n\nSix."
    assert split_text(text, at_most(100)) == [text]
    assert split_text(text, at_most(30)) == ["One. Two.\nThree.\n\nFour. Five.", "Six."]
    assert split_text(text, at_most(12)) == ["One. Two.", "Three.", "Four. Five.", "Six."]
    assert split_text(text, at_most(6)) == ["One.", "Two.", "Three.", "Four.", "Five.", "Six."]
    assert split_text(text, at_most(5)) is None


def test_chinese_sentences_are_cut_without_a_space() -> None:
    text = "国家鼓励发明创造。专利权受法律保护；任何人不得侵犯！第三句"
    assert split_text(text, at_most(12)) == ["国家鼓励发明创造。", "专利权受法律保护；", "任何人不得侵犯！第三句"]


@settings(max_examples=300, deadline=None)
@given(st.text("ab. 。\n条", max_size=120), st.integers(1, 40))
def test_every_part_fits_and_together_they_are_the_text(text: str, limit: int) -> None:
    parts = split_text(text, at_most(limit))
    if parts is None:
        assert len(text) > limit
        return
    assert all(len(part) <= limit for part in parts)
    assert "".join("".join(parts).split()) == "".join(text.split())
    assert len(parts) == 1 or all(part.strip() for part in parts)


def test_a_longer_text_is_looked_at_no_more_often_than_a_short_one() -> None:
    """The whole rest was handed to the tokenizer for each part: quadratic in the text."""
    for one, apart in (("Four words stand here.", " "), ("One line", "\n"), ("One paragraph.", "\n\n"), ("句。", "")):
        looked: list[int] = []
        for count in (300, 3000):
            seen = 0

            def fits(text: str) -> bool:
                nonlocal seen
                seen += len(text)
                return len(text) <= 100

            text = apart.join([one] * count)
            parts = split_text(text, fits)
            assert parts is not None
            assert "".join("".join(parts).split()) == "".join(text.split())
            looked.append(seen // count)
        assert looked[1] <= 1.2 * looked[0]
