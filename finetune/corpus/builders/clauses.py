"""Numbers of clauses, and references to them, in English and Chinese."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from finetune.config.build import Headed
from finetune.corpus.build import Item, fill
from finetune.corpus.builders.sentences import Extent

_DIGITS = {"零": 0, "〇": 0, "一": 1, "二": 2, "两": 2, "三": 3, "四": 4, "五": 5, "六": 6, "七": 7, "八": 8, "九": 9}
_UNITS = {"十": 10, "百": 100, "千": 1000}
_ZH = r"[零〇一二两三四五六七八九十百千0-9]+"
_NUMBER = r"[0-9]+[A-Z]{0,2}(?:[.\-–][0-9A-Z]+[a-z]?)*"
_CODE = r"[A-Z]{1,3}-?[0-9][0-9A-Z]*(?:\.[0-9A-Z]+)*"
_KINDS = {
    "article": "article", "art": "article", "section": "section", "sec": "section", "§": "section", "clause": "clause",
    "paragraph": "paragraph", "para": "paragraph", "rule": "rule", "regulation": "regulation", "annex": "annex",
    "schedule": "schedule", "part": "part", "chapter": "chapter", "step": "step",
}  # fmt: skip
_WORD = "|".join(sorted((kind for kind in _KINDS if kind != "§"), key=len, reverse=True))
_LABEL = re.compile(
    rf"\s*(?:(?:(?P<kind>{_WORD})s?\.?\s+|(?P<sign>§+)\s*)(?P<number>{_NUMBER})(?=[\s.:,)—–-]|$)"
    rf"|(?P<bare>{_NUMBER}|(?-i:{_CODE}))(?=[.)]?\s|[.)]?$)|第(?P<zh>{_ZH})条(?:之(?P<zh2>[一二三四五六七八九十]+))?)[.:)]*\s*[—–-]?\s*",
    re.IGNORECASE,
)
_REFERENCE = re.compile(
    rf"(?:\b(?P<kind>{_WORD})(?P<many>s)?\.?\s+|(?P<sign>§+)\s*)(?P<number>{_NUMBER})"
    rf"(?P<part>(?:\s?\([a-zA-Z0-9]{{1,5}}\))*)"
    r"(?P<more>(?:,\s*|\s+(?:and|or|to|through)\s+|,\s*(?:and|or)\s+|\s*[–—]\s*)"
    rf"(?:{_NUMBER}|\([a-zA-Z0-9]{{1,5}}\))(?![\w]))?",
    re.IGNORECASE,
)
_CHAIN = re.compile(
    rf"(?:,?\s*(?:and|or)?\s*(?:(?:{_WORD})s?\.?\s+|§+\s*){_NUMBER}(?:\s?\([a-zA-Z0-9]{{1,5}}\))*)*", re.IGNORECASE
)
_ELSEWHERE = re.compile(
    r"\s*,?\s*(?:of|to|in|under)\s+(?!this\b|that\s+(?:article|section|clause)\b|the\s+(?:present|same)\b)"
    r"(?:the\s+|an?\s+|any\s+|title\s|chapter\s|part\s|[A-Z“\"]|such\s|that\s|its\s)|\s+(?:U\.?S\.?C|CFR|C\.F\.R)\b"
)
_BEFORE = re.compile(r"(?:\b(?:U\.?S\.?C\.?|CFR|C\.F\.R\.|Act|Code|Directive|Convention|Treaty)\s*,?\s*)$")
_REFERENCE_ZH = re.compile(
    rf"(?P<law>《[^》]{{1,40}}》|本[法条规办解决细][例定法释则]?)?第(?P<number>{_ZH})条"
    r"(?:之(?P<second>[一二三四五六七八九十]+))?"
    rf"(?P<part>(?:第{_ZH}款)?(?:第[（(]?{_ZH}[）)]?项)?)"
    rf"(?P<more>\s*(?:、|和|或者?|至|到|及|以及|与)\s*(?:《[^》]+》)?第{_ZH}(?:条|款))?"
)
_OTHER_LAW = re.compile(r"(?:[一-鿿]{1,20}(?:法|法典|条例|规定|办法|决定|解释|公约|细则)|》)$")
_ONE_MORE = re.compile(r"[条款项](?:、|和|或者?|至|到|及|以及|与)$")
_OWN_LAW = re.compile(r"(?:本法|本条例|本规定|本办法|本解释|本决定|本细则)$")


_TRIM = " \t\n.:;,。：；，、—–-【】[]|*#"
_CLOSES = tuple("\n.:;。：；—–-】]|")
"""What stands behind a heading that a text repeats; behind a word that only begins a sentence stands none of these."""
_PART_BEFORE = re.compile(
    r"(?:sub-?)?(?:clause|paragraph|section|item)(?P<many>s)?\s+(?P<part>\([0-9A-Za-z]{1,5}\))"
    r"(?P<more>(?:\s*(?:,|and|or|to)\s*\([0-9A-Za-z]{1,5}\))*)\s+of\s+$",
    re.IGNORECASE,
)
_ASIDE = re.compile(r"(?:provisos?|explanations?|exceptions?)\s+(?:\([a-z0-9]+\)\s+)?(?:to|of)\s+$", re.IGNORECASE)


@dataclass(frozen=True)
class Label:
    """The number of a clause: `Article 15A` -> ("article", "15a"); `4.2` -> ("", "4.2"); `第十二条` -> ("条", "12")."""

    kind: str
    number: str

    def meets(self, other: "Label") -> bool:
        """Whether a reference with this label means a clause with the other: the kind may be left out on one side."""
        return self.number == other.number and (self.kind == other.kind or not self.kind or not other.kind)


@dataclass(frozen=True)
class Reference:
    """A reference in a text: `start` to `end` are characters; `reason` says why it cannot be used, '' where it can."""

    start: int
    end: int
    label: Label
    part: str
    """What of the clause is meant: `(b)`, `第二款`, or nothing."""
    reason: str = ""


def read_label(text: str) -> tuple[Label, int] | None:
    """The number that a text begins with, and where the rest begins."""
    match = _LABEL.match(text)
    if not match:
        return None
    if match["zh"]:
        second = f".{read_chinese(match['zh2'])}" if match["zh2"] else ""
        return Label("条", f"{read_chinese(match['zh'])}{second}"), match.end()
    kind = _KINDS[(match["kind"] or match["sign"] or "").casefold()[: None if match["kind"] else 1]] if (
        match["kind"] or match["sign"]
    ) else ""  # fmt: skip
    return Label(kind, (match["number"] or match["bare"]).casefold()), match.end()


def read_chinese(number: str) -> int:
    """第...条: 一百二十三 -> 123, 十 -> 10, 二〇五 -> 205, 12 -> 12."""
    if number.isdecimal() and number.isascii():
        return int(number)
    if not any(letter in _UNITS for letter in number):
        return int("".join(str(_DIGITS.get(letter, letter)) for letter in number))
    total, digit = 0, 0
    for letter in number:
        if letter in _UNITS:
            total += (digit or 1) * _UNITS[letter]
            digit = 0
        else:
            digit = _DIGITS[letter] if letter in _DIGITS else int(letter)
    return total + digit


def label_of(spec: Headed, item: Item) -> Label | None:
    """The number of an item's clause: from `number`, else from its heading, else from the start of its text."""
    if spec.number is not None:
        texts = [fill(spec.number, item.columns)]
    else:
        texts = [item.columns[spec.heading]] if spec.heading else []
        texts.append(item.columns[spec.text])
    found = next(filter(None, map(read_label, texts)), None)
    return found[0] if found else None


