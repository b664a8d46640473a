"""Logs cut into their entries: an entry begins with a time stamp and goes on over the lines that have none."""

import re
from collections.abc import Iterable, Iterator

from finetune.corpus.streams import LINE_COST, LONGEST, BadInput, Line, bad
from finetune.corpus.tables import Found

_MONTH = "(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
_CLOCK = r"\d{1,2}:\d{2}(?::\d{2}(?:[.,]\d{1,9})?)?"
_STAMP = re.compile(
    r"(?:<\d{1,3}>\d? ?)?(?:[\[(]\s*)?"
    r"(?:(?:TRACE|DEBUG|INFO|NOTICE|WARN(?:ING)?|ERROR|CRITICAL|FATAL)\]?[ :]+\[?)?(?P<time>"
    rf"\d{{4}}[-/.]\d{{1,2}}[-/.]\d{{1,2}}(?:[T ,]+{_CLOCK}(?: ?(?:Z|UTC|[+-]\d{{2}}:?\d{{2}}))?)?(?!\d)"
    rf"|\d{{4}}年\d{{1,2}}月\d{{1,2}}日 ?(?:{_CLOCK}|\d{{1,2}}[时点](?:\d{{1,2}}分?)?(?:\d{{1,2}}秒)?)?"
    rf"|\d{{1,2}}[-/. ]{_MONTH}[-/. ]\d{{4}}[: ]{_CLOCK}(?: ?[+-]\d{{4}})?"
    rf"|(?:(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun),? )?{_MONTH} {{1,2}}\d{{1,2}}(?:,? \d{{4}})? {_CLOCK}(?: \d{{4}})?"
    rf"|\d{{1,2}}[./]\d{{1,2}}[./]\d{{2,4}},? {_CLOCK}(?: ?[AP]M)?"
    rf"|[IWEF]\d{{4}} {_CLOCK}"
    r")"
)


def cut_log(name: str, lines: Iterable[Line]) -> Iterator[Found]:
    """Rows with `time` (as written) and `text` (the whole entry).

    Lines before the first stamp are a row without time. An entry with a line that cannot be read is no row.
    """
    stamps = 0
    first, time, size = 0, "", 0
    held: list[str] = []
    wrong: list[BadInput] = []
    for line in lines:
        match = _STAMP.match(line.text)
        if match is not None:
            yield from wrong or _entry(name, first, time, held)
            stamps += 1
            first, time, held, size, wrong = line.number, match["time"].strip(), [line.text], 0, []
        else:
            first = first or line.number
            held.append(line.text)
        size += len(line.text) + LINE_COST
        if line.wrong is not None:
            wrong.append(line.wrong)
        if size > LONGEST:
            rule = f"an entry of this log is longer than {LONGEST >> 20} MiB"
            wrong = [bad(name, first, "line too long", rule, "check that its entries begin with a time")]
            held, size = [], 0
    if not stamps and not wrong:
        rule = "no line of this file begins with a time stamp"
        fix = "set cut.by to paragraph, or to pattern with an expression for entries"
        yield bad(name, 0, "cannot be cut", rule, fix, "log")
        return
    yield from wrong or _entry(name, first, time, held)


def _entry(name: str, line: int, time: str, lines: list[str]) -> Iterator[Found]:
    text = "\n".join(text.rstrip() for text in lines).strip()
    if text:
        yield {"time": time, "text": text, "_file": name, "_line": str(line)}
