"""Documents become rows: their blocks, in reading order, cut on the document's own structure."""

import re
from collections.abc import Iterable, Iterator, Sequence

from finetune.config.data import Cut
from finetune.corpus.blocks import Block
from finetune.corpus.clauses import cut_clauses
from finetune.corpus.logs import cut_log
from finetune.corpus.patterns import find_all
from finetune.corpus.streams import BadInput, Line, bad
from finetune.corpus.tables import Found, Row

_OF_LINES = ("txt", "md")
"""Documents whose blocks say the line that they begin at; of others it is the page or the part, for all their lines."""


def cut_document(name: str, kind: str, blocks: Sequence[Block], cut: Cut) -> Iterable[Found]:
    """Rows of one document. `Cut.by` says which columns they have; `text` is always one."""
    if not any(block.text.strip() for block in blocks):
        fix = "run text recognition (OCR) over it first" if kind == "pdf" else "put text into it, or take it out"
        return [bad(name, 0, "no text", "this document holds no text", fix)]
    if cut.by == "pattern":
        return _cut_pattern(name, kind, blocks, cut)
    if cut.by == "page" and kind != "pdf":
        fix = "set cut.by to paragraph, heading or document"
        return [bad(name, 0, "cannot be cut", f"a {kind} document has no pages", fix, "page")]
    if cut.by == "heading":
        return _cut_heading(name, kind, blocks)
    if cut.by == "clause":
        return cut_clauses(name, blocks, counts=kind in _OF_LINES)
    if cut.by == "log":
        return cut_log(name, _lines(blocks, counts=kind in _OF_LINES))
    if cut.by == "document":
        return [_row(name, blocks[0].line, text=_joined(blocks))]
    if cut.by == "page":
        return [_row(name, block.line, text=block.text.strip()) for block in blocks if block.text.strip()]
    return _cut_paragraphs(name, blocks)


def cut_paragraph(name: str, block: Block, heading: str = "", path: str = "") -> Row:
    return _row(name, block.line, heading=heading, path=path, text=block.text.strip())


def _cut_paragraphs(name: str, blocks: Sequence[Block]) -> Iterator[Row]:
    """Rows with the heading and the path that they stand under; a heading over nothing is one without text."""
    for trail, body in _sections(blocks):
        said = (trail[-1].text, " > ".join(step.text for step in trail)) if trail else ("", "")
        pieces = [piece for block in body for piece in _split(block)]
        for piece in pieces or trail[-1:]:
            yield cut_paragraph(name, piece if pieces else Block("", piece.line), *said)


def _lines(blocks: Iterable[Block], *, counts: bool) -> Iterator[Line]:
    for block in blocks:
        for offset, text in enumerate(block.text.split("\n")):
            yield Line(block.line + offset * counts, text, None)


def _cut_heading(name: str, kind: str, blocks: Sequence[Block]) -> Iterator[Found]:
    if not any(block.level and block.text.strip() for block in blocks):
        yield _uncut(name, kind)
        return
    for trail, body in _sections(blocks):
        path = " > ".join(step.text for step in trail)
        first = trail[-1] if trail else body[0]
        yield _row(name, first.line, heading=trail[-1].text if trail else "", path=path, text=_joined(body))


def _sections(blocks: Sequence[Block]) -> Iterator[tuple[list[Block], list[Block]]]:
    """(headings above it and its own, what stands under that) for each heading, and for what comes before the first."""
    trail: list[Block] = []
    body: list[Block] = []
    told = (block for block in blocks if block.text.strip())
    for block in [*told, Block("", 0, level=1)]:
        if not block.level:
            body.append(block)
            continue
        # A heading over nothing but smaller headings is in their path; one without a body is a section all the same.
        if body or (trail and block.level <= trail[-1].level):
            yield trail, body
        trail = [*(step for step in trail if step.level < block.level), block]
        body = []


def _uncut(name: str, kind: str) -> BadInput:
    rules = {"txt": "plain text has no headings", "pdf": "a PDF does not say what a heading is"}
    fix = "set cut.by to paragraph or page, or to pattern with a regular expression for its headings"
    return bad(name, 0, "cannot be cut", rules.get(kind, "this document has no heading"), fix, "heading")


def _cut_pattern(name: str, kind: str, blocks: Sequence[Block], cut: Cut) -> Iterator[Found]:
    assert cut.pattern is not None, "checks ask for a pattern when cut.by is pattern"
    text = _joined(blocks)
    starts = _line_starts(blocks, counts=kind in _OF_LINES)
    matches = find_all(text, re.compile(cut.pattern, re.MULTILINE | re.DOTALL), name)
    at = 0
    for match in matches:
        groups = {key: " ".join((value or "").split()) for key, value in match.groupdict().items()}
        while at + 1 < len(starts) and starts[at + 1][0] <= match.start():
            at += 1
        yield _row(name, starts[at][1], **{"text": match.group().strip(), **groups})
    if not matches:
        rule = "the pattern is found nowhere in this document"
        yield bad(name, 0, "cannot be cut", rule, "correct cut.pattern", cut.pattern)


def _line_starts(blocks: Sequence[Block], *, counts: bool) -> list[tuple[int, int]]:
    starts, offset = [(0, blocks[0].line)], 0
    for block in blocks:
        text = block.text.strip()
        if text:
            starts.append((offset, block.line))
            ends = re.finditer("\n", text) if counts else ()
            starts += [(offset + match.end(), block.line + i) for i, match in enumerate(ends, start=1)]
            offset += len(text) + 2
    return starts


def _joined(blocks: Iterable[Block]) -> str:
    return "\n\n".join(text for block in blocks if (text := block.text.strip()))


def _split(block: Block) -> Iterator[Block]:
    """A block at its blank lines (a PDF page is one block)."""
    line = block.line
    for piece in re.split(r"(\n[^\S\n]*\n\s*)", block.text):
        if piece.strip():
            yield Block(piece, line, block.level)


def _row(name: str, line: int, **columns: str) -> Row:
    return {**columns, "_file": name, "_line": str(line)}
