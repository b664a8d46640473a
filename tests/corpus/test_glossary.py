"""Codes are written out as whole tokens, the longest first, counted, and what stood there is kept."""

import csv
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.config.prepare import Glossary
from finetune.corpus.glossary import Codes, expand_row, expand_text, make_codes, read_codes
from finetune.errors import RecipeError

DATA = Path(__file__).parents[2] / "data"


def codes(folder: Path, table: str, **settings: bool) -> Codes:
    (folder / "codes.csv").write_text(f"code,words\n{table}", encoding="utf-8")
    return read_codes(folder / "codes.csv", Glossary(file="codes.csv", columns={}, **settings))


def test_whole_tokens_are_written_out_the_longest_first(tmp_path: Path) -> None:
    known = codes(tmp_path, "lh,left hand\nl/h,left hand side\ncyl,cylinder\nt,tooth\n油压,液压\n#2,second\n")
    cases = {
        "LH cyl. leaks": "left hand cylinder. leaks",
        "L/H boom": "left hand side boom",
        "lhx cyls won't": "lhx cyls won't",
        "检查lh油缸，油压低": "检查left hand油缸，液压低",
        "lh_boom lh-boom": "lh_boom left hand-boom",
        "pump #2": "pump second",
    }
    assert {text: expand_text(text, known)[0] for text in cases} == cases
    assert expand_text("LH lh L/H", known)[1] == {"lh": 2, "l/h": 1}


def test_case_counts_where_the_recipe_says_so(tmp_path: Path) -> None:
    known = codes(tmp_path, "PM,preventive maintenance\npm,afternoon\n", match_case=True)
    assert expand_text("PM at 3 pm, Pm", known)[0] == "preventive maintenance at 3 afternoon, Pm"


def test_the_original_stays_beside_and_other_columns_as_they_are(tmp_path: Path) -> None:
    row = {"text": "rh pin", "note": "rh", "_file": "a.csv", "_line": "2"}
    got, counts = expand_row(row, ["text"], codes(tmp_path, "rh,right hand\n"))
    assert got == {**row, "text": "right hand pin", "text_original": "rh pin"}
    assert counts == {"rh": 1}
    with pytest.raises(RecipeError, match="overwrite"):
        expand_row(got, ["text"], codes(tmp_path, "rh,right hand\n"))


def test_every_wrong_row_of_a_glossary_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        codes(tmp_path, "rh,right\nRH,rear\n,x\ny,\n")
    assert [problem.path for problem in caught.value.problems] == ["codes.csv:3", "codes.csv:4", "codes.csv:5"]
    with pytest.raises(RecipeError, match="is no column"):
        read_codes(tmp_path / "codes.csv", Glossary(file="codes.csv", code="token", columns={}))
    with pytest.raises(RecipeError, match="cannot be read"):
        read_codes(tmp_path / "none.csv", Glossary(file="none.csv", columns={}))


def test_the_aliases_of_real_work_orders_are_written_out_and_nothing_else_is_touched() -> None:
    settings = Glossary(file="tags.csv", code="token", words="meaning", columns={})
    known = read_codes(DATA / "maintenance" / "tags.csv", settings)
    with (DATA / "maintenance" / "work_orders.csv").open(encoding="utf-8") as stream:
        texts = [row["text"] for row in csv.DictReader(stream)][:1000]
    assert expand_text("RH CYL", known)[0] == "right_hand cylinder"
    for text in texts:
        got, counts = expand_text(text, known)
        tokens = re.findall(r"\w+", text.lower())
        assert all(tokens.count(code) >= n for code, n in counts.items() if code.isalnum())
        assert (got == text) == (not counts)


@given(st.text("lh cy.-检油'", max_size=30))
def test_what_holds_no_code_stays_and_the_letters_between_codes_do_too(text: str) -> None:
    got, counts = expand_text(text, make_codes({"lh": "LEFT"}))
    assert got.count("LEFT") == counts["lh"]
    assert got.replace("LEFT", "lh") == text
