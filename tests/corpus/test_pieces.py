"""Properties of every reader: what a writer wrote is read, nothing is lost, no row depends on a file's division."""

import csv
import gzip
import io
import json
import random
import resource
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.config.data import Cut, Source
from finetune.corpus import finding, streams
from finetune.corpus.read import BadInput, SourceFile, find_documents, list_files, pieces, rows
from finetune.corpus.streams import scan
from finetune.errors import RecipeError

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12)
WORD = st.text(st.characters(categories=["Ll", "Lo"]), min_size=1, max_size=6)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORD, inner, max_size=2),
    max_leaves=4,
)
ITEMS = st.lists(st.fixed_dictionaries({"a": TEXT, "b": VALUE}), min_size=1, max_size=6)
quick = settings(max_examples=60, deadline=None)


@pytest.fixture(scope="module", autouse=True)
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as made:
        FOLDER.append(Path(made))
        yield Path(made)


FOLDER: list[Path] = []


def read(name: str, data: bytes, step: int = 0, **source: Any) -> tuple[list[dict[str, str]], list[BadInput]]:
    """Rows and problems of a file; with a `step`, in pieces of about so many bytes."""
    path = FOLDER[-1] / name
    path.write_bytes(data)
    marks: tuple[tuple[int, int], ...] = ()
    if step:
        with path.open("rb") as stream:
            marks = tuple(mark for _, found in scan(stream, step) for mark in found if mark[0] < len(data))
    file, settings_, bad = SourceFile(name, path, marks=marks), Source(path=name, **source), list[BadInput]()
    return [row for piece in pieces(file, settings_, "s") for row in rows(piece, settings_, "s", bad)], bad


def as_text(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def check_items(found: list[dict[str, str]], items: list[dict[str, Any]]) -> None:
    assert [(row["a"], row["b"]) for row in found] == [(item["a"], as_text(item["b"])) for item in items]
    for row, item in zip(found, items, strict=True):
        for key, value in item["b"].items() if isinstance(item["b"], dict) else ():
            assert row[f"b.{key}"] == as_text(value)


LINE = st.sampled_from([
    b'{"a":"x"}', b'{"a":"\xe6\x9b\xb4"}', b"", b" ", b"{", b"\xff", b"[1]", b'{"a":1}\x00', b'{"a":{"b":[1,{"c":2}]}}',
])  # fmt: skip


@quick
@given(st.lists(st.tuples(LINE, st.sampled_from([b"\n", b"\r\n", b"\r", b"\n\n"])), max_size=25), st.integers(1, 90))
def test_pieces_joined_are_the_whole_for_every_size(lines: list[tuple[bytes, bytes]], step: int) -> None:
    data = b"".join(line + end for line, end in lines)
    whole, wrong = read("a.jsonl", data)
    found, others = read("a.jsonl", data, step)
    assert found == whole
    assert [each for each in others if each.line] == [each for each in wrong if each.line]
    told = [line for line, _ in lines if line.strip()]
    assert len(whole) + len([each for each in wrong if each.line]) == len(told)
    text = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    for row in whole:
        assert json.loads(text[int(row["_line"]) - 1])


@quick
@given(ITEMS, st.booleans(), st.sampled_from(["", ".gz", ".zst"]))
def test_json_and_json_lines_are_read_as_written(items: list[dict[str, Any]], ascii_only: bool, packing: str) -> None:
    def packed(text: str) -> bytes:
        data = text.encode()
        return {"": data, ".gz": gzip.compress(data), ".zst": pa.compress(data, codec="zstd", asbytes=True)}[packing]

    lines = "".join(json.dumps(item, ensure_ascii=ascii_only) + "\n" for item in items)
    whole = json.dumps(items, ensure_ascii=ascii_only, indent=1 if ascii_only else None)
    for name, text in (("a.jsonl", lines), ("a.json", whole), ("b.json", f'{{"version": 1, "rows": {whole}}}')):
        found, wrong = read(name + packing, packed(text))
        assert not wrong
        check_items(found, items)


@settings(max_examples=25, deadline=None)
@given(ITEMS, st.integers(1, 40))
def test_a_json_list_is_read_the_same_however_little_is_held(items: list[dict[str, Any]], size: int) -> None:
    whole = "  [" + " ,\n".join(json.dumps(item) for item in items) + "] \n"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "_CHUNK", size)
        patch.setattr("finetune.corpus.tables._BUFFER", size)
        found, wrong = read("a.json", whole.encode())
    assert not wrong
    check_items(found, items)


