"""Documents cut at their numbered clauses: `第十二条`, `Article 5`, `Section 1.02`, `§ 7`, `4.2`.

A number at the start of a line begins a clause only where it goes on from the one before it, so that a reference, a
list inside a clause or an amount does not. Of several ways of numbering in one document the first of the above that
stands there twice is taken; the others are text.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from finetune.corpus.blocks import Block
from finetune.corpus.streams import bad
from finetune.corpus.tables import Found

_ZH = "零〇一二两三四五六七八九十百千"
_TAIL = r"[.:)：、]?[ \t\u3000]*[—–-]?[ \t\u3000]*(?P<rest>.*)"
_FAMILIES = {
    "zh": re.compile(rf"(?P<number>第(?P<at>[{_ZH}\d]+)条(?:之[{_ZH}]+)?)(?P<gap>[ \t\u3000]*){_TAIL}"),
    "word": re.compile(
        r"(?P<number>(?P<kind>Article|Art\.|Section|Sec\.|Clause|Rule|Regulation)[ \t]+"
        rf"(?P<at>\d{{1,6}}(?:[.-]\d{{1,6}}){{0,5}}[A-Z]{{0,2}}|[IVXLC]{{1,12}})(?=[\s.:)—–-]|$)){_TAIL}",
        re.IGNORECASE,
    ),
    "sign": re.compile(
        rf"(?P<number>§{{1,2}}[ \t]*(?P<at>\d{{1,6}}(?:[.-]\d{{1,6}}){{0,5}}[a-zA-Z]{{0,2}}))(?!\w){_TAIL}"
    ),
    "plain": re.compile(rf"(?P<number>(?P<at>\d{{1,4}}(?:\.\d{{1,4}}){{0,5}}))(?=[.):、\s]|$){_TAIL}"),
}
_PART = re.compile(
    rf"第[{_ZH}\d]+(?P<zh>[编章节])(?![{_ZH}\d]*条)"
    r"|(?P<en>Title|Part|Chapter|Subchapter)[ \t]+(?:\d{{1,4}}|[IVXLC]{{1,12}})(?=[\s.:—–-]|$)",
    re.IGNORECASE,
)
_LEVELS = {"编": 1, "章": 2, "节": 3, "title": 1, "part": 2, "chapter": 3, "subchapter": 4}
_REFERENCE = re.compile(r"[a-z(,;]|规定|所|的|至|和|及|与|或|、|第|之|款|中|不|并|以")
_SENTENCE = re.compile(r"[.;:!?]\s|[.;:,!?][\"'”’)）]*$|[。；：，！？]")
_LONGEST_HEADING = 120
_ROMAN = {"i": 1, "v": 5, "x": 10, "l": 50, "c": 100}


@dataclass(frozen=True)
class _Step:
    """A title on the way to a row."""

    depth: int
    title: str


@dataclass
class _Clause:
    """One row in the making."""

    line: int
    number: str
    path: tuple[str, ...]
    first: str = ""
    titled: bool = False
    """The number stands in a heading of the document: what follows it is the clause's heading."""
    step: _Step | None = None
    body: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Start:
    number: str
    kind: str
    at: tuple[int, ...]
    rest: str


def cut_clauses(name: str, blocks: Sequence[Block], *, counts: bool = True) -> Iterator[Found]:
    """Rows with `number` (as written), `heading`, `path` (what stands above it) and `text`.

    What comes before the first clause, and under a chapter before its first, is a row without number.
    """
    lines = list(_lines(blocks, counts))
    family, starts = _choose(lines)
    if not starts:
        rule = "this document has no numbered clause at the start of a line (第X条, Article N, § N, 1.1)"
        yield bad(name, 0, "cannot be cut", rule, "set cut.by to paragraph, heading or document", "clause")
        return
    trail: list[_Step] = []
    kinds: list[str] = []
    clause = _Clause(blocks[0].line, "", ())
    for index, (line, text, level) in enumerate(lines):
        start = starts.get(index)
        part = _PART.match(text) if start is None else None
        if start is None and part is None and not level:
            clause.body.append(text)
            continue
        if start is not None:
            depth = 20 + (len(start.at) if family == "plain" else _rank(kinds, start.kind))
            title = f"{start.number} {start.rest}" if _is_title(start.rest) else start.number
        else:
            depth = 10 + level if part is None else _LEVELS[(part["zh"] or part["en"]).lower()]
            title = text
        trail = [step for step in trail if step.depth < depth]
        yield from _row(name, clause, told=any(step is clause.step for step in trail))
        above, step = tuple(step.title for step in trail), _Step(depth, title)
        if start is None:
            clause = _Clause(line, "", (*above, title), step=step)
        else:
            clause = _Clause(line, start.number, above, start.rest, titled=level > 0, step=step)
        trail.append(step)
    yield from _row(name, clause, told=False)


