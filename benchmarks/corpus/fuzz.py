"""Mutated files of every format and compression through the readers: no crash, no lost row, bounded time and memory.

    python benchmarks/corpus/fuzz.py --cases 10000 --out benchmarks/corpus/fuzz.json --state work/fuzz.jsonl

Case n is always the same file. Blocks of cases run in a child process of their own, so that a crash of a parser is a
result and not the end; finished blocks stand in the state file, and the same command goes on behind them.
"""

import argparse
import datetime as dt
import faulthandler
import gzip
import io
import json
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from finetune.config.data import Cut, Source
from finetune.corpus.read import BadInput, SourceFile, pieces, rows
from finetune.corpus.streams import scan

BLOCK = 250
SECONDS = 30
"""A case that takes longer is a failure."""
MEMORY = 1 << 30
"""Bytes that a child may hold at its highest, libraries included."""

ROWS: list[dict[str, Any]] = [
    {"id": 1, "text": "Replaced the pump, \"left\" side", "more": {"unit": "a", "parts": [1, 2.5, None]}, "ok": True},
    {"id": 2, "text": "更换液压泵密封件，左侧", "more": {"unit": "b", "parts": []}, "ok": False},
    {"id": 3, "text": "two\nlines\tand é 😀", "more": {"unit": "c", "parts": ["x"]}, "ok": None},
]
TEXT = "One first line\nand its second.\n\n第一条　为了规范，制定本法。\n\n第二条　本法适用于公司。\n\nLast one.\n"
LOG = (
    "started\n2024-01-05 10:11:12 INFO pump on\n  trace of it\n"
    "2024-01-05 10:11:13 ERROR 泵停了\n[2024-01-06T00:00:00Z] x\n"
)
MARKDOWN = (
    "intro\n\n# One\n\nfirst\nline\n\n## Deep\n\n```\n# none\n```\n\n"
    "Two\n===\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"
)
HTML = (
    "<html><head><style>p{}</style></head><body><h1>One</h1><p>first <b>bold</b><br>x</p><h2>Deep</h2><ul><li>item"
    "</ul><table><tr><th colspan=2>a<th rowspan=2>b<tr><td>1<td><table><tr><td>in<td>ner</table></table></body></html>"
)
OBO = (
    '[Term]\nid: X:1\nname: n\ndef: "d \\"q\\"" []\nis_a: X:0 ! z\nsynonym: "s" EXACT []\n\n[Term]\nid: X:2\nname: m\n'
)


def _csv(delimiter: str) -> bytes:
    cells = [[str(row["id"]), str(row["text"]), str(row["ok"])] for row in ROWS]
    lines = ["id,text,ok".replace(",", delimiter)]
    lines += [delimiter.join('"' + cell.replace('"', '""') + '"' for cell in line) for line in cells]
    return "\r\n".join([*lines, ""]).encode()


def _docx() -> bytes:
    import docx

    document = docx.Document()
    document.add_heading("One", level=1)
    document.add_paragraph("first paragraph")
    table = document.add_table(rows=2, cols=2)
    table.cell(0, 0).merge(table.cell(0, 1)).text = "merged"
    table.cell(1, 0).add_table(1, 2).cell(0, 0).text = "inner"
    document.add_heading("第二条 适用", level=2)
    stream = io.BytesIO()
    document.save(stream)
    return stream.getvalue()


def _pdf() -> bytes:
    from reportlab.pdfgen import canvas

    stream = io.BytesIO()
    page = canvas.Canvas(stream, invariant=True)
    for text in ("Article 1. The first page", "Article 2. The second page"):
        page.drawString(72, 700, text)
        page.showPage()
    page.save()
    return stream.getvalue()


def _parquet(codec: str) -> bytes:
    stream = io.BytesIO()
    columns = {key: [row[key] for row in ROWS * 4] for key in ("id", "text", "ok")}
    parts = [{"unit": row["more"]["unit"], "parts": [str(part) for part in row["more"]["parts"]]} for row in ROWS * 4]
    pq.write_table(pa.table({**columns, "more": parts}), stream, row_group_size=5, compression=codec)
    return stream.getvalue()