@quick
@given(
    st.lists(st.tuples(TEXT, st.text(max_size=12).filter(lambda t: "\0" not in t)), min_size=1, max_size=6), st.data()
)
def test_tables_are_read_as_written(cells: list[tuple[str, str]], data: st.DataObject) -> None:
    delimiter, name = data.draw(st.sampled_from([(",", "a.csv"), ("\t", "a.tsv")]))
    written = [(a, "".join(c for c in b if c in "\n\t" or c.isprintable())) for a, b in cells]
    written = [(a, b.encode("utf-8", "ignore").decode()) for a, b in written]
    stream = io.StringIO(newline="")
    writer = csv.writer(
        stream, delimiter=delimiter, quoting=csv.QUOTE_ALL if data.draw(st.booleans()) else csv.QUOTE_MINIMAL
    )
    writer.writerows([("a", "b"), *written])
    found, wrong = read(name, stream.getvalue().encode())
    assert not wrong
    assert [(row["a"], row["b"]) for row in found] == written


@settings(max_examples=25, deadline=None)
@given(ITEMS, st.integers(1, 4))
def test_parquet_is_read_by_row_groups_as_json_lines_are(items: list[dict[str, Any]], size: int) -> None:
    plain = [{"a": item["a"], "b": {"x": as_text(item["b"]), "y": [1, None]}} for item in items]
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(plain), stream, row_group_size=size)
    found, wrong = read("a.parquet", stream.getvalue())
    lines, _ = read("a.jsonl", "".join(json.dumps(item) + "\n" for item in plain).encode())
    assert not wrong
    assert [{**row, "_file": ""} for row in found] == [{**row, "_file": ""} for row in lines]


@pytest.mark.parametrize("size", [1, 9])
def test_a_parquet_with_two_columns_of_one_name_is_an_error(size: int) -> None:
    """The first one's values were lost."""
    stream = io.BytesIO()
    table = pa.table([["1", "3"], ["2", "4"], ["x", "y"]], names=["a", "a", "b"])
    pq.write_table(table, stream, row_group_size=size)
    found, (wrong,) = read("a.parquet", stream.getvalue())
    assert not found
    assert (wrong.reason, wrong.problem.path, wrong.problem.value) == ("column twice", "a.parquet", "a")


@quick
@given(
    st.lists(st.lists(WORD, min_size=1, max_size=4), min_size=1, max_size=8), st.sampled_from(["paragraph", "document"])
)
def test_no_word_of_a_text_is_lost(paragraphs: list[list[str]], by: Any) -> None:
    text = "\n\n".join("\n".join(lines) for lines in paragraphs)
    found, wrong = read("a.txt", text.encode(), cut=Cut(by=by))
    assert not wrong
    assert [word for row in found for word in row["text"].split()] == text.split()


CLAUSE = st.sampled_from([
    "1 Scope", "1.1 This is so.", "1.2 That too", "2. Payment", "2.1 Late; early.", "Article 1", "Article 2. Name",
    "§ 3 Text.", "第一条　为了规范。", "第二条 适用", "第一章 总则", "Chapter II", "3.5 million", "see Article 9",
    "plain words", "", "1. item",
])  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(CLAUSE, min_size=1, max_size=12))
def test_no_word_is_lost_where_clauses_are_cut(lines: list[str]) -> None:
    """A title over nothing but smaller titles stands in their path; everything else in exactly one row."""
    found, wrong = read("a.txt", "\n".join(lines).encode(), cut=Cut(by="clause"))
    if wrong:
        assert {each.reason for each in wrong} <= {"cannot be cut", "no text", "no rows"}
        return
    told = " ".join(f"{row['path']} {row['number']} {row['heading']} {row['text']}" for row in found)
    for word in " ".join(lines).split():
        assert word.strip(".:、　") in told
    texts = [word for row in found for word in row["text"].split()]
    assert len(texts) <= len(" ".join(lines).split())


