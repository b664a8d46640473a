"""Gopher's limits on repetition, over words of English and over characters of Chinese."""

from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.config.prepare import Filters
from finetune.corpus.clean import filter_reason
from finetune.corpus.repetition import find_repetition

ENGLISH = " ".join(f"The {word} of pump {i} was checked by the fitter." for i, word in enumerate(["seal", "hose"] * 5))
PLAIN = (
    "Whereas recognition of the inherent dignity and of the equal and inalienable rights of all members of the human "
    "family is the foundation of freedom, justice and peace in the world, and disregard and contempt for human rights "
    "have resulted in barbarous acts which have outraged the conscience of mankind, a common standard is proclaimed."
)
CHINESE = (
    "为了保护专利权人的合法权益，鼓励发明创造，推动发明创造的应用，提高创新能力，促进科学技术进步和经济社会发展，制定本法。"
    "产品标识应当真实，有产品质量检验合格证明，有中文标明的产品名称、生产厂厂名和厂址，限期使用的产品应当在显著位置清晰地标明日期。"
)


def said(text: str) -> str:
    found = find_repetition(text)
    return found.said if found else ""


def test_sound_text_passes() -> None:
    assert find_repetition(PLAIN) is None
    assert find_repetition(CHINESE) is None
    # Article 8 of the law on traditional Chinese medicine: four characters in ten are 中医药科学技术.
    law = "国家支持中医药科学研究和技术开发，鼓励中医药科学技术创新，推广应用中医药科学技术成果，"
    assert find_repetition(f"{law}保护中医药知识产权，提高中医药科学技术水平。") is None


def test_each_kind_of_repetition_is_found_with_its_value() -> None:
    lines = "\n".join([*PLAIN.split(", "), "Call us now.", "Call us now.", "Call us now.", "Call us now."])
    assert said(lines) == "duplicate lines: 0.375, at most 0.300"
    found = said(f"{PLAIN}\n\n{PLAIN}\n\nand more")
    assert found == "duplicate lines: 0.333, at most 0.300"
    parts = said(f"{PLAIN}\n{'spare part ' * 20}")
    assert parts.startswith("characters in the most frequent 2-gram")
    assert said(ENGLISH).startswith("characters in the most frequent 3-gram")
    twice = said(PLAIN + PLAIN.replace(", ", " and "))
    assert twice.startswith("characters in repeated 5-grams: 0.4")


def test_chinese_is_measured_by_characters() -> None:
    assert said(f"{CHINESE}{'更换油缸，' * 30}").startswith("characters in the most frequent 2-gram")
    assert said(CHINESE.replace("。", "。\n") * 2).startswith("duplicate lines")


def test_slack_loosens_every_limit() -> None:
    assert find_repetition(ENGLISH, slack=20) is None
    assert find_repetition(PLAIN, slack=0.01) is not None


def test_a_short_text_and_a_label_said_twice_repeat_nothing() -> None:
    assert find_repetition("pump pump pump") is None
    assert filter_reason(["pump " * 20, "pump " * 20], Filters(repetition=1.0)) is None
    assert filter_reason([PLAIN, PLAIN], Filters(repetition=1.0)) is None


@settings(max_examples=150, deadline=None)
@given(st.text("ab 条约\n", max_size=400), st.floats(0.1, 4), st.floats(0, 4))
def test_more_slack_never_drops_more(text: str, slack: float, more: float) -> None:
    if find_repetition(text, slack) is None:
        assert find_repetition(text, slack + more) is None
