"""Builder `definition`: what a text itself says a term means, English and Chinese, or a glossary by its pattern."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from finetune.config.build import DefinitionBuilder
from finetune.corpus.build import Item
from finetune.corpus.builders.drafts import Draft, Found, Span, Unused
from finetune.corpus.builders.sentences import Extent, around, is_chinese, sentences, squeeze
from finetune.corpus.patterns import compiled, find_all

_QUOTED = re.compile(
    r"[\"“](?P<term>[^\"“”\n]{1,80})[\"”](?P<scope>,?\s(?:in relation to|with respect to|as used|when used|"
    r"for the purposes? of|where used)\b[^,;.\"“”\n]{1,80},?)?,?\s+"
    r"(?P<verb>means?|shall mean|(?:is|are) defined as|refers? to|"
    r"(?:shall have|has|have) the (?:same )?meanings?|(?:shall )?includes?|does not include)\b,?\s*"
)
_BARE = re.compile(
    r"^[^\S\n]*(?:\(?[0-9A-Za-z]{1,4}[.)]\s+)?(?P<term>[A-Z][A-Za-z’'/-]*(?:\s(?:[A-Za-z’'/-]+|\([A-Z]+\))){0,6}?)"
    r"(?P<scope>,?\s(?:as used|when used|for the purposes? of)\b[^,;.\n]{1,60},)?\s+"
    r"(?P<verb>means|shall mean|(?:is|are) defined as)\s(?!of\b|that\b|to\b|by\b|and\b|or\b|for\b)\s*",
    re.MULTILINE,
)
_NO_TERM = re.compile(r"(?:This|That|It|Which|What|These|Those|By|The same|Such|And|Or|If|Where|As|For|In|Any)\b")
_CHINESE = re.compile(
    r"(?:^|(?<=[。；：】\n]))[^\S\n]*(?:（[一二三四五六七八九十]{1,3}）|第[一二三四五六七八九十百零]+条)?[^\S\n]*"
    r"[\"“]?(?:(?:本|前|该|上)[一-鿿]{1,12}?(?:所称|中|所指)(?:的)?|前款所称(?:的)?|所称(?:的)?)?"
    r"(?P<term>“[^”\n]{1,30}”|\"[^\"\n]{1,30}\"|[^，。；：、“”\"（）【】\s]{2,24})(?P<scope>（[^）\n]{1,30}）)?"
    r"(?:，(?:是指|系指|指(?![定导挥示令派使出控明引]))|(?:是指|系指)(?!向))，?"
)
_ELSEWHERE, _INCLUDES = re.compile(r"meaning"), re.compile(r"include")
_AS_OTHERS = re.compile(r"(?:assigned|given|ascribed|set forth|set out|specified|provided|stated|as defined)\b")
_ANOTHER = re.compile(r"[\"”]\s*(?:,|,?\s*(?:and|or)|、|和|或者?)\s*(?:the\s)?$")
_LINE_END = re.compile(r"[;；](?=\s*(?:\n|$|[\"“(]|and\b|or\b))|；")
_SHORTEST = 8
_LIST_END = ":：—–"


@dataclass(frozen=True)
class Definition:
    """Places of a term, of what it means and of the sentence that says so; `reason` why it cannot be used, or ''."""

    term: Extent
    definition: Extent
    sentence: Extent
    reason: str = ""


def build(spec: DefinitionBuilder, items: Sequence[Item]) -> Found:
    """Rows for each definition of each text, in the directions asked for; a term defined twice in a text once."""
    for item in items:
        text = item.columns[spec.text]
        found = list(definitions(text, spec.pattern))
        if not found:
            yield Unused(item, "defines nothing")
        seen: set[str] = set()
        for one in found:
            term, meaning = text[slice(*one.term)], text[slice(*one.definition)]
            if one.reason:
                yield Unused(item, one.reason, term, Span(item, spec.text, *one.term))
                continue
            if squeeze(term) in seen:
                yield Unused(item, "defines a term again", term, Span(item, spec.text, *one.term))
                continue
            seen.add(squeeze(term))
            context = around(text, one.sentence, spec.context_chars) or one.sentence
            shared = {"term": term, "definition": meaning, "context": text[slice(*context)]}
            for direction in spec.directions:
                if direction == "define":
                    columns = {"direction": "define", "question": ask_definition(term), "answer": meaning}
                elif squeeze(term) in squeeze(meaning):
                    yield Unused(item, "the definition says its term", term, Span(item, spec.text, *one.definition))
                    continue
                else:
                    columns = {"direction": "name", "question": ask_term(meaning), "answer": term}
                place = one.definition if direction == "define" else one.term
                yield Draft(
                    item, f"{direction}{one.term[0]}", (Span(item, spec.text, *place),), {**shared, **columns}
                )


def definitions(text: str, pattern: str | None = None) -> Iterator[Definition]:
    """The definitions that a text gives, in order, each with why it is of no use or with ''."""
    if pattern is not None:
        for match in find_all(text, compiled(pattern), "build"):
            yield _checked(text, match.span("term"), match.span("definition"), match.span(), "")
        return
    limits = sentences(text)
    matches = [match for regex in (_QUOTED, _BARE, _CHINESE) for match in regex.finditer(text)]
    taken: list[Extent] = []
    for match in sorted(matches, key=lambda match: match.start("term")):
        term = _unquoted(text, match.span("term"))
        if any(start <= term[0] < end for start, end in taken) or _NO_TERM.match(text[slice(*term)]):
            continue
        verb = match.groupdict().get("verb") or ""
        within = next((limit for limit in limits if limit[0] <= term[0] < limit[1]), None)
        if within is None:
            continue
        sentence = (match.start() + len(match.group()) - len(match.group().lstrip()), max(within[1], match.end()))
        meaning = _until(text, match.end(), sentence[1], others=[m.start() for m in matches])
        said = text[slice(*meaning)]
        reason = (
            "defines several terms at once" if _ANOTHER.search(text[: match.start()][-8:])
            else "says only what a term includes" if _INCLUDES.search(verb)
            else "the meaning is given elsewhere" if _ELSEWHERE.search(verb) or _AS_OTHERS.match(said)
            else ""
        )  # fmt: skip
        taken.append((sentence[0], meaning[1]))
        yield _checked(text, term, meaning, (sentence[0], min(sentence[1], meaning[1] + 1)), reason)


def _until(text: str, start: int, end: int, others: Sequence[int]) -> Extent:
    """The meaning ends with its sentence, at a semicolon that ends its line, or where the next definition begins."""
    end = min([end, *(other for other in others if start < other < end)])
    line_end = _LINE_END.search(text[start:end])
    end = start + line_end.start() if line_end else end
    while start < end and text[end - 1] in " \t\n.;,。；，":
        end -= 1
    while start < end and text[start] in " \t\n":
        start += 1
    return (start, end)


def _unquoted(text: str, extent: Extent) -> Extent:
    start, end = extent
    return (start + 1, end - 1) if text[start] in "“\"" and text[end - 1] in "”\"" else extent


def _checked(text: str, term: Extent, meaning: Extent, sentence: Extent, reason: str) -> Definition:
    said = text[slice(*meaning)]
    if not reason:
        after = text[meaning[1] : meaning[1] + 2].strip()
        if any(part[:1] in _LIST_END or part[-1:] in _LIST_END for part in (said, after) if part):
            reason = "the definition is a list of items"
        elif len(said) < (_SHORTEST if not is_chinese(said) else _SHORTEST // 2):
            reason = "the definition is too short"
        elif said.count("(") != said.count(")") or said.count("（") != said.count("）"):
            reason = "the definition is cut inside a bracket"
    return Definition(term, meaning, sentence, reason)


def ask_definition(term: str) -> str:
    return f"“{term}”是什么意思？" if is_chinese(term) else f'What does "{term}" mean?'


def ask_term(meaning: str) -> str:
    return f"哪个术语的含义是：{meaning}？" if is_chinese(meaning) else f'Which term means "{meaning}"?'