def test_clauses_have_number_heading_and_path() -> None:
    text = (
        'AGREEMENT\n\n1. DEFINITIONS\n1.1 "Goods" means things worth\n3.1 million or more:\n1. big things\n'
        '2. other things\n1.2 "Price" is an amount.\n2. PAYMENT\n\n2.1 Late payment\nInterest runs as in\n'
        "Section 9 of the Act.\n3. Term. It lasts.\n"
    )
    found, _ = read("a.txt", text.encode(), cut=Cut(by="clause"))
    assert [(row["number"], row["heading"], row["path"], row["_line"]) for row in found] == [
        ("", "", "", "1"), ("1.1", "", "1 DEFINITIONS", "4"), ("1.2", "", "1 DEFINITIONS", "8"),
        ("2.1", "Late payment", "2 PAYMENT", "11"), ("3", "", "", "14"),
    ]  # fmt: skip
    assert found[1]["text"].endswith("2. other things")


def test_chinese_clauses_stand_under_their_chapter() -> None:
    text = (
        "某法\n\n第一章 总则\n\n第一条　为了规范，制定本法。\n第二条　依照\n第一条规定处理。\n\n"
        "第二章 罚则\n第十条之一　附加。\n"
    )
    found, _ = read("a.txt", text.encode(), cut=Cut(by="clause"))
    assert [(row["number"], row["path"]) for row in found] == [
        ("", ""), ("第一条", "第一章 总则"), ("第二条", "第一章 总则"), ("第十条之一", "第二章 罚则"),
    ]  # fmt: skip
    assert found[2]["text"] == "依照\n第一条规定处理。"


STAMP = st.sampled_from([
    "2024-01-05 10:11:12,345", "[2024-01-05T10:11:12Z]", "Jan  5 10:11:12", "INFO 2024-01-05 10:11:12",
    "2024年1月5日 10:20",
])  # fmt: skip


@quick
@given(st.lists(st.tuples(STAMP, st.lists(WORD, min_size=1, max_size=3)), min_size=1, max_size=6))
def test_a_log_is_cut_at_its_times_and_keeps_further_lines(entries: list[tuple[str, list[str]]]) -> None:
    written = [f"{stamp} " + "\n  ".join(words) for stamp, words in entries]
    found, wrong = read("a.log", "\n".join(written).encode(), cut=Cut(by="log"))
    assert not wrong
    assert [row["text"] for row in found] == written
    assert all(row["time"] in row["text"] and row["time"] for row in found)


def test_merged_cells_stand_once_and_inner_tables_in_parentheses() -> None:
    page = (
        "<table><tr><th colspan=2>Price<th rowspan=2>Unit<tr><td>net<td>gross<tr><td>1<td>2<table><tr><td>x<td>y"
        "</table><td>kg</table><table><tr><td><h2>Frame</h2><table><tr><td>a<td>b</table></td></tr></table>"
    )
    found, _ = read("a.html", page.encode())
    assert found[0]["text"].split("\n\n") == [
        "Price |  | Unit",
        "net | gross |",
        "1 | 2 (x | y) | kg",
        "Frame",
        "a | b",
    ]


def test_a_docx_keeps_merged_cells_inner_tables_and_content_controls() -> None:
    import docx
    from docx.oxml import parse_xml

    document = docx.Document()
    table = document.add_table(2, 2)
    for place, text in (((0, 0), "wide"), ((1, 0), "left"), ((1, 1), "right")):
        table.cell(*place).text = text
    table.cell(0, 0).merge(table.cell(0, 1))
    table.cell(1, 0).add_table(1, 1).cell(0, 0).text = "inner"
    word = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    control = (
        f'<w:sdt xmlns:w="{word}"><w:sdtContent><w:p><w:r><w:t>controlled</w:t></w:r></w:p></w:sdtContent></w:sdt>'
    )
    document.element.body.insert(0, parse_xml(control))
    stream = io.BytesIO()
    document.save(stream)
    found, _ = read("a.docx", stream.getvalue())
    assert found[0]["text"].split("\n\n") == ["controlled", "wide |", "left (inner) | right"]


def test_a_bad_row_costs_itself_and_nothing_beside_it() -> None:
    table = b'a,b\n1,2\n"x"y,2\n\xff,2\n3,\x01\n4\n5,"open\n6,7\n8,9\n'
    found, wrong = read("a.csv", table)
    assert [row["a"] for row in found] == ["1", "6", "8"]
    assert [(each.line, each.reason) for each in wrong] == [
        (3, "broken table"), (4, "wrong encoding"), (5, "control character"), (6, "wrong number of cells"),
        (7, "broken table"),
    ]  # fmt: skip


