"""What a page did to a text is undone, and nothing else is: furniture, torn words, lines of a paragraph."""

import re
import time
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.config.data import Layout
from finetune.corpus.layout import Page, Tidied, find_furniture, join_lines, pages_of, paragraphs, tidy_pages

DATA = Path(__file__).parents[2] / "data"
ALL = Layout(furniture=True, hyphens=True, lines=True)


def page(*lines: str, number: int = 1) -> Page:
    return Page(lines, (number,) * len(lines))


def tidied(text: str, layout: Layout) -> tuple[str, Tidied]:
    pages, counts = tidy_pages([page(*text.split("\n"))], layout)
    return "\n".join(pages[0].lines), counts


def book(pages: int, lines: int = 8) -> list[list[str]]:
    """Pages with a head on the left and one on the right, a foot that counts, and lines that all differ."""
    made = []
    for n in range(pages):
        body = [f"Line {n * n}.{i} of the body, which says something of its own" for i in range(lines)]
        head = "Handbook of Pumps" if n % 2 else "Chapter 2: Valves"
        made.append([head, "", *body, "", f"ACME GmbH · Page {n + 7} of 40"])
    return made


def test_heads_and_feet_go_and_nothing_else_does() -> None:
    pages = book(9)
    gone = find_furniture(pages)
    assert [sorted(found) for found in gone] == [[0, len(pages[0]) - 1]] * 9


def test_chinese_and_roman_page_numbers_are_page_numbers() -> None:
    roman = ["i", "ii", "iii", "iv", "v"]
    chinese = ["九", "十", "十一", "十二", "十三"]
    pages = [[f"第{chinese[n]}页", f"第{n * n}段正文内容各不相同。", f"- {roman[n]} -"] for n in range(5)]
    assert find_furniture(pages) == [{0, 2}] * 5


def test_a_heading_that_counts_up_with_its_page_stays() -> None:
    pages = [[f"Article {n}", f"Text of its own {n * n}.", f"第{n}条 内容{n * 3}。"] for n in range(1, 8)]
    assert find_furniture(pages) == [set()] * 7


def test_a_line_that_repeats_behind_one_that_does_not_stays() -> None:
    assert find_furniture([[f"Part {n * n}", "Fill in all fields.", f"{n * 7} items"] for n in range(5)]) == [set()] * 5


def test_two_pages_are_too_few_to_know_a_head_by() -> None:
    assert find_furniture([["Handbook", "one", "1"], ["Handbook", "two", "2"]]) == [set(), set()]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(st.sampled_from(["head", "a b", "", "3", "4", "条 1", "zz"]), max_size=6), max_size=9))
def test_what_is_removed_stood_at_an_edge_of_three_pages_and_is_counted(lines: list[list[str]]) -> None:
    pages = [Page(tuple(found), tuple(range(len(found)))) for found in lines]
    left, counts = tidy_pages(pages, Layout(furniture=True))
    removed = sum(len(p.lines) for p in pages) - sum(len(p.lines) for p in left)
    assert counts.counts["furniture"] == removed
    for before, after, gone in zip(pages, left, find_furniture(lines), strict=True):
        assert list(after.lines) == [line for i, line in enumerate(before.lines) if i not in gone]
    assert len(lines) >= 3 or not removed


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text("ab-C 条约，.1\n", max_size=40), max_size=4))
def test_joining_loses_no_letter_and_no_order(texts: list[str]) -> None:
    pages = [page(*text.split("\n"), number=n) for n, text in enumerate(texts)]
    left, _ = tidy_pages(pages, Layout(hyphens=True, lines=True))

    def letters(found: list[Page]) -> str:
        return re.sub(r"[\s-]", "", "".join(line for p in found for line in p.lines))

    assert letters(left) == letters(pages)


def test_a_torn_word_is_joined_as_the_document_writes_it() -> None:
    text = "a trans-\nport and a long-\nterm plan.\ntransport, long-term; an unseen gad-\nget"
    joined, counts = tidied(text, Layout(hyphens=True))
    assert joined.split("\n")[:3] == ["a transport", "and a long-term", "plan."]
    assert "gad-\nget" in joined
    assert dict(counts.counts) == {"hyphens": 1, "hyphens kept": 1, "hyphens left": 1}


def test_no_hyphen_is_looked_for_between_chinese_characters() -> None:
    text = "合同法-\n第十二条 合同法第十二条"
    assert tidied(text, Layout(hyphens=True))[0] == text


def test_lines_are_joined_with_a_space_only_where_one_belongs() -> None:
    assert join_lines("the pump", "leaks", False) == "the pump leaks"
    assert join_lines("合同", "法律", True) == "合同法律"
    assert join_lines("合同法，", "ABC 公司", True) == "合同法，ABC 公司"
    assert join_lines("使用", "Python", False) == "使用Python"
    assert join_lines("使用", "Python", True) == "使用 Python"
    assert join_lines("he said “hello”", "and left", False) == "he said “hello” and left"
    assert join_lines("所称“约定”", "是指", True) == "所称“约定”是指"
    assert join_lines("long-", "term", False) == "long-term"