def seeds() -> dict[str, bytes]:
    """Name of a file -> its bytes: every format, and every format of text in gzip and zstandard."""
    jsonl = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS * 3)
    plain = {
        "csv": _csv(","), "tsv": _csv("\t"), "jsonl": jsonl.encode(), "json": json.dumps(ROWS * 3, indent=1).encode(),
        "obo": OBO.encode(), "txt": TEXT.encode(), "log": LOG.encode(), "md": MARKDOWN.encode(), "html": HTML.encode(),
    }  # fmt: skip
    packed = {f"{kind}.{way}": _pack(data, way) for kind, data in plain.items() for way in ("gz", "zst")}
    others = {"wrapped.json": json.dumps({"version": 1, "rows": ROWS}).encode(), "gb.csv": _csv(",").decode().replace(
        "😀", "").encode("gb18030"), "wide.txt": TEXT.encode("utf-16"), "pdf": _pdf(), "docx": _docx(),
        "parquet": _parquet("snappy"), "packed.parquet": _parquet("zstd")}  # fmt: skip
    return {**plain, **packed, **others}


def _pack(data: bytes, way: str) -> bytes:
    if way == "gz":
        return gzip.compress(data, mtime=0)
    packed: bytes = pa.compress(data, codec="zstd", asbytes=True)
    return packed


_SHARP = (b'"', b"\n", b"\r\n", b"\r", b"\0", b"\xff", b"[", b"{", b"\\u", b"\xe2\x80\xa8")


def mutated(data: bytes, draw: random.Random) -> bytes:
    """Bits flipped, bytes inserted, runs taken out, doubled or replaced, or the file cut short."""
    content = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 4, 8])):
        at = draw.randrange(len(content) + 1)
        end = min(len(content), at + draw.choice([1, 1, 4, 40, 400]))
        way = draw.randrange(7)
        if way == 0 and content:
            content[min(at, len(content) - 1)] ^= 1 << draw.randrange(8)
        elif way == 1:
            content[at:at] = draw.choice(_SHARP)
        elif way == 2:
            content[at:at] = draw.randbytes(draw.choice([1, 4, 100]))
        elif way == 3:
            content[at:end] = b""
        elif way == 4:
            content[at:end] = bytes(content[at:end]) * draw.choice([2, 3, 50])
        else:
            size = end - at
            content[at:end] = bytes(draw.choices(b'ab1 ,"\n<>|{}', k=size)) if way == 5 else draw.randbytes(size)
    return bytes(content[: draw.randrange(len(content) + 1)] if draw.random() < 0.2 else content)


def _rezipped(data: bytes, draw: random.Random) -> bytes:
    """The archive with its main part mutated."""
    sink = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(sink, "w") as new:
        for part in old.namelist():
            content = old.read(part)
            new.writestr(part, mutated(content, draw) if part == "word/document.xml" else content)
    return sink.getvalue()


def make(number: int, known: dict[str, bytes]) -> tuple[str, bytes, Source, random.Random]:
    """Case `number`: the file's name, its bytes and the source that reads it."""
    draw = random.Random(f"case {number}")  # noqa: S311
    name = sorted(known)[number % len(known)]
    suffix = name.rpartition(".")[2]
    if suffix in ("gz", "zst") and draw.random() < 0.5:  # below the compression half of the time
        data = _pack(mutated(known[name.removesuffix(f".{suffix}")], draw), suffix)
    elif suffix == "docx" and draw.random() < 0.6:
        data = _rezipped(known[name], draw)
    else:
        data = mutated(known[name], draw)
    ways: list[Any] = ["document", "heading", "clause", "paragraph", "log", "pattern", *["page"] * (name == "pdf")]
    by = draw.choice(ways)
    cut = Cut(by=by, pattern="(?P<a>[a-z]+) (?P<b>.*?)$" if by == "pattern" else None)
    encoding = "gb18030" if name.startswith("gb") else "utf-16" if name.startswith("wide") else "utf-8"
    return f"case.{name}", data, Source(path="x", cut=cut, encoding=encoding), draw


def read(file: SourceFile, source: Source) -> tuple[list[dict[str, str]], list[BadInput]]:
    bad: list[BadInput] = []
    return [row for piece in pieces(file, source, "s") for row in rows(piece, source, "s", bad)], bad


