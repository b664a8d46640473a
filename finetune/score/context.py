"""Long contexts: does the model still find a fact that stands at a given place of a long text?

The text is the recipe's own training documents, so that it reads like what will be served. Into it go facts that no
document holds: a needle (one sentence, asked for) or a cross-reference (a clause that refers to another clause, which
has the answer). An answer is right where it contains the planted value, exactly. Loss is what the longest context costs
against the shortest. The base is asked the same: a model may well find the sentence and have unlearnt to say it.
"""

import hashlib
import itertools
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.chat import ChatFormat
from finetune.config.evaluation import CONTEXT_ANSWER, Context
from finetune.corpus.records import Chat
from finetune.score.answers import Answerer, Asked, Say

KINDS = ("needle", "cross_reference")
PIECE = 100
"""Tokens that a piece of the text has at most: a prompt falls short of its length by less than two of them."""
_CUTS = tuple(map(re.compile, (r"(?<=\n\n)", r"(?<=\n)", r"(?<=[.!?;]\s)|(?<=[。！？；])", r"(?<=\s)")))
"""Where a text is cut: between paragraphs, else lines, sentences, words."""
_CJK = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]")
_PLACES = (
    "Alder", "Birch", "Cedar", "Dogwood", "Elm", "Fir", "Ginkgo", "Hazel", "Ironwood", "Juniper", "Larch", "Maple",
    "Oak", "Pine", "Rowan", "Spruce", "Tamarack", "Willow", "Yew", "Zelkova",
)  # fmt: skip
_WORDS = {
    "en": {
        "needle": ("The reference number of file {a} is {value}.",),
        "needle_ask": "What is the reference number of file {a}? Answer with the number only.",
        "cross_reference": (
            "The amount of annex {a} is the one that is stated in annex {b}.",
            "Annex {b}: the amount is {value}.",
            "Annex {c}: the amount is {other}.",
        ),
        "cross_reference_ask": "What is the amount of annex {a}? Answer with the number only.",
    },
    "zh": {
        "needle": ("{a} 号档案的编号为 {value}。",),
        "needle_ask": "{a} 号档案的编号是多少？只回答数字。",
        "cross_reference": (
            "附件 {a} 的金额以附件 {b} 所载为准。", "附件 {b}：金额为 {value}。", "附件 {c}：金额为 {other}。",
        ),
        "cross_reference_ask": "附件 {a} 的金额是多少？只回答数字。",
    },
}  # fmt: skip


def measure(
    answerer: Answerer, chat: ChatFormat, train: Sequence[Chat], asked: Context, *, seed: int, say: Say
) -> dict[str, Any]:
    """`{lengths, depths, kinds, each, rows: [{kind, length, depth, n, right, tokens: {min, mean}}], loss}`.

    tokens: of the prompts as they are; length: what was asked for. loss: 1 - (share right at the longest length) /
    (share right at the shortest); None where there is one length alone, so that nothing was compared, and where the
    shortest has none right, since nothing can be lost then. The same questions are asked at every length and depth.
    """
    text = Haystack.of(chat, train)
    cells, prompts, values = [], [], []
    for kind in KINDS:
        for length in sorted(asked.lengths):
            for depth in sorted(asked.depths):
                cells.append((kind, length, depth))
                for number in range(asked.each):
                    prompt, value = question(chat, text, kind, length, depth, f"{seed}:{kind}:{number}")
                    prompts.append(prompt)
                    values.append(value)
    say(f"score: long contexts, {len(prompts)} prompts of up to {max(asked.lengths)} tokens")
    answers = answerer.answer(prompts)
    right = [value in answer.text for value, answer in zip(values, answers, strict=True)]
    places = [slice(first, first + asked.each) for first in range(0, len(prompts), asked.each)]
    counts = [sum(right[place]) for place in places]
    sizes = [[len(prompt.ids) for prompt in prompts[place]] for place in places]
    rows = [
        {
            "kind": kind, "length": length, "depth": depth, "n": asked.each, "right": count,
            "tokens": {"min": min(own), "mean": sum(own) / len(own)},
        }
        for (kind, length, depth), count, own in zip(cells, counts, sizes, strict=True)
    ]  # fmt: skip
    return {
        "lengths": sorted(asked.lengths),
        "depths": sorted(asked.depths),
        "kinds": list(KINDS),
        "each": asked.each,
        "rows": rows,
        "loss": _loss(_at(rows)),
    }


def beside(base: dict[str, Any], tuned: dict[str, Any]) -> dict[str, Any]:
    """What the tuned model found, and in each row as `base` how often the base model was right.

    loss: where the tuned model has none right at the shortest length and the base has some, against the base: then all
    was lost before the texts became long.
    """
    rows = [{**one, "base": other["right"]} for one, other in zip(tuned["rows"], base["rows"], strict=True)]
    loss = tuned["loss"] if tuned["loss"] is not None else _loss(_at(rows), _at(base["rows"]))
    return {**tuned, "rows": rows, "loss": loss, "base_loss": base["loss"]}