def test_what_is_no_text_encoding_is_the_recipes_mistake() -> None:
    with pytest.raises(RecipeError, match="Python knows no such encoding"):
        read("a.jsonl", b"{}", encoding="hex")


@pytest.mark.parametrize("row", ['{"a.b": 1, "a": {"b": 2}}', '{"a": 1, "a": 2}', '{"_line": "7"}'])
def test_a_value_that_would_be_lost_is_a_problem(row: str) -> None:
    found, (wrong,) = read("a.jsonl", row.encode())
    assert not found
    assert wrong.line == 1


def zeros() -> bytes:
    sink = io.BytesIO()
    with gzip.GzipFile(fileobj=sink, mode="wb", mtime=0, compresslevel=6) as stream:
        for _ in range(90):
            stream.write(b" " * (1 << 20))
    return sink.getvalue()


def repeating() -> bytes:
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, pa.schema([("a", pa.string())])) as writer:
        writer.write_table(pa.table({"a": pa.array(["x" * (5 << 17)] * 230)}))
    return sink.getvalue()


def endless() -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", b"<a>" * (25 << 20))
    return sink.getvalue()


BOMBS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "a packed file that expands a thousandfold": ("a.jsonl.gz", zeros),
    "zstandard that expands thousandfold": (
        "a.txt.zst",
        lambda: pa.compress(b" \n" * (20 << 20), "zstd", asbytes=True),
    ),
    "json nested a hundred thousand times": ("a.jsonl", lambda: b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "a list nested so": ("a.json", lambda: b"[" * 100_000),
    "an object of many levels": ("b.jsonl", lambda: b'{"a":' * 900 + b'"' + b"x" * 10_000 + b'"' + b"}" * 900),
    "html nested ten thousand times": ("a.html", lambda: b"<div>" * 10_000 + b"x"),
    "html of a million tags": ("b.html", lambda: b"<b>x</b>" * 600_000),
    "parquet that repeats a large value": ("a.parquet", repeating),
    "a docx of endless XML": ("a.docx", endless),
    "a quote that is never closed": ("a.csv", lambda: b'a,b\n1,"' + b"word word\n" * 100_000),
    "a line without an end": ("c.jsonl", lambda: b'{"a": "' + b"x" * (66 << 20)),
    "a number of a million digits": ("d.jsonl", lambda: b'{"a": ' + b"7" * 1_000_000 + b"}"),
}


@pytest.mark.parametrize("what", BOMBS)
def test_what_is_made_to_exhaust_ends_soon_and_in_bounded_memory(what: str) -> None:
    name, make = BOMBS[what]
    data = make()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    found, wrong = read(name, data)
    assert wrong or found
    assert name != "a.jsonl.gz" or "expands to more than" in wrong[-1].problem.rule
    assert time.process_time() - began < 10
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10 < 700, "MiB"


def test_a_pattern_that_backtracks_is_an_error_and_no_endless_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.corpus.patterns.SECONDS", 0.2)
    with pytest.raises(RecipeError, match="it backtracks"):
        read("a.txt", b"a" * 40 + b"!", cut=Cut(by="pattern", pattern="(?P<a>(a+)+)$"))
    found, _ = read("a.txt", b"aaa", cut=Cut(by="pattern", pattern="(?P<a>(a+)+)$"))
    assert found[0]["a"] == "aaa"


def test_large_files_of_lines_are_divided_where_their_bytes_are_hashed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    draw = random.Random(0)
    lines = [json.dumps({"a": "x" * draw.randrange(200)}) for _ in range(3000)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    sources = {"s": Source(path="a.jsonl")}
    whole = find_documents(sources, tmp_path)
    monkeypatch.setattr(finding, "PIECE_BYTES", 50_000)
    divided = find_documents(sources, tmp_path)
    assert whole.digest == divided.digest, "how a file is divided is not what it is"
    (one,) = list_files(sources, whole)["s"]
    (many,) = list_files(sources, divided)["s"]
    parts = pieces(many, sources["s"], "s")
    assert len(pieces(one, sources["s"], "s")) == 1
    assert len(parts) == 7
    bad: list[BadInput] = []
    found = [row for part in parts for row in rows(part, sources["s"], "s", bad)]
    assert [int(row["_line"]) for row in found] == list(range(1, 3001))
    assert not bad
