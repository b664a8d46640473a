"""Where in a row the reason of its reject stands: a column and characters of it, never the value of personal data."""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.corpus import conversations, places
from finetune.corpus.repetition import find_repetition
from tests.corpus.conftest import general, orders
from tests.corpus.test_repetition import CHINESE, ENGLISH, PLAIN

WORD = st.sampled_from(["pump", "Straße", "更换液压泵", "密封", "B2", "İstanbul", "ﬁlter"])
WORDS = st.lists(WORD, min_size=3, max_size=6)
GAPS = st.sampled_from([" ", ", ", "\n", "，", " - "])
quick = settings(max_examples=60, deadline=None, derandomize=True)


@quick
@given(WORDS, st.lists(GAPS, min_size=6, max_size=6), st.text("xyz。 \n", max_size=9), st.text("xyz。 \n", max_size=9))
def test_a_passage_is_found_where_it_stands_in_other_dress(
    words: list[str], gaps: list[str], before: str, after: str
) -> None:
    said = "".join(word.upper() + gap for word, gap in zip(words[:-1], gaps, strict=False)) + words[-1].upper()
    text = f"{before} {said} {after}"
    place = places.find_passage(" ".join(map(places._plain, words)), [("a", "nothing"), ("b", text)])
    assert place is not None
    assert (place.column, text[place.start : place.end]) == ("b", said)


def test_what_is_the_whole_row_has_no_place() -> None:
    assert places.find_passage("the whole prompt", [("a", "the whole prompt")]) is None
    assert places.find_passage("not there", [("a", "text")]) is None


VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["name", "content", "x@y"]), inner),
    max_leaves=5,
)
TURNS = st.lists(
    st.fixed_dictionaries({
        "role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": st.text(max_size=5),
        "tool_calls": VALUE,
    }),
    max_size=4,
)  # fmt: skip


@quick
@given(TURNS)
def test_names_belong_to_the_texts_that_are_compared(turns: list[dict[str, Any]]) -> None:
    for named in ("asked", "instructed", "answered"):
        found = getattr(places, named)("m", turns)
        assert [text for _, text in found] == getattr(conversations, named)(turns)
        assert len({name for name, _ in found}) == len(found)
        assert not any("x@y" in name for name, _ in found), "a key may be personal data"
    assert [text for _, text in places.named_texts("m", turns)] == list(conversations.texts_in(turns))


def test_a_repetition_is_told_where_it_stands_again() -> None:
    for text in (
        f"{PLAIN}\n\n{PLAIN}\n\nand more", ENGLISH, f"İ {PLAIN}\n{'spare part ' * 20}", f"{CHINESE}{'更换油缸，' * 30}",
        CHINESE.replace("。", "。\n") * 2, PLAIN + PLAIN.replace(", ", " and "),
    ):  # fmt: skip
        found = find_repetition(text)
        assert found is not None
        again = text[found.start : found.end]
        assert again == again.strip() != ""
        assert again.casefold() in text[: found.end - 1].casefold(), "it stands before, too"


def test_each_reject_with_a_place_names_it_and_holds_no_value(corpus: Any) -> None:
    """The field `span` was in the form of rejects, and nothing filled it."""
    corpus.config["prepare"] = {
        "redact": {"email": "drop_row"}, "filters": {"max_chars": 1500, "repetition": 1.0}, "dedup": {"near": None},
    }  # fmt: skip
    made = orders(120)
    texts = {
        "3": "left pump <|im_end|> stopped", "5": "ask ann@example.org soon", "7": f"{PLAIN} {'spare part ' * 20}",
        "9": "".join(f"word{n} " for n in range(250)),
    }  # fmt: skip
    for row in made:
        row["text"] = texts.get(row["order"], f"{row['text']}: {PLAIN}" if row["order"] < "13" else row["text"])
    corpus.write_rows("orders.jsonl", made)
    speeches = general(12)
    speeches[0]["text"] = f"Before it. {PLAIN.upper()} after"
    corpus.write_rows("speeches.jsonl", speeches)
    rejects = {row["id"].split("/")[-1]: row for row in corpus.prepare().lines("rejects.jsonl") if "span" in row}
    spans = {id_: row["span"] for id_, row in rejects.items()}
    found = {id_: texts[id_][slice(spans[id_]["start"], spans[id_]["end"])] for id_ in texts}
    assert {span["column"] for span in spans.values()} == {"text"}
    room = 1500 - len(made[9]["action"])
    assert found == {"3": "<|im_end|>", "5": "ann@example.org", "7": "spare part", "9": texts["9"][room:].strip()}
    leaks = [id_ for id_, row in rejects.items() if row["step"] == "decontaminate"]
    assert leaks
    for id_ in leaks:
        shared = made[int(id_)]["text"][slice(spans[id_]["start"], spans[id_]["end"])]
        assert places._plain(shared) == places._plain(rejects[id_]["detail"].partition(": ")[2])
    assert "ann@" not in json.dumps(rejects)


def test_personal_data_in_a_call_has_a_place_that_names_no_key() -> None:
    call = {"function": {"name": "send", "arguments": {"to ann@example.org": "x", "b": ["y bob@example.org"]}}}
    row = {"id": "1", "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "tool_calls": [call]}]}
    place = places.find_value("email", row, ("email",))
    assert place == places.Place("messages[1].tool_calls[0].function.arguments[0]", 3, 18)
    call["function"]["arguments"].pop("to ann@example.org")  # type: ignore[attr-defined]
    assert places.find_value("email", row, ("email",)) == places.Place(
        "messages[1].tool_calls[0].function.arguments[0][0]", 2, 17
    )
    assert places.find_value("card", row, ("card",)) is None
