"""Each reader: rows, columns, line numbers."""

import gzip
import io
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.config.data import Cut, Source, find_files
from finetune.corpus.blocks import read_md
from finetune.corpus.read import SourceFile, read_file

MARKDOWN = (
    "intro\n\n# One\n\nfirst\nline\n\n## Deep\n\n```\n# no heading\n```\n\n"
    "Two\n===\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"
)
HTML = (
    "<html><head><title>t</title><style>p{}</style></head><body><nav>menu</nav><h1>One</h1><p>first <b>bold</b>\nline"
    "<br>broken</p><script>x()</script><h2>Deep</h2><ul><li>item</li><li>other</li></ul><div>loose <i>text</i>"
    "<p>inner</p>tail</div><table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td>2</td></tr></table></body></html>"
)


def read(tmp_path: Path, name: str, content: str | bytes, **source: Any) -> list[dict[str, str]]:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    rows, problems = read_file(SourceFile(name, path), Source(path=name, **source), "s")
    assert not problems
    return rows


def docx_bytes() -> bytes:
    import docx

    document = docx.Document()
    document.add_heading("One", level=1)
    document.add_paragraph("first paragraph")
    table = document.add_table(rows=1, cols=2)
    table.rows[0].cells[0].text, table.rows[0].cells[1].text = "a", "b"
    document.add_heading("Deep", level=2)
    document.add_paragraph("second paragraph")
    stream = io.BytesIO()
    document.save(stream)
    return stream.getvalue()


def pdf_bytes(pages: list[str]) -> bytes:
    from matplotlib.backends.backend_pdf import PdfPages
    from matplotlib.figure import Figure

    stream = io.BytesIO()
    with PdfPages(stream, metadata={"CreationDate": None}) as pdf:
        for text in pages:
            figure = Figure()
            figure.text(0.1, 0.5, text)
            pdf.savefig(figure)
    return stream.getvalue()


def test_csv_lines_are_those_of_the_file_even_over_quoted_line_breaks(tmp_path: Path) -> None:
    rows = read(tmp_path, "a.csv", '\ufeffid, text\r\n1,"two\r\nlines, one cell"\r\n\r\n2,"say ""hi"""\r\n')
    assert rows == [
        {"id": "1", "text": "two\nlines, one cell", "_file": "a.csv", "_line": "2"},
        {"id": "2", "text": 'say "hi"', "_file": "a.csv", "_line": "5"},
    ]


def test_tsv_splits_at_tabs_only(tmp_path: Path) -> None:
    assert read(tmp_path, "a.tsv", "a\tb\n1,5\t2\n")[0]["a"] == "1,5"


def test_jsonl_values_become_text_and_inner_keys_columns(tmp_path: Path) -> None:
    (row,) = read(tmp_path, "a.jsonl", '\n{"a": 1.50, "b": null, "c": {"d": ["x", 1]}, "e": true, "f": "é"}\n')
    expected = {"a": "1.5", "b": "", "c": '{"d":["x",1]}', "c.d": '["x",1]', "e": "true", "f": "é"}
    assert row == {**expected, "_file": "a.jsonl", "_line": "2"}


@pytest.mark.parametrize("content", ['[{"a": "x"}]', '{"version": 1, "rows": [{"a": "x"}]}'])
def test_json_is_a_list_or_holds_one(tmp_path: Path, content: str) -> None:
    assert read(tmp_path, "a.json", content) == [{"a": "x", "_file": "a.json", "_line": "1"}]


def test_obo_terms_have_the_columns_that_recipes_use(tmp_path: Path) -> None:
    text = (
        'format-version: 1.2\n\n[Term]\nid: X:1\nname: One\ndef: "A \\"first\\" thing." [ref]\n'
        'synonym: "uno" EXACT layperson []\nsynonym: "eins" EXACT []\nis_a: X:9 ! Nine\nis_a: X:8 ! Eight\n\n'
        "[Term]\nid: X:2\nname: Old\nis_obsolete: true\n\n[Typedef]\nid: part_of\n"
    )
    first, second = read(tmp_path, "a.obo", text)
    assert first["def"] == 'A "first" thing.'
    assert (first["first_parent"], first["parents"], first["synonyms"]) == ("X:9", "X:9 X:8", "uno | eins")
    assert (second["id"], second["def"], second["is_obsolete"], second["_line"]) == ("X:2", "", "true", "12")


def test_markdown_is_cut_at_its_headings_with_their_path(tmp_path: Path) -> None:
    rows = read(tmp_path, "a.md", MARKDOWN, cut=Cut(by="heading"))
    assert [(row["heading"], row["path"], row["_line"]) for row in rows] == [
        ("", "", "1"), ("One", "One", "3"), ("Deep", "One > Deep", "8"), ("Two", "Two", "14"),
    ]  # fmt: skip
    assert rows[1]["text"] == "first\nline"
    assert "# no heading" in rows[2]["text"]
    assert "| 1 | 2 |" in rows[3]["text"]


