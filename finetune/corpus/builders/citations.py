"""Builder `citation`: a rule said in other words -> the passage and the words in it that say so."""

import json
import re
from collections.abc import Iterator, Sequence

from finetune.config.build import CitationBuilder
from finetune.corpus.build import Item
from finetune.corpus.builders.clauses import body_start
from finetune.corpus.builders.drafts import Draft, Found, Place, Span, Unused
from finetune.corpus.builders.passages import Question, deal, shelve
from finetune.corpus.builders.sentences import Extent, is_chinese, sentences, without_enumerator

_REWORDED = {
    "shall not": "must not", "must not": "shall not", "may not": "cannot", "shall": "must", "must": "shall",
    "may": "can",
    "不得": "不可以", "应当": "必须", "必须": "应当", "可以": "可",
}  # fmt: skip
"""Other words for the same duty or leave, which need no other form of the verb or its subject."""
_DUTY = re.compile(r"\b(?:shall not|must not|may not|shall|must|(?<!case )(?<!as )may)\b|不得(?!不)|应当|必须|可以")
_LEANS = re.compile(
    r"(?:This|That|These|Those|It|Its|He|She|They|His|Her|Their|Such|Provided|However|Otherwise|But|And|Or|If so|"
    r"Explanation|Example|Note|Illustration|"
    r"The (?:same|said|above|foregoing|following))\b|(?:对于|前款|前项|该|其|此|上述|但|但是|前述|同时|对此|违反前)"
)
_LEANS_INSIDE = re.compile(
    r"\b(?:as aforesaid|the said|the foregoing|such (?:person|case|order|law|period|notice)s?|as follows|"
    r"the following)\b"
    r"|前款|前项|上述|下列|如下|本款|本项"
)
_FEWEST, _MOST = 40, 320
_NO = re.compile(r"\b(?:no|nor|neither|none|nothing|nobody) ")
_NONE = re.compile(r"(?:No|Neither|None|Nothing|Nobody|Nor)\b")


def build(spec: CitationBuilder, items: Sequence[Item], place: Place) -> Found:
    """A row for the first sentence of each text that is a rule of its own: what one must, may or may not do."""
    asked = [(index, _statement(spec, item)) for index, item in enumerate(items)]
    for draft in deal(spec, asked, shelve(spec, items), place, "[]"):
        yield _with_quote(draft) if isinstance(draft, Draft) and draft.quoted else draft


def _with_quote(draft: Draft) -> Draft:
    cited = {"source": f"[{draft.columns['position']}]", "quote": draft.spans[0].text}
    answer = json.dumps(cited, ensure_ascii=False, separators=(",", ":"))
    return Draft(draft.item, draft.key, draft.spans, {**draft.columns, "answer": answer})


def _statement(spec: CitationBuilder, item: Item) -> Question | Unused:
    begin = body_start(spec, item)
    found = list(_rules(item.columns[spec.text][begin:]))
    if not found:
        return Unused(item, "no sentence says by itself what one must or may do")
    (start, end), statement = found[0]
    span = Span(item, spec.text, begin + start, begin + end)
    return Question(span, f"rule{span.start}", statement, {"statement": statement})


def _rules(text: str) -> Iterator[tuple[Extent, str]]:
    for limits in sentences(text):
        extent = without_enumerator(text, limits)
        said = text[slice(*extent)]
        few, most = (_FEWEST // 3, _MOST // 2) if is_chinese(said) else (_FEWEST, _MOST)
        if not few <= len(said) <= most or said[-1] not in ".。" or not (said[0].isupper() or is_chinese(said[0])):
            continue
        if _LEANS.match(said) or _LEANS_INSIDE.search(said):
            continue
        statement = _reworded(said)
        if statement is not None:
            yield extent, statement


def _reworded(said: str) -> str | None:
    """The sentence with its words of duty and leave in other words; None where it has none. Of nobody, `shall` forbids:
    "No person shall" is "No person may", and a second such word in the sentence might not be meant of nobody."""
    count = len(_DUTY.findall(said))
    if not count or (count > 1 and _NONE.match(said)) or _NO.search(said):
        return None
    words = {**_REWORDED, "shall": "may", "may": "shall"} if _NONE.match(said) else _REWORDED
    return _DUTY.sub(lambda match: words[match.group()], said)