def test_a_paragraph_of_many_lines_does_not_cost_its_square() -> None:
    """A paragraph was copied and searched whole for each line that it grew by."""
    lines = [f"line number {n} goes on and on until the page is full of words" for n in range(30_000)]
    begun = time.process_time()
    (whole,), _ = tidy_pages([page(*lines)], Layout(lines=True))
    assert whole.lines == (" ".join(lines),)
    assert time.process_time() - begun < 5


def test_a_line_of_one_long_word_does_not_cost_its_square() -> None:
    line = "x" * 60_000 + " a-"
    begun = time.process_time()
    assert tidied(f"{line}\nb", Layout(hyphens=True))[0] == f"{line}\nb"
    assert tidied("x" * 60_000 + "\nb", Layout(hyphens=True))[0] == "x" * 60_000 + "\nb"
    assert time.process_time() - begun < 2


def test_lists_headings_and_new_paragraphs_begin_lines_of_their_own() -> None:
    lines = ["This line is as long as lines are in this document here", "and goes on to its end."]
    lines += ["1. The first thing is as long as the lines of this text"]
    lines += ["(b) another that is as long as its neighbours are"]
    lines += ["Section 3 is as long as a line of the document can get"]
    lines += ["    An indented line that begins a paragraph of", "its own."]
    joined, _ = tidied("\n".join(lines), Layout(lines=True))
    assert joined.split("\n") == [" ".join(lines[:2]), *lines[2:5], " ".join(lines[5:])]


def test_a_paragraph_goes_on_over_the_end_of_a_page_unless_pages_are_rows() -> None:
    first = page("为了保护专利权人的合法权益，鼓励发明创", "造，推动发明创造的应用，提高创新能力，促", number=1)
    second = page("进科学技术进步和经济社会发展，制定本法。", "第二条 本法所称的发明创造是指发明。", number=2)
    whole = "".join(first.lines) + second.lines[0]
    over, _ = tidy_pages([first, second], ALL)
    assert [line for found in over for line in found.lines] == [whole, "第二条 本法所称的发明创造是指发明。"]
    apart, _ = tidy_pages([first, second], ALL, over_pages=False)
    assert [len(found.lines) for found in apart] == [1, 2]


def test_a_text_with_form_feeds_has_pages_and_keeps_its_line_numbers() -> None:
    text = "HEAD\n\none is a line that goes on\n\f\nHEAD\n\nover the page\n\ntwo.\n\fHEAD\n\nthree\n"
    pages, counts = tidy_pages(pages_of(text), Layout(furniture=True))
    assert counts.counts["furniture"] == 3
    found = paragraphs(pages)
    assert found == [("one is a line that goes on\nover the page", 3), ("two.", 9), ("three", 12)]
    assert [text.split("\n")[number - 1] for _, number in found[1:]] == ["two.", "three"]


# --- on real text, wrapped by a program -------------------------------------------------------------------------------


def wrap(texts: list[str], width: int) -> tuple[list[str], dict[int, str]]:
    """Lines of at most `width`, words torn before a vowel's consonant; and line index -> the word that was torn."""
    lines: list[str] = []
    torn: dict[int, str] = {}
    for text in texts:
        line = ""
        for word in text.split():
            room = width - len(line) - bool(line) - 1
            if len(line) + bool(line) + len(word) <= width:
                line = f"{line} {word}" if line else word
                continue
            cuts = [m.start() + 1 for m in re.finditer(r"[aeiou][bcdfghklmnprstvw](?=[aeiou])", word)]
            cuts = [cut for cut in cuts if 2 <= cut <= min(room, len(word) - 3)]
            if cuts and re.fullmatch(r"[A-Za-z]+", word):
                lines.append(f"{line} {word[: cuts[-1]]}-".strip())
                torn[len(lines) - 1] = word
                line = word[cuts[-1] :]
            else:
                lines.append(line)
                line = word
        lines += [line, ""]
    return lines, torn


def test_words_torn_by_a_program_in_real_text_are_made_whole_and_never_wrongly() -> None:
    right = joined = of = 0
    for name in ("us_constitution.txt", "cfr_34_part_668.txt"):
        text = (DATA / "legal" / name).read_text(encoding="utf-8")
        texts = [" ".join(found.split()) for found in re.split(r"\n\s*\n", text) if found.strip()]
        lines, torn = wrap(texts, 60)
        (left,), counts = tidy_pages([Page(tuple(lines), tuple(range(len(lines))))], Layout(hyphens=True))
        ends = dict(zip(left.numbers, left.lines, strict=True))
        right += sum(ends[i].split()[-1] == word for i, word in torn.items())
        joined, of = joined + counts.counts["hyphens"], of + len(torn)
    assert of > 100
    assert joined == right
    assert right / of > 0.75