@pytest.mark.parametrize(
    "code",
    ["````\n```\n# x\n```\n# y\n````", "```\n```python\n# x\n```", "~~~ `a`\n# x\n~~~~ ", "```a``` within a line"],
)
def test_a_fence_ends_at_one_of_its_signs_that_is_as_long_and_bare(code: str) -> None:
    """Headings were taken out of code that shows Markdown, and a document behind ```a``` in a line was code."""
    assert [(block.text, block.level) for block in read_md(f"{code}\n\n# End")] == [(code.rstrip(), 0), ("End", 1)]


def test_html_keeps_text_lists_and_tables_and_leaves_out_the_rest(tmp_path: Path) -> None:
    rows = read(tmp_path, "a.html", HTML, cut=Cut(by="heading"))
    assert [row["path"] for row in rows] == ["One", "One > Deep"]
    assert rows[0]["text"] == "first bold line\nbroken"
    assert rows[1]["text"].split("\n\n") == ["item", "other", "loose text", "inner", "tail", "a | b", "1 | 2"]


def test_br_ends_a_line_so_that_clauses_begin_there(tmp_path: Path) -> None:
    """Laws stand on Chinese pages in one block, an article after each line end."""
    page = "<body><div>第一条 为了<b>保护</b>。<br><br>第二条\n本法适用。<br/>第三条 国家实行。</div></body>"
    rows = read(tmp_path, "a.html", page, cut=Cut(by="clause"))
    assert [(row["number"], row["text"]) for row in rows] == [
        ("第一条", "为了保护。"), ("第二条", "本法适用。"), ("第三条", "国家实行。"),
    ]  # fmt: skip


def test_docx_is_cut_at_its_heading_styles_and_keeps_tables(tmp_path: Path) -> None:
    rows = read(tmp_path, "a.docx", docx_bytes(), cut=Cut(by="heading"))
    assert [(row["path"], row["text"]) for row in rows] == [
        ("One", "first paragraph\n\na | b"), ("One > Deep", "second paragraph"),
    ]  # fmt: skip


def test_hidden_text_is_no_text(tmp_path: Path) -> None:
    """As of the templates, terms for search engines and notes of an author that no reader of the page sees."""
    import docx

    page = (
        '<body style="visibility:hidden"><p>a <span style="COLOR:red; Display : none">no</span>b</p>'
        '<div hidden>no</div><div style="visibility:hidden"><p hidden>no</p></div><p style="display:block">c</p>'
        '<p hidden="until-found">d</p>'
    )
    assert [row["text"] for row in read(tmp_path, "a.html", page)] == ["a b\n\nc\n\nd"]
    document = docx.Document()
    paragraph = document.add_paragraph("a ")
    for text, hidden in (("no", True), ("b", False), (" c", None)):
        paragraph.add_run(text).font.hidden = hidden
    document.save(str(tmp_path / "written.docx"))
    assert [row["text"] for row in read(tmp_path, "a.docx", (tmp_path / "written.docx").read_bytes())] == ["a b c"]


def test_pdf_gives_a_row_for_each_page(tmp_path: Path) -> None:
    rows = read(tmp_path, "a.pdf", pdf_bytes(["first page", "second page"]), cut=Cut(by="page"))
    assert [(row["text"], row["_line"]) for row in rows] == [("first page", "1"), ("second page", "2")]


@pytest.mark.parametrize(
    "cut", [Cut(by="clause"), Cut(by="pattern", pattern=r"^Article (?P<number>\d+)"), Cut(by="paragraph")]
)
def test_a_row_of_a_pdf_says_its_page_however_it_is_cut(tmp_path: Path, cut: Cut) -> None:
    pages = [f"Article {n}. One rule.\nIt goes on.\nArticle {n + 1}. Another rule." for n in (1, 3, 5)]
    rows = read(tmp_path, "a.pdf", pdf_bytes(pages), cut=cut)
    assert [row["_line"] for row in rows] == (["1", "2", "3"] if cut.by == "paragraph" else list("112233"))


def test_a_pdf_without_text_says_so(tmp_path: Path) -> None:
    path = tmp_path / "scan.pdf"
    path.write_bytes(pdf_bytes([""]))
    _, (problem,) = read_file(SourceFile("scan.pdf", path), Source(path="scan.pdf"), "s")
    assert "holds no text" in problem.rule
    assert "OCR" in problem.fix


def test_paragraphs_carry_their_line(tmp_path: Path) -> None:
    rows = read(tmp_path, "a.txt", "one\ntwo\n\n\n  three\n", cut=Cut(by="paragraph"))
    assert [(row["text"], row["_line"]) for row in rows] == [("one\ntwo", "1"), ("three", "5")]


