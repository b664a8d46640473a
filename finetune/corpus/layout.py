"""What a page did to a text, undone: running heads and feet, page numbers, words cut in two, lines of a paragraph.

Works on a whole document, before it is cut: only there does a head repeat and a joined word stand elsewhere. Nothing is
looked up in a dictionary, so that every language and every trade's words are treated alike.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from finetune.config.data import Layout
from finetune.corpus.blocks import Block, Blocks

_DEEPEST = 3
"""Lines of furniture at one edge of a page at most."""
_FEWEST = 3
"""Pages on which a line must stand to be furniture."""
_NEAR = 2
"""Pages from one such page to the next at most: left and right pages may have heads of their own."""
_FULL = 0.75
"""Share of the document's line width from which a line is full, so that its paragraph may go on."""

_HAN = "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WIDE = _HAN + "\u3001-\u3003\u3008-\u3011\u3014-\u301f\u3040-\u30ff\uff00-\uff60\uffe0-\uffe6"
_QUOTES = "“”‘’…·"
"""Marks that are as wide as what stands beside them."""
_NUMBER = re.compile(r"\d+|(?<![^\W_])[ivxlc]+(?![^\W_])|(?<=第)[〇零一二三四五六七八九十百]+(?=页)")
_TORN = re.compile(r"(?<![^\W\d_])([^\W\d_]+)-$")
_GOES_ON = re.compile(r"([^\W\d_]+)(?=[^\w-]|$)")
_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
_ENDS = re.compile(r"[.!?:;。！？：；][\"'”’）)】」』]*$")
_HEADING = re.compile(
    r"第[〇零一二三四五六七八九十百千\d]+[编章节条]|(?:article|section|sec\.|art\.|chapter|part|§)\s*[\divxlc]"
)
_BEGINS = re.compile(
    r"\s*(?:[-*•·–—▪●○■□◆]\s|[(（]?(?:\d+|[a-zA-Z]|[ivxlc]+)[.)）、](?:\s|(?=[^\d\s]))|"
    r"[(（][一二三四五六七八九十百]+[)）]|[一二三四五六七八九十百]+、|"
    r"第[〇零一二三四五六七八九十百千\d]+[编章节条款项]|【|#|\||(?:Article|Section|Sec\.|Chapter|§)\s*[\dIVXLC])",
)


@dataclass(frozen=True)
class Page:
    """One page of a document: its lines, each with the number that rows call it by (page of a PDF, line of a text)."""

    lines: tuple[str, ...]
    numbers: tuple[int, ...]


@dataclass
class Tidied:
    """What was changed: `lines in = lines out + furniture + joined`, where blank lines count as none."""

    counts: Counter[str] = field(default_factory=Counter)
    samples: dict[str, list[tuple[int, str, str]]] = field(default_factory=lambda: defaultdict(list))
    """`furniture`, `hyphens` and `lines`: at most three of (number, before, after)."""

    def note(self, what: str, number: int, before: str, after: str) -> None:
        self.counts[what] += 1
        if len(self.samples[what]) < 3:
            self.samples[what].append((number, before, after))


def tidy_pages(pages: Sequence[Page], layout: Layout, over_pages: bool = True) -> tuple[list[Page], Tidied]:
    """The pages without their furniture, torn words joined and lines of one paragraph joined, as `layout` asks.

    With `over_pages` the rest of a paragraph that goes on over the end of a page joins its beginning.
    """
    tidied = Tidied()
    if layout.furniture:
        pages = _without_furniture(pages, tidied)
    if layout.hyphens:
        pages = _without_hyphens(pages, tidied)
    if layout.lines:
        pages = _without_wraps(pages, tidied, over_pages)
    return list(pages), tidied


def tidy_blocks(blocks: Blocks, layout: Layout, over_pages: bool) -> tuple[Blocks, Tidied]:
    """As `tidy_pages`, for the blocks of a PDF: one for each page."""
    pages = [Page(lines := tuple(block.text.split("\n")), (block.line,) * len(lines)) for block in blocks]
    tidied, changed = tidy_pages(pages, layout, over_pages)
    return [Block("\n".join(page.lines), block.line) for page, block in zip(tidied, blocks, strict=True)], changed


