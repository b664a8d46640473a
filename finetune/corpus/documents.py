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


def cut_document(name: str, kind: str, blocks: Sequence[Block], cut: Cut) -> Iterable[Found]:
    """Rows of one document. `Cut.by` says which columns they have; `text` is always one."""
    if not any(block.text.strip() for block in blocks):
        fix = "run text recognition (OCR) over it first" if kind == "pdf" else "put text into it, or take it out"
        return [bad(name, 0, "no text", "this document holds no text", fix)]
    if cut.by == "pattern":
        return _cut_pattern(name, blocks, cut)
    if cut.by == "page" and kind != "pdf":
        fix = "set cut.by to paragraph, heading or document"
        return [bad(name, 0, "cannot be cut", f"a {kind} document has no pages", fix, "page")]
    if cut.by == "heading":
        return _cut_heading(name, kind, blocks)
    if cut.by == "clause":
        return cut_clauses(name, blocks)
    if cut.by == "log":
        return cut_log(name, _lines(blocks))
    if cut.by == "document":
        return [_row(name, blocks[0].line, text=_joined(blocks))]
    pieces = blocks if cut.by == "page" else [piece for block in blocks if not block.level for piece in _split(block)]
    return [cut_paragraph(name, block) for block in pieces if block.text.strip()]


def cut_paragraph(name: str, block: Block) -> Row:
    return _row(name, block.line, text=block.text.strip())


def _lines(blocks: Iterable[Block]) -> Iterator[Line]:
    for block in blocks:
        for offset, text in enumerate(block.text.split("\n")):
            yield Line(block.line + offset, text, None)


def _cut_heading(name: str, kind: str, blocks: Sequence[Block]) -> Iterator[Found]:
    if not any(block.level for block in blocks):
        yield _uncut(name, kind)
        return
    trail: list[Block] = []
    body: list[Block] = []
    for block in [*blocks, Block("", 0, level=1)]:
        if not block.level:
            body.append(block)
            continue
        text = _joined(body)
        if text or (trail and block.level <= trail[-1].level):
            # A heading over nothing but smaller headings is in their path; one without a body is a row all the same.
            path = " > ".join(step.text for step in trail)
            first = trail[-1] if trail else body[0]
            yield _row(name, first.line, heading=trail[-1].text if trail else "", path=path, text=text)
        trail = [*(step for step in trail if step.level < block.level), block]
        body = []


def _uncut(name: str, kind: str) -> BadInput:
    rules = {"txt": "plain text has no headings", "pdf": "a PDF does not say what a heading is"}
    fix = "set cut.by to paragraph or page, or to pattern with a regular expression for its headings"
    return bad(name, 0, "cannot be cut", rules.get(kind, "this document has no heading"), fix, "heading")


def _cut_pattern(name: str, blocks: Sequence[Block], cut: Cut) -> Iterator[Found]:
    assert cut.pattern is not None, "checks ask for a pattern when cut.by is pattern"
    text = _joined(blocks)
    starts = _line_starts(blocks)
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


def _line_starts(blocks: Sequence[Block]) -> list[tuple[int, int]]:
    starts, offset = [(0, blocks[0].line)], 0
    for block in blocks:
        text = block.text.strip()
        if text:
            starts.append((offset, block.line))
            starts += [(offset + match.end(), block.line + i + 1) for i, match in enumerate(re.finditer("\n", text))]
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