def test_a_pattern_gives_its_groups_with_the_line_they_start_at(tmp_path: Path) -> None:
    text = "Preamble\n\nArticle 1. Name\nIndia, that is\nBharat.\n\nArticle 2. Admission\nParliament may.\n"
    pattern = r"^Article (?P<number>\d+)\. (?P<title>[^\n]+)\n(?P<body>.*?)(?=\n\nArticle|\Z)"
    rows = read(tmp_path, "a.txt", text, cut=Cut(by="pattern", pattern=pattern))
    assert [(row["number"], row["title"], row["body"], row["_line"]) for row in rows] == [
        ("1", "Name", "India, that is Bharat.", "3"), ("2", "Admission", "Parliament may.", "7"),
    ]  # fmt: skip


def test_another_encoding_is_read_when_the_recipe_names_it(tmp_path: Path) -> None:
    assert read(tmp_path, "a.csv", "名\n更换\n".encode("gb18030"), encoding="gb18030")[0]["名"] == "更换"


def test_hidden_folders_and_lock_files_enter_the_corpus_neither_by_folder_nor_by_glob(tmp_path: Path) -> None:
    hidden = (".git/a.csv", "in/.ipynb_checkpoints/a.csv", "in/.a.csv", "in/~$a.csv")
    for name in (*hidden, "a.csv", "in/b.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("a\n")
    wanted = [tmp_path / "a.csv", tmp_path / "in/b.csv"]
    assert find_files(tmp_path, ".") == find_files(tmp_path, "**/*") == wanted
    assert find_files(tmp_path / ".git", ".") == [tmp_path / ".git/a.csv"], "the folder itself may be called so"


WORDS = st.lists(st.sampled_from(["pump", "更换", "é", "#", "2"]), min_size=1, max_size=5).map(" ".join)
WRITTEN: dict[str, Callable[[list[str]], str]] = {
    "csv": lambda texts: "".join(["a\n", *(f'"{text}\n"\n' for text in texts)]),
    "tsv": lambda texts: "".join(["a\tb\n", *(f"{text}\tx\n" for text in texts)]),
    "txt": "\n\n".join,
    "log": lambda texts: "".join(f"2024-01-05 10:11:12 {text}\n" for text in texts),
    "md": lambda texts: "".join(f"# {text}\n\n{text}\n" for text in texts),
    "html": lambda texts: "".join(f"<h2>{text}</h2><p>{text}" for text in texts),
    "obo": lambda texts: "".join(f"[Term]\nid: {text}\n\n" for text in texts),
}


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(WRITTEN)), st.lists(WORDS, min_size=1, max_size=5))
def test_a_packed_file_has_the_rows_of_the_file(kind: str, texts: list[str]) -> None:
    """JSON in every packing: tests/corpus/test_pieces.py."""
    data = WRITTEN[kind](texts).encode()
    ways: dict[str, Any] = {"log": "log", "md": "heading", "html": "heading", "txt": "paragraph"}
    cut = Cut(by=ways.get(kind, "document"))
    with tempfile.TemporaryDirectory() as home:
        plain = read(Path(home), f"a.{kind}", data, cut=cut)
        assert len(plain) == len(texts)
        for way, packed in (("gz", gzip.compress(data)), ("zst", pa.compress(data, "zstd", asbytes=True))):
            found = read(Path(home), f"a.{kind}.{way}", packed, cut=cut)
            assert [{**row, "_file": f"a.{kind}"} for row in found] == plain


PART = st.sampled_from(["a.csv", "b.csv", "c.jsonl", "in", "更换", ".git", ".a.csv", "~$a.docx"])


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.sets(st.lists(PART, min_size=1, max_size=3).map("/".join), max_size=8))
def test_a_folder_and_its_globs_stand_for_the_same_files(names: set[str]) -> None:
    with tempfile.TemporaryDirectory() as home:
        root = Path(home)
        made = sorted(name for name in names if not any(other.startswith(f"{name}/") for other in names))
        for name in made:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text("a\n")
        wanted = sorted(root / name for name in made if not re.search(r"(^|/)(\.|~\$[^/]*$)", name))
        assert find_files(root, ".") == find_files(root, "**/*") == wanted
        assert find_files(root, "**/*.csv") == [file for file in wanted if file.suffix == ".csv"]


def test_a_data_root_with_brackets_reads_its_own_files_and_not_a_neighbours(tmp_path: Path) -> None:
    for folder in ("run[1]", "run1"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.csv").write_text("a\n")
    root = tmp_path / "run[1]"
    assert find_files(root, "*.csv") == [root / "a.csv"]
    assert find_files(root, str(tmp_path / "run1/*.csv")) == [tmp_path / "run1/a.csv"]


def test_a_heading_with_a_run_of_spaces_does_not_cost_its_cube() -> None:
    """2,000 spaces within one took 8 s."""
    begun = time.process_time()
    blocks = read_md("# a" + " " * 100_000 + "b ## \n# c #\n# # #\n## ##\n#d")
    assert time.process_time() - begun < 2
    assert [block.text for block in blocks] == ["a" + " " * 100_000 + "b", "c", "#", "", "#d"]