def tidy_text(text: str, layout: Layout) -> tuple[Blocks, Tidied]:
    """As `tidy_pages`, for a text whose pages end in form feeds: one block for each paragraph."""
    pages, changed = tidy_pages(pages_of(text), layout)
    return [Block(paragraph, line) for paragraph, line in paragraphs(pages)], changed


def pages_of(text: str) -> list[Page]:
    """The pages of a text whose pages end in form feeds; a text without one is one page."""
    pages, number = [], 1
    for page in text.split("\f"):
        lines = tuple(page.split("\n"))
        pages.append(Page(lines, tuple(range(number, number + len(lines)))))
        number += len(lines) - 1
    return pages


def paragraphs(pages: Sequence[Page]) -> list[tuple[str, int]]:
    """The paragraphs of a text with the line that each begins at. The end of a page ends one, unless it goes on."""
    found: list[tuple[list[str], int]] = []
    full = _full_width(pages)
    open_ = False
    for page in pages:
        if open_:
            first = next((line for line in page.lines if line.strip()), "")
            open_ = _goes_on(found[-1][0][-1], first, full)
        began = False
        for line, number in zip(page.lines, page.numbers, strict=True):
            if not line.strip():
                open_ = open_ and not began
                continue
            if open_:
                found[-1][0].append(line.rstrip())
            else:
                found.append(([line.rstrip()], number))
            open_ = began = True
        open_ = bool(found)
    return [("\n".join(lines), number) for lines, number in found]


# --- furniture ------------------------------------------------------------------------------------------------------


def find_furniture(pages: Sequence[Sequence[str]]) -> list[set[int]]:
    """For each page the indices of its lines that are running heads, running feet or page numbers.

    A line is furniture where it is the outermost line of its edge, or stands next to furniture there (at most three
    deep), and says the same at that edge of at least three pages that follow each other with at most one other page
    between two. The same means: the same characters, but for one number that counts up as the pages do.
    """
    found: list[set[int]] = [set() for _ in pages]
    edges: list[tuple[list[int], ...]] = []
    for page in pages:
        there = [i for i, line in enumerate(page) if line.strip()]
        edges.append((there[:_DEEPEST], there[::-1][:_DEEPEST]))
    for edge in (0, 1):
        on_pages: dict[str, list[int]] = defaultdict(list)
        keys = [{i: _keys(pages[n][i], n) for i in both[edge]} for n, both in enumerate(edges)]
        for n, lines in enumerate(keys):
            for key in {key for several in lines.values() for key in several}:
                on_pages[key].append(n)
        standing = {key: repeated for key, where in on_pages.items() if (repeated := _repeated(where))}
        for n, both in enumerate(edges):
            for i in both[edge]:
                if not any(n in standing.get(key, ()) for key in keys[n][i]):
                    break
                found[n].add(i)
    return found


def _keys(line: str, page: int) -> list[str]:
    """What a line says, and what it says when one of its numbers is counted from the page that it stands on."""
    plain = " ".join(unicodedata.normalize("NFKC", line).casefold().split())
    keys = [plain]
    if _HEADING.match(plain):  # one article a page counts up as well
        return keys
    for match in _NUMBER.finditer(plain):
        value = _value(match.group())
        if value is not None:
            keys.append(f"{plain[: match.start()]}\0{value - page}\0{plain[match.end() :]}")
    return keys


def _repeated(pages: Sequence[int]) -> set[int]:
    """Those of the (rising) page indices that lie in a run of at least three, with at most one other between two."""
    kept: set[int] = set()
    run: list[int] = []
    for page in [*pages, pages[-1] + _NEAR + 1]:
        if run and page - run[-1] > _NEAR:
            kept |= set(run) if len(run) >= _FEWEST else set()
            run = []
        run.append(page)
    return kept