def judge(number: int, known: dict[str, bytes], folder: Path) -> dict[str, Any]:
    """Read case `number` and hold every property against what came out; AssertionError says which does not hold."""
    name, data, source, draw = make(number, known)
    path = folder / name
    path.write_bytes(data)
    began = time.process_time()
    found, bad = read(SourceFile(name, path), source)
    seconds = time.process_time() - began
    assert found or bad, "neither a row nor a problem"
    for row in found:
        assert int(row["_line"]) >= 1
        "".join([*row, *row.values()]).encode("utf-8")
    for wrong in bad:
        assert wrong.line >= 0
        assert wrong.file == name
        assert all((wrong.reason, wrong.problem.rule, wrong.problem.fix))
    if name.endswith(".jsonl"):
        held = [line for line in re.split(rb"\r\n|\r|\n", data.removeprefix(b"\xef\xbb\xbf")) if _is_row(line)]
        if not any(wrong.reason in ("not text", "unreadable file", "no rows") for wrong in bad):
            assert len(found) + len(bad) == len(held), f"{len(held)} lines, {len(found)} rows, {len(bad)} problems"
        with path.open("rb") as stream:
            places = [mark for _, made in scan(stream, draw.randrange(1, 300)) for mark in made]
        marks = tuple(mark for mark in places if mark[0] < len(data))
        again, others = read(SourceFile(name, path, marks=marks), source)
        assert again == found, "the rows depend on the pieces"
        assert [w for w in others if w.reason != "no rows"] == [w for w in bad if w.reason != "no rows"]
    if name.endswith((".txt", ".log")) and not bad and source.cut.by in ("document", "paragraph", "log"):
        text = data.decode(source.encoding).removeprefix("\ufeff")
        assert "".join("".join(row["text"].split()) for row in found) == "".join(text.split()), "words were lost"
    outcome = "rows" if not bad else "rows and problems" if found else "problems"
    reasons = [wrong.reason for wrong in bad]
    return {"kind": name.removeprefix("case."), "outcome": outcome, "seconds": seconds, "reasons": reasons}


def _is_row(line: bytes) -> bool:
    text = line.decode("utf-8", "replace")
    return bool(text) and not text.isspace()


def child(first: int, last: int) -> None:
    """Judge the cases from first to before last and print what came of them."""
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    known = seeds()
    outcomes: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    slowest = (0.0, -1)
    with tempfile.TemporaryDirectory() as folder:
        for name, data in known.items():  # imports are no case's time
            path = Path(folder, f"whole.{name}")
            path.write_bytes(data)
            encoding = "gb18030" if name.startswith("gb") else "utf-16" if name.startswith("wide") else "utf-8"
            found, bad = read(SourceFile(path.name, path), Source(path="x", encoding=encoding))
            assert found, name
            assert not bad, name
        for number in range(first, last):
            faulthandler.dump_traceback_later(SECONDS, exit=True)
            try:
                made = judge(number, known, Path(folder))
            except BaseException:
                print(f"case {number}", file=sys.stderr)
                raise
            outcomes[f"{made['kind']}: {made['outcome']}"] += 1
            reasons.update(made["reasons"])
            slowest = max(slowest, (made["seconds"], number))
    faulthandler.cancel_dump_traceback_later()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert peak < MEMORY, f"{peak >> 20} MiB"
    print(json.dumps({
        "first": first, "last": last, "outcomes": outcomes, "reasons": reasons, "peak_mib": peak >> 20,
        "slowest_s": round(slowest[0], 3), "slowest_case": slowest[1],
    }))  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--state", type=Path, help="finished blocks, one a line; delete it to start anew")
    parser.add_argument("--child", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return 0
    done: list[dict[str, Any]] = []
    if options.state and options.state.exists():
        done = [json.loads(line) for line in options.state.read_text().splitlines()]
    began = sum(block["last"] - block["first"] for block in done)
    for first in range(began, options.cases, BLOCK):
        last = min(first + BLOCK, options.cases)
        command = [sys.executable, __file__, "--child", str(first), str(last)]
        outcome = subprocess.run(command, capture_output=True, text=True, check=False)
        if outcome.returncode:
            print(f"cases {first} to {last}: exit code {outcome.returncode}", outcome.stderr[-3000:], file=sys.stderr)
            return 1
        done.append(json.loads(outcome.stdout.splitlines()[-1]))
        if options.state:
            with options.state.open("a") as stream:
                stream.write(json.dumps(done[-1]) + "\n")
    total: dict[str, Counter[str]] = {"outcomes": Counter(), "reasons": Counter()}
    for key, counts in total.items():
        for block in done:
            counts.update(block[key])
    slowest = max(done, key=lambda block: block["slowest_s"])
    summary = {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "command": f"python benchmarks/corpus/fuzz.py --cases {options.cases}",
        "cases": options.cases, "crashes": 0, "peak_mib": max(block["peak_mib"] for block in done),
        "slowest_s": slowest["slowest_s"], "slowest_case": slowest["slowest_case"],
        **{key: dict(sorted(counts.items())) for key, counts in total.items()},
    }  # fmt: skip
    text = json.dumps(summary, indent=1, ensure_ascii=False)
    if options.out:
        options.out.write_text(text + "\n")
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