def _lines(blocks: Sequence[Block], counts: bool) -> Iterator[tuple[int, str, int]]:
    """(line, text, level): every line of the blocks, an empty one between two blocks."""
    for block in blocks:
        if block.level:
            yield block.line, " ".join(block.text.split()), block.level
            continue
        for offset, text in enumerate(block.text.strip("\n").split("\n")):
            yield block.line + offset * counts, text.strip(" \t\u3000"), 0
        yield block.line, "", 0


def _choose(lines: Sequence[tuple[int, str, int]]) -> tuple[str, dict[int, _Start]]:
    found = {family: _starts(lines, family) for family in _FAMILIES}
    several = next((family for family, starts in found.items() if len(starts) > 1), None)
    family = several or next((family for family, starts in found.items() if starts), "plain")
    return family, found[family]


def _starts(lines: Sequence[tuple[int, str, int]], family: str) -> dict[int, _Start]:
    starts: dict[int, _Start] = {}
    last: dict[str, tuple[int, ...]] = {}
    listed: tuple[int, ...] = ()
    for index, (_, text, level) in enumerate(lines):
        match = _FAMILIES[family].match(text)
        if match is None:
            continue
        kind = match["kind"].lower()[:3] if family == "word" else family
        at, rest = _value(match["at"]), match["rest"].strip()
        before = last.get(kind)
        if family != "plain":
            refers = _REFERENCE.match(rest) is not None and not (family == "zh" and match["gap"])
            fits = level > 0 or (not refers and (before is None or at > before or set(at) <= {0, 1}))
        elif listed and at == (*listed[:-1], listed[-1] + 1):
            listed, fits = at, False  # 1., 2., 3. inside a clause
        else:
            fits = _goes_on(before, at)
            listed = () if fits else at if set(at) <= {0, 1} else listed
        if fits:
            starts[index] = _Start(match["number"], kind, at, rest)
            last[kind] = at
    return starts


def _goes_on(before: tuple[int, ...] | None, at: tuple[int, ...]) -> bool:
    """4.2 -> 4.3, 4.2.1, 5 or 5.1; the first is 1, 1.1 or the like."""
    if before is None:
        return set(at) <= {0, 1}
    same = next((i for i, (one, other) in enumerate(zip(before, at, strict=False)) if one != other), None)
    if same is None:
        return len(at) > len(before) and set(at[len(before) :]) <= {0, 1}
    return at[same] == before[same] + 1 and set(at[same + 1 :]) <= {0, 1}


def _value(number: str) -> tuple[int, ...]:
    if number[0].isascii() and number[0].isdecimal():
        digits = tuple(int(part) for part in re.findall(r"\d+", number))
        letters = re.search(r"[A-Za-z]+$", number)
        return digits + tuple(ord(letter) for letter in letters.group().lower()) if letters else digits
    if number[0] in _ZH or not number.isascii():
        return (_chinese(number),)
    values = [_ROMAN[letter] for letter in number.lower()]
    return (sum(-one if one < other else one for one, other in zip(values, [*values[1:], 0], strict=True)),)


def _chinese(number: str) -> int:
    """一百二十三 -> 123, 二〇五 -> 205, 12 -> 12."""
    if not any(letter in "十百千" for letter in number):
        return int("".join(letter if letter.isdecimal() else str(_digit(letter)) for letter in number))
    total, digit = 0, 0
    for letter in number:
        if letter in "十百千":
            total, digit = total + (digit or 1) * {"十": 10, "百": 100, "千": 1000}[letter], 0
        else:
            digit = int(letter) if letter.isdecimal() else _digit(letter)
    return total + digit


def _digit(letter: str) -> int:
    return 2 if letter == "两" else max("零一二三四五六七八九".find(letter), 0)


def _rank(outer: list[str], kind: str) -> int:
    """Kinds of clauses by their first appearance: Articles that hold Sections come first."""
    if kind not in outer:
        outer.append(kind)
    return outer.index(kind)


def _is_title(text: str, below: str = "") -> bool:
    """Short, no sentence, and what stands below does not go on with it: as a number or a reference would."""
    goes_on = below[:1].islower() or below[:1].isdecimal() or any(form.match(below) for form in _FAMILIES.values())
    return 0 < len(text) <= _LONGEST_HEADING and not _SENTENCE.search(text) and not goes_on


def _row(name: str, clause: _Clause, *, told: bool) -> Iterator[Found]:
    """The row of a clause; none for a title over nothing but smaller ones: it is `told` in their path."""
    body = re.sub(r"\n{3,}", "\n\n", "\n".join(clause.body)).strip()
    heading = clause.first if clause.titled or (_is_title(clause.first, body) and (body or told)) else ""
    if clause.number and not clause.first:
        first, _, rest = body.partition("\n")
        heading, body = (first, rest.strip()) if rest.strip() and _is_title(first, rest) else ("", body)
    elif clause.number and not heading:
        body = f"{clause.first}\n{body}".strip()
    elif clause.step is not None and not clause.number:
        heading = clause.step.title
    if not body and (told or clause.step is None):
        return
    path = " > ".join(clause.path)
    place = {"_file": name, "_line": str(clause.line)}
    yield {"number": clause.number, "heading": heading, "path": path, "text": body, **place}