_ROMAN = {"i": 1, "v": 5, "x": 10, "l": 50, "c": 100}
_CHINESE = {digit: value for value, digit in enumerate("零一二三四五六七八九")} | {"〇": 0}


def _value(digits: str) -> int | None:
    if digits[0] in _ROMAN:
        values = [_ROMAN[digit] for digit in digits]
        return sum(-a if a < b else a for a, b in zip(values, [*values[1:], 0], strict=True))
    if digits[0] in "十百" or digits[0] in _CHINESE:
        total, unit = 0, 0
        for digit in digits:
            if digit in "十百":
                total += (unit or 1) * (10 if digit == "十" else 100)
                unit = 0
            else:
                unit = unit * 10 + _CHINESE[digit]
        return total + unit
    return int(digits) if len(digits) <= 6 else None


def _without_furniture(pages: Sequence[Page], tidied: Tidied) -> list[Page]:
    left = []
    for page, gone in zip(pages, find_furniture([page.lines for page in pages]), strict=True):
        for i in sorted(gone):
            tidied.note("furniture", page.numbers[i], page.lines[i], "")
        left.append(_take(page, [i for i in range(len(page.lines)) if i not in gone]))
    return left


def _take(page: Page, chosen: Sequence[int]) -> Page:
    return Page(tuple(page.lines[i] for i in chosen), tuple(page.numbers[i] for i in chosen))


# --- torn words -----------------------------------------------------------------------------------------------------


def _without_hyphens(pages: Sequence[Page], tidied: Tidied) -> list[Page]:
    """Words torn by a hyphen at a line end made whole, where the document itself says how they are written.

    `trans-|port` becomes `transport` where that word stands elsewhere, `long-|term` becomes `long-term` where that one
    does; where both or neither do, the more frequent wins, and an unknown word is left torn and counted.
    """
    known = Counter(word for page in pages for line in page.lines for word in _whole_words(line))
    return [_mend(page, known, tidied) for page in pages]


def _whole_words(line: str) -> Iterator[str]:
    for match in _WORD.finditer(line):
        if not line[match.end() :].startswith("-"):
            yield match.group().casefold()


def _mend(page: Page, known: Counter[str], tidied: Tidied) -> Page:
    lines = list(page.lines)
    emptied: set[int] = set()
    for i in range(len(lines) - 1):
        line = lines[i].rstrip()
        torn = _TORN.search(line)
        rest = lines[i + 1].lstrip()
        tail = _GOES_ON.match(rest)
        if torn is None or tail is None or re.search(f"[{_HAN}]", torn.group() + tail.group()):
            continue
        head = torn.group(1)
        # In `mother-in-|law` the whole word begins before what the line end tore off.
        before = re.search(r"(?<![^\W\d_])(?<![^\W\d_]-)(?:[^\W\d_]+-)*$", line[: torn.start()])
        whole = (before.group() if before else "") + head
        joined, kept = known[(whole + tail.group()).casefold()], known[f"{whole}-{tail.group()}".casefold()]
        if not joined and not kept:
            tidied.counts["hyphens left"] += 1
            continue
        # A capital after the hyphen is a name of two parts (`Austria-Hungary`) unless the document joins it itself.
        link = "" if joined > kept else "-"
        rest_of_line = rest[tail.end() :]
        # Punctuation that belongs to the word goes up with it.
        punctuation = re.match(r"[^\s\w]*", rest_of_line)
        moved = tail.group() + (punctuation.group() if punctuation else "")
        after = line[: torn.end() - 1] + link + moved
        tidied.note("hyphens" if not link else "hyphens kept", page.numbers[i], f"{line}\n{rest}", after)
        lines[i] = after
        lines[i + 1] = rest[len(moved) :].lstrip()
        emptied |= set() if lines[i + 1] else {i + 1}
    return _take(Page(tuple(lines), page.numbers), [i for i in range(len(lines)) if i not in emptied])


