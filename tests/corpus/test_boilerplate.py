"""Paragraphs that many groups share are taken out, counted, and nothing else is."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.corpus.boilerplate import Keys, find_common, hash_paragraphs, key, without

NOTICE = "This e-mail is confidential and meant for its reader alone."
CHINESE = "本邮件内容仅供收件人阅读，请勿转发。"


def common(texts: list[tuple[str, str]], most: int) -> Keys:
    """texts: (group, text)."""
    pairs = [(paragraph, key(group)) for group, text in texts for paragraph in hash_paragraphs([text])]
    return find_common([a for a, _ in pairs], [b for _, b in pairs], most)


def test_a_notice_in_three_documents_goes_and_the_rest_keeps_its_blank_lines() -> None:
    notices = [(f"d{i}", i, notice) for i in range(3) for notice in (NOTICE, CHINESE)]
    texts = [(group, f"Pump {i} leaks.\n\n{notice}\n\n\nKind regards") for group, i, notice in notices]
    found = common(texts, most=2)
    assert sorted(found.tolist()) == sorted(map(key, (NOTICE.casefold(), CHINESE)))
    assert without(texts[0][1], found) == ("Pump 0 leaks.\n\nKind regards", [NOTICE])
    assert without(texts[1][1].replace("请勿转发", "请勿 转发"), found)[1] == []
    assert without(f"{NOTICE.upper()}\n\n{CHINESE}", found) == ("", [NOTICE.upper(), CHINESE])


def test_rows_of_one_group_count_once_and_short_lines_never() -> None:
    assert common([("one", NOTICE)] * 9 + [("two", NOTICE)], most=2).size == 0
    assert common([(f"d{i}", "Kind regards\n\nBucket") for i in range(9)], most=2).size == 0


PARTS = st.sampled_from([NOTICE, CHINESE, "short", "A paragraph that only some of the documents have.", ""])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.lists(PARTS).map("\n\n".join)), max_size=12), st.integers(1, 3))
def test_what_is_taken_stands_in_more_groups_than_allowed_and_what_stays_does_not(
    texts: list[tuple[str, str]], most: int
) -> None:
    groups = {part: {g for g, text in texts if part in text.split("\n\n")} for part in (NOTICE, CHINESE)}
    found = common(texts, most)
    for part, where in groups.items():
        assert (key(part.casefold()) in found) == (len(where) > most)
    for _, text in texts:
        left, taken = without(text, found)
        assert Counter(text.split()) == Counter(left.split()) + Counter(" ".join(taken).split())
        again = without(left, found)
        assert again == (left, [])