def body_start(spec: Headed, item: Item) -> int:
    """Where an item's text begins after its own number and heading, where it repeats them (`§ 4 Payment. The ...`)."""
    text = item.columns[spec.text]
    found = read_label(text)
    start = found[1] if found and found[0].kind else 0
    words = heading_extent(spec, item)
    heading = item.columns[spec.heading][slice(*words)] if words and spec.heading else ""
    told = start + len(text[start:]) - len(text[start:].lstrip(_TRIM))
    after = text[told + len(heading) :]
    if heading and text.startswith(heading, told) and after[:1] in _CLOSES and after.strip(_TRIM):
        start = told + len(heading)
        start += len(text[start:]) - len(text[start:].lstrip(_TRIM))
    return start


def heading_extent(spec: Headed, item: Item, *, keep_number: bool = False) -> Extent | None:
    """Where the words of an item's heading stand in its column, its number before them left out; None: no words."""
    if spec.heading is None:
        return None
    heading = item.columns[spec.heading]
    label = None if keep_number else read_label(heading)
    start, end = (label[1] if label else 0), len(heading)
    while start < end and heading[start] in _TRIM:
        start += 1
    while end > start and heading[end - 1] in _TRIM:
        end -= 1
    return (start, end) if re.search(r"[^\W\d_]", heading[start:end]) else None


def references(text: str) -> Iterator[Reference]:
    """Every reference to a clause that is named by its number, in order."""
    for match in _REFERENCE.finditer(text):
        kind = _KINDS["§" if match["sign"] else match["kind"].casefold()]
        reason = ""
        if match["more"] or match["many"] or len(match["sign"] or "") > 1:
            reason = "names several clauses"
        elif _is_elsewhere(text, match.start(), match.end()):
            reason = "refers to another document"
        before = text[max(0, match.start() - 60) : match.start()]
        ahead = _PART_BEFORE.search(before)
        if not reason and ((ahead and (ahead["many"] or ahead["more"])) or _ASIDE.search(before)):
            reason = "names several parts, or a proviso, of a clause"
        elif not reason and ahead and _PART_BEFORE.search(before[: ahead.start()]):
            reason = "names a part of a part of a clause"
        start = match.start() - (len(ahead.group()) if ahead else 0)
        part = f"{match['part']}{ahead['part'] if ahead else ''}".replace(" ", "")
        yield Reference(start, match.end(), Label(kind, match["number"].casefold()), part, reason)
    for match in _REFERENCE_ZH.finditer(text):
        before = text[max(0, match.start() - 24) : match.start()]
        reason = ""
        if match["more"] or _ONE_MORE.search(before):
            reason = "names several clauses"
        elif (match["law"] or "").startswith("《") or (
            not match["law"] and _OTHER_LAW.search(before) and not _OWN_LAW.search(before)
        ):
            reason = "refers to another document"
        second = f".{read_chinese(match['second'])}" if match["second"] else ""
        label = Label("条", f"{read_chinese(match['number'])}{second}")
        yield Reference(match.start(), match.end(), label, match["part"], reason)


def _is_elsewhere(text: str, start: int, end: int) -> bool:
    """Whether an English reference goes on with `of the Sale Act`, also after `and Section 4`, or follows `U.S.C.`"""
    after = _CHAIN.sub("", text[end : end + 160], count=1)
    return bool(_ELSEWHERE.match(after) or _BEFORE.search(text[max(0, start - 20) : start]))