# --- lines of one paragraph -----------------------------------------------------------------------------------------


def _without_wraps(pages: Sequence[Page], tidied: Tidied, over_pages: bool) -> list[Page]:
    """Lines joined to paragraphs: a full line goes on in the next one unless that one begins something of its own.

    Full is a line of at least three quarters of the document's line width (its 90th percentile, a Chinese character
    counted as two), or one that ends in the middle of a sentence and is followed by a small letter.
    """
    full = _full_width(pages)
    spaced = _spaced(line for page in pages for line in page.lines)
    # A line is held in the parts that it is joined of: a paragraph may have a million.
    joined: list[tuple[list[list[str]], list[int]]] = []
    above = ""
    target: list[list[str]] = []
    for page in pages:
        lines: list[list[str]] = []
        numbers: list[int] = []
        for line, number in zip(page.lines, page.numbers, strict=True):
            if not lines and not line.strip() and over_pages:
                continue
            # At the top of a page the line above is the last one of the page before.
            into = lines or target
            if into and (lines or over_pages) and _goes_on(above, line, full):
                tidied.note("lines", number, f"{above}\n{line}", join_lines(above, line, spaced))
                parts = into[-1]
                parts[-1] = parts[-1].rstrip()
                between = _between("".join(parts[-2:]), line.strip(), spaced)
                parts.append(between + line.strip())
            else:
                lines.append([line])
                numbers.append(number)
            above = line
        while over_pages and lines and not lines[-1][0].strip():
            lines.pop()
            numbers.pop()
        if lines:
            target, above = lines, above if above.strip() else "".join(lines[-1])
        joined.append((lines, numbers))
    return [Page(tuple(map("".join, lines)), tuple(numbers)) for lines, numbers in joined]


def _full_width(pages: Sequence[Page]) -> float:
    widths = sorted(_width(line) for page in pages for line in page.lines if line.strip())
    return _FULL * widths[len(widths) * 9 // 10] if widths else 0.0


def _goes_on(above: str, line: str, full: float) -> bool:
    if not above.strip() or not line.strip() or " | " in above or " | " in line:
        return False
    if _BEGINS.match(line) or _indent(line) > _indent(above):
        return False
    if _width(above) >= full:
        return True
    return not _ENDS.search(above.rstrip()) and line.lstrip()[:1].islower()


def _indent(line: str) -> int:
    return _width_of(line[: len(line) - len(line.lstrip())])


def join_lines(above: str, line: str, spaced: bool) -> str:
    """Two lines as one. No space between Chinese characters or beside full-width marks; after a hyphen none either;
    between Chinese and Latin as `spaced` says."""
    above, line = above.rstrip(), line.strip()
    return above + _between(above, line, spaced) + line


def _between(above: str, line: str, spaced: bool) -> str:
    last, first = above[-1:], line[:1]
    wide = _is_wide(last) + _is_wide(first)
    beside = last in _QUOTES or first in _QUOTES
    if wide == 2 or (wide and beside) or _is_mark(last) or _is_mark(first):
        return ""
    if wide:
        return " " if spaced else ""
    return "" if re.search(r"[^\W\d_]-$|\S—$", above[-2:]) else " "


def _spaced(lines: Iterable[str]) -> bool:
    """Whether this document sets a space between Chinese and Latin letters more often than not."""
    with_space = without = 0
    for line in lines:
        with_space += len(re.findall(f"[{_HAN}] [A-Za-z0-9]|[A-Za-z0-9] [{_HAN}]", line))
        without += len(re.findall(f"[{_HAN}][A-Za-z0-9]|[A-Za-z0-9][{_HAN}]", line))
    return with_space > without


def _is_wide(char: str) -> bool:
    return bool(char) and re.match(f"[{_WIDE}]", char) is not None


def _is_mark(char: str) -> bool:
    return bool(char) and char in "，。、；：？！（）《》〈〉【】「」『』"


def _width(line: str) -> int:
    return _width_of(line.strip())


def _width_of(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)
