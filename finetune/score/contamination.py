"""Which test rows the training rows give away: passages that stand in both, word by word.

PREPARE drops training rows that share 13 words in a row with an evaluation row. This is the check afterwards, on what
was really trained on and with a shorter passage, so that a report can say how many test rows are touched and by what.

Not an `EvaluationIndex`: that holds the values that fill the templates, where only finished conversations are left
here, and stops at the first evaluation row that a training row repeats. Both cut texts by `words`.
"""

import json
import re
import string
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.config.data import Task
from finetune.corpus.leaks import words
from finetune.corpus.records import Chat
from finetune.corpus.redact import RECOGNISERS, redact_texts

WORDS, CHARACTERS = 8, 13
"""Words in a row that count as a passage; Chinese characters where most of a text is Chinese."""
HALF = 0.5
"""A row of whose own words so many stand in shared passages is counted as given away."""
_SHOWN = 20
"""Touched rows that are listed, the most touched ones first; all are counted."""
_CJK = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]")
_PERSONAL = "[PERSONAL]"
_PLACEHOLDER = re.compile(r"\[[A-Z_]+_\d+\]")
_KINDS = sorted({recogniser.kind for recogniser in RECOGNISERS})
_GAP = ""
"""Stands where the wording of the task was: no passage reaches across it."""
Grams = dict[tuple[str, ...], str]


def contamination(rows: Sequence[Chat], train: Sequence[Chat], task: Task) -> dict[str, Any]:
    """`{rows, touched, passage: {words, characters}, overlap}`: a task's test rows against training rows of all tasks.

    touched: test rows that share a passage with a training row; rows: those given away, half of whose words stand in
    such passages, or whose whole question a training row asks. overlap: the most touched ones as {id, source: a
    training row's id, span: the longest passage, share of the row's own words in shared passages, redacted: span
    without words of personal data}.
    What the task's templates say, what more than half of its test rows say (an instruction that came with the
    conversations) and answers that several groups have (labels) are in every training row too: they do not count.
    `span` is corpus text: see `shown`.
    """
    reader = _Reader.of(rows, train, task)
    own = [reader.pieces(row) for row in rows]
    wanted: Grams = {gram: "" for pieces in own for piece in pieces for gram in _grams(piece, _length(piece))}
    asked = [reader.question(row) for row in rows]
    questions: Grams = {key: "" for key in asked if key}
    lengths = {len(gram) for gram in wanted}
    for row in train:
        said = [word for message in row.messages for word in [*words(_said(message)), _GAP]]
        for length in lengths:
            for gram in _grams(said, length):
                if wanted.get(gram) == "":
                    wanted[gram] = row.id
        key = reader.question(row)
        if questions.get(key) == "":
            questions[key] = row.id
    found: list[dict[str, Any]] = []
    for row, pieces, key in zip(rows, own, asked, strict=True):
        if questions.get(key):
            found.append({"id": row.id, "source": questions[key], "span": " ".join(key), "share": 1.0})
        elif hit := _hits(pieces, wanted):
            found.append({"id": row.id, **hit})
    found.sort(key=lambda one: (-one["share"], one["id"]))
    tests, trained = ({row.id: row for row in those} for those in (rows, train))
    for one in found[:_SHOWN]:
        one["redacted"] = _redacted(one["span"], _personal(tests[one["id"]]) | _personal(trained[one["source"]]))
    return {
        "rows": sum(one["share"] >= HALF for one in found),
        "touched": len(found),
        "passage": {"words": WORDS, "characters": CHARACTERS},
        "overlap": found[:_SHOWN],
    }


def shown(found: Mapping[str, Any], privacy: str) -> dict[str, Any]:
    """`contamination` as `privacy.samples` lets it be shown: passages left out, personal data replaced, or whole."""
    chosen = {"full": "span", "redacted": "redacted", "none": None}[privacy]
    plain = [{key: value for key, value in one.items() if key != "redacted"} for one in found["overlap"]]
    spans = [one.get(chosen) for one in found["overlap"]]
    return {**found, "overlap": [{**one, "span": span} for one, span in zip(plain, spans, strict=True)]}


def _redacted(span: str, personal: Collection[str]) -> str:
    """`span` with a placeholder for each run of `personal` words: its own signs are gone, so nothing is seen in it."""
    kept: list[str] = []
    for word in span.split():
        if word not in personal:
            kept.append(word)
        elif kept[-1:] != [_PERSONAL]:
            kept.append(_PERSONAL)
    return redact_texts([" ".join(kept)], _KINDS)[0][0]


