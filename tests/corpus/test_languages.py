"""The language of a text, told by its script or by py3langid; what is too short to tell is left alone."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from finetune.config.prepare import Filters
from finetune.corpus.clean import filter_reason
from finetune.corpus.datasheet import headline
from finetune.corpus.languages import CODES, is_unwanted, name_language, name_script
from tests.corpus.conftest import Corpus

# Article 1 of the Universal Declaration of Human Rights in the words of the United Nations.
ARTICLE_1 = {
    "en": "All human beings are born free and equal in dignity and rights. They are endowed with reason.",
    "zh": "人人生而自由,在尊严和权利上一律平等。他们赋有理性和良心,并应以兄弟关系的精神相对待。",
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen begabt.",
    "fr": "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison.",
    "es": "Todos los seres humanos nacen libres e iguales en dignidad y derechos y, dotados como están de razón.",
    "ru": "Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены разумом и совестью.",
    "ja": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "ko": "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
    "it": "Tutti gli esseri umani nascono liberi ed eguali in dignità e diritti. Essi sono dotati di ragione.",
    "ar": "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق. وقد وهبوا عقلاً وضميرًا وعليهم أن يعامل بعضهم بعضًا.",
}
WANTED = Filters(languages=("en", "zh"))


@pytest.mark.parametrize("code", ARTICLE_1)
def test_a_sentence_is_named_by_its_language_and_only_english_and_chinese_pass(code: str) -> None:
    found, certainty = name_language(ARTICLE_1[code])
    assert (found, certainty >= 0.9) == (code, True)
    assert (filter_reason([ARTICLE_1[code]], WANTED) is None) == (code in ("en", "zh"))


def test_a_recipe_may_name_every_language_that_the_recogniser_knows() -> None:
    assert set(CODES) == set(LanguageIdentifier.from_model_file(MODEL_FILE).labels) - {"zxx"}


@pytest.mark.parametrize("text", ["BUCKET WON'T OPEN", "L/H BOOM CYL LEAKING.", "更换油缸", "12.05.2004", "", "x" * 30])
def test_what_is_too_short_to_tell_passes(text: str) -> None:
    assert filter_reason([text], Filters(min_chars=0, languages=("en", "zh"))) is None


def test_a_short_text_is_dropped_where_its_script_is_sure() -> None:
    reason = filter_reason(["замена насоса"], WANTED)
    assert reason == ("language", "Cyrillic, certainty 1.00")
    assert filter_reason(["замена насоса"], Filters(languages=("en", "uk"))) is None
    assert filter_reason(["ポンプの交換"], WANTED) == ("language", "ja, certainty 1.00")


def test_chinese_with_english_terms_is_chinese_and_english_with_a_chinese_name_is_english() -> None:
    assert name_language("本合同项下的 SLA 由 ACME Ltd. 负责，违约金按照 CPI 指数调整。")[0] == "zh"
    assert name_language("The agreement was signed in Beijing by Mr 王小明 on behalf of the company.")[0] == "en"


@settings(max_examples=100, deadline=None)
@given(st.text("abc Ж条あ.1\n", max_size=80), st.sampled_from(["en", "zh", "ru", "ja"]))
def test_a_text_in_a_wanted_language_is_never_unwanted(text: str, other: str) -> None:
    code, certainty = name_language(text)
    assert 0 <= certainty <= 1 + 1e-6
    if code in CODES:
        assert not is_unwanted(code, certainty, (other, code), 0.5)


def test_the_writing_of_a_row_is_that_of_most_letters_of_its_beginning() -> None:
    wanted = {
        "BUCKET WON'T OPEN": "Latin", "naïve café": "Latin", "更换液压软管 A3": "Han", "Привет": "Cyrillic",
        "これはペンです": "Kana", "한국어": "Hangul", "12 / 4": "none", "": "none", "ማሽን": "other",
    }  # fmt: skip
    assert {text: name_script(text) for text in wanted} == wanted


def test_rows_are_counted_by_language_before_others_are_left_out(corpus: Corpus) -> None:
    rows = [json.loads(line) for line in (corpus.root / "orders.jsonl").read_text().splitlines()]
    rows[3]["text"], rows[4]["text"] = ARTICLE_1["de"], ARTICLE_1["zh"]
    corpus.write_rows("orders.jsonl", rows)
    assert "recognised" not in corpus.prepare().facts
    corpus.config["prepare"] = {"filters": {"languages": ["en", "zh"]}}
    made = corpus.prepare()
    counted = made.facts["recognised"]["orders"]
    assert (counted["de"], counted["zh"]) == (1, 1)
    assert sum(counted.values()) == len(rows)
    assert made.dropped()["language"] == 1
    assert any("de 1" in line and line.startswith("  languages: ") for line in headline(made.facts))