def _at(rows: Sequence[dict[str, Any]]) -> dict[int, int]:
    """Length -> right answers."""
    found: dict[int, int] = {}
    for row in rows:
        found[row["length"]] = found.get(row["length"], 0) + int(row["right"])
    return found


def _loss(right: dict[int, int], against: dict[int, int] | None = None) -> float | None:
    short, long = (against or right)[min(right)], right[max(right)]
    return 1 - long / short if short and len(right) > 1 else None


@dataclass(frozen=True)
class Haystack:
    """What users say in the training rows, each once, in an order drawn by hash: the recipe's documents, in pieces.

    Answers stay out: they would tell the model to go on in the same way.
    """

    lines: tuple[str, ...]
    tokens: tuple[int, ...]

    @classmethod
    def of(cls, chat: ChatFormat, train: Sequence[Chat]) -> "Haystack":
        said = {str(message["content"]) for row in train for message in row.prompt if message["role"] == "user"}
        drawn = sorted(said, key=lambda text: hashlib.sha256(text.encode()).hexdigest())
        lines = list(dict.fromkeys(piece for text in drawn for piece in _pieces(chat, text)))
        return cls(tuple(lines), tuple(len(chat.encode(f"{line}\n\n")) for line in lines))

    @property
    def chinese(self) -> bool:
        whole = "".join(self.lines[:50])
        return len(_CJK.findall(whole)) * 4 > len(whole)

    def fill(self, begins: int, tokens: int) -> list[str]:
        """Lines from the one of this number on that take at most so many tokens; after the last the first again."""
        found: list[str] = []
        for number in itertools.count(begins):
            tokens -= self.tokens[number % len(self.lines)]
            if tokens < 0:
                break
            found.append(self.lines[number % len(self.lines)])
        return found


def _pieces(chat: ChatFormat, text: str) -> Iterator[str]:
    """`text` in pieces of at most PIECE tokens, cut where the sense is broken least."""
    if len(chat.encode(text)) <= PIECE:
        if text.strip():
            yield text.strip()
        return
    halves = [text[: len(text) // 2], text[len(text) // 2 :]]
    parts = next((parts for cut in _CUTS if len(parts := [part for part in cut.split(text) if part]) > 1), halves)
    held, room = "", PIECE
    for part in parts:
        size = len(chat.encode(part))
        if size > room:
            yield from [whole] if (whole := held.strip()) else []
            held, room = "", PIECE
        if size > PIECE:
            yield from _pieces(chat, part)
        else:
            held, room = held + part, room - size
    yield from [whole] if (whole := held.strip()) else []


def question(
    chat: ChatFormat, text: Haystack, kind: str, length: int, depth: float, draw: str
) -> tuple[Asked, str]:
    """A prompt of at most `length` tokens (short of it by less than two pieces) and the value that answers it.

    draw: what is planted and where the text begins follow from it alone, so that a question is the same one at every
    length and depth. The fact of a needle, and the clause that refers, stand at `depth`; the clause referred to half
    the text away, and a third one, to be mistaken for it, between them.
    """
    stream = random.Random(hashlib.sha256(draw.encode()).digest())  # noqa: S311 - draws questions, no secrets
    a, b, c = stream.sample(_PLACES, 3)
    value, other = (str(number) for number in stream.sample(range(10_000, 99_999), 2))
    words = _WORDS["zh" if text.chinese else "en"]
    names = {"a": a, "b": b, "c": c, "value": value, "other": other}
    facts = [fact.format(**names) for fact in words[kind]]
    ask = str(words[f"{kind}_ask"]).format(**names)
    begins = stream.randrange(len(text.lines))
    lines = text.fill(begins, length - len(_render(chat, facts, ask).ids))
    places = [depth, (depth + 0.5) % 1, (depth + 0.25) % 1]
    while True:
        prompt = _render(chat, _plant(lines, facts, places[: len(facts)]), ask)
        if len(prompt.ids) <= length:
            return prompt, value
        assert lines, "a question alone is shorter than the shortest length"
        lines.pop()  # tokens that meet at a line's end may be more together


def _plant(lines: Sequence[str], facts: Sequence[str], places: Sequence[float]) -> list[str]:
    planted = list(lines)
    for fact, place in sorted(zip(facts, places, strict=True), key=lambda one: -one[1]):
        planted.insert(round(place * len(lines)), fact)
    return planted


def _render(chat: ChatFormat, lines: Sequence[str], ask: str) -> Asked:
    said = "\n\n".join([*lines, ask])
    return Asked.render(chat, [{"role": "user", "content": said}], "plain", max_new_tokens=CONTEXT_ANSWER)