def _personal(row: Chat) -> set[str]:
    """Words that redaction takes out of a row, somewhere: they are left out wherever they stand."""
    found: set[str] = set()
    for text in [*map(_said, row.messages), *_answers(row)]:
        given = _PLACEHOLDER.sub(" ", text)
        left = _PLACEHOLDER.sub(" ", redact_texts([given], _KINDS)[0][0])
        if left != given:
            found |= set(Counter(words(given)) - Counter(words(left)))
    return found


def _hits(pieces: Sequence[Sequence[str]], wanted: Grams) -> dict[str, Any] | None:
    """The longest shared run of one row, the training row it begins in, and the share of words in shared passages."""
    total = covered = 0
    longest: list[str] = []
    source = ""
    for part in pieces:
        length = _length(part)
        total += len(part)
        run_begins = run_ends = 0
        for at in range(len(part) - length + 1):
            name = wanted[tuple(part[at : at + length])]
            if not name:
                continue
            if at > run_ends or run_ends == 0:
                run_begins = at
            covered += at + length - max(run_ends, at)
            run_ends = at + length
            if run_ends - run_begins > len(longest):
                longest, source = list(part[run_begins:run_ends]), wanted[tuple(part[run_begins : run_begins + length])]
    return {"source": source, "span": " ".join(longest), "share": round(covered / total, 4)} if covered else None


@dataclass(frozen=True)
class _Reader:
    """Takes out of a row's text what is wording of its task."""

    wording: re.Pattern[str] | None
    labels: frozenset[str]
    common: frozenset[tuple[str, ...]]

    @classmethod
    def of(cls, rows: Sequence[Chat], train: Sequence[Chat], task: Task) -> "_Reader":
        templates = [task.prompt, task.answer, task.reasoning, *(task.answer_json or {}).values()]
        literals = {part.strip() for one in templates if one for part, *_ in string.Formatter().parse(one)}
        # One bare word may be content as well; "Term:" is not.
        said = sorted((part for part in literals if words(part) and not part.isalpha()), key=lambda part: -len(part))
        wording = re.compile("|".join(map(re.escape, said))) if said else None
        groups: dict[str, set[str]] = {}
        for row in [*rows, *train]:
            for value in _answers(row):
                groups.setdefault(value, set()).add(row.group)
        labels = frozenset(value for value, those in groups.items() if len(those) > 1)
        first = cls(wording, labels, frozenset())
        counts: Counter[tuple[str, ...]] = Counter()
        for row in rows:
            counts.update({gram for piece in first.pieces(row) for gram in _grams(piece, _length(piece))})
        common = frozenset(gram for gram, count in counts.items() if count > len(rows) / 2 and count >= 3)
        return cls(wording, labels, common)

    def pieces(self, row: Chat) -> list[list[str]]:
        """The row's own words: of each message but the system's, cut where the task's wording stood."""
        texts = [_said(message) for message in row.prompt if message["role"] != "system"]
        texts += [str(row.messages[-1].get("reasoning_content") or "")]
        texts += [value for value in _answers(row) if value not in self.labels]
        pieces: list[list[str]] = [[]]
        for text in texts:
            for word in [*self._own(text), _GAP]:
                if word != _GAP:
                    pieces[-1].append(word)
                elif pieces[-1]:
                    pieces.append([])
        return [piece for piece in pieces if piece]

    def question(self, row: Chat) -> tuple[str, ...]:
        """All that is asked, wording taken out; () where nothing is left."""
        asked = [message for message in row.prompt if message["role"] != "system"]
        return tuple(word for message in asked for word in self._own(_said(message)) if word != _GAP)

    def _own(self, text: str) -> list[str]:
        """Words with a gap wherever the task's wording or a common passage stands."""
        parts = self.wording.split(text) if self.wording else [text]
        found = [word for part in parts for word in [*words(part), _GAP]]
        if not self.common:
            return found
        kept, length = list(found), _length(found)
        for at in range(len(found) - length + 1):
            if tuple(found[at : at + length]) in self.common:
                kept[at : at + length] = [_GAP] * length
        return kept


def _said(message: Mapping[str, Any]) -> str:
    return "\n".join(str(message[key]) for key in ("reasoning_content", "content") if message.get(key))


def _answers(row: Chat) -> list[str]:
    """The gold answer, or the values of the object that it is."""
    try:
        read = json.loads(row.answer)
    except ValueError:
        return [row.answer]
    return [str(value) for value in read.values()] if isinstance(read, dict) else [row.answer]


def _length(found: Sequence[str]) -> int:
    return CHARACTERS if sum(bool(_CJK.fullmatch(word)) for word in found) * 2 > len(found) else WORDS


def _grams(found: Sequence[str], length: int) -> Iterable[tuple[str, ...]]:
    return (tuple(found[at : at + length]) for at in range(len(found) - length + 1))
