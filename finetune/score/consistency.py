"""Does the model say the same when it is asked again: in other company, and in other words that ask for the same?

Greedy decoding of one prompt should give one answer. In a batch of another composition sums are rounded in another
order, and a near tie may fall the other way; more white space, capitals or a word of courtesy change the prompt but not
the question. Whoever automates a step with the model cares for all of these.
"""

import hashlib
import re
import string
from collections.abc import Sequence
from typing import Any

from finetune import metrics
from finetune.config.data import Task
from finetune.corpus.dedup import normalise
from finetune.corpus.records import Chat, Message
from finetune.score.answers import Answer, Answerer, Asked, Say
from finetune.score.questions import Questions
from finetune.score.statistics import interval

REPEATS = 2
"""Asked again so often, both times in batches of one composition: the two must be equal byte for byte."""
_CJK = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]")
_COURTESY = {
    "en": ("Please help with the following.\n", "Thank you for looking at this, please.\n"),
    "zh": ("请帮忙处理以下内容。\n", "麻烦您看一下，谢谢。\n"),
}
_WIDE = str.maketrans(":,;?!()", "：，；？！（）")
_NARROW = str.maketrans("：，；？！（）", ":,;?!()")


def measure(answerer: Answerer, questions: Questions, *, prompts: int, say: Say) -> dict[str, Any] | None:
    """`{prompts, repeats, paraphrases, share_same, ci95, few_groups, kinds, determinism}`; None: nothing to ask.

    share_same: of the answers to a prompt that was asked again, the share that say what the first answer said (case,
    width, punctuation and white space apart), averaged over prompts; ci95: clustered by group. kinds: the same for each
    way of asking. determinism: {prompts, identical}: answers that were the same bytes when batches were composed the
    same. Tasks that are scored by likelihood write no answer and are left out.
    """
    chosen = _choose(questions, prompts)
    if not chosen:
        return None
    asked = [_asked(questions, row, row.prompt) for row in chosen]
    say(f"score: consistency, {len(asked)} prompts")
    first = answerer.answer(asked)
    again = [answerer.answer(asked, repeat=repeat) for repeat in range(1, REPEATS + 1)]
    same: dict[str, list[tuple[int, bool]]] = {"repeated": [
        (place, _says(one) == _says(first[place])) for place, one in enumerate(again[0])
    ]}  # fmt: skip
    for kind in ("spaced", "recased", "courteous", "thankful"):
        changed = [(place, paraphrase(row, questions.tasks[row.task], kind)) for place, row in enumerate(chosen)]
        kept = [(place, messages) for place, messages in changed if messages is not None]
        if kept:
            answers = answerer.answer([_asked(questions, chosen[place], messages) for place, messages in kept])
            same[kind] = [
                (place, _says(one) == _says(first[place])) for (place, _), one in zip(kept, answers, strict=True)
            ]
    held: list[list[bool]] = [[] for _ in asked]
    for those in same.values():
        for place, one_held in those:
            held[place].append(one_held)
    shares = [_mean(own) for own in held]
    found = interval(shares, [1.0] * len(shares), [row.group for row in chosen])
    return {
        "prompts": len(asked),
        "repeats": REPEATS,
        "paraphrases": len(same) - 1,
        "share_same": found.value,
        "ci95": [found.low, found.high],
        "few_groups": found.few,
        "kinds": {kind: _mean([one_held for _, one_held in those]) for kind, those in same.items()},
        "determinism": {
            "prompts": len(asked),
            "identical": sum(_bytes(one) == _bytes(other) for one, other in zip(*again, strict=True)),
        },
    }


def paraphrase(row: Chat, task: Task, kind: str) -> list[Message] | None:
    """The row's prompt with its last user message changed, meaning kept; None where the rule finds nothing to change.

    spaced: line breaks doubled, one before and after. recased: the wording of the task's template in capitals (in small
    letters where it has only these), its punctuation in the other width where it is Chinese; what fills the template
    stays. courteous, thankful: a sentence of courtesy in front, in English or Chinese as the message is.
    """
    place = max(number for number, message in enumerate(row.prompt) if message["role"] == "user")
    said = str(row.prompt[place]["content"])
    chinese = len(_CJK.findall(said)) * 4 > len(said)
    if kind == "spaced":
        changed = "\n" + said.replace("\n", "\n\n") + "\n"
    elif kind == "recased":
        changed = _recased(said, task.prompt or "")
    else:
        changed = _COURTESY["zh" if chinese else "en"][kind == "thankful"] + said
    if changed == said:
        return None
    messages = row.prompt
    messages[place] = {**messages[place], "content": changed}
    return messages


def _recased(said: str, template: str) -> str:
    parts, at = [], 0
    for literal, *_ in string.Formatter().parse(template):
        begins = said.find(literal, at) if literal.strip() else -1
        if begins >= 0:
            parts += [said[at:begins], _other_case(literal)]
            at = begins + len(literal)
    return "".join([*parts, said[at:]])


def _other_case(text: str) -> str:
    if _CJK.search(text):
        return text.translate(_WIDE) if text.translate(_WIDE) != text else text.translate(_NARROW)
    return text.upper() if text.upper() != text else text.lower()


def _choose(questions: Questions, count: int) -> list[Chat]:
    """`count` test rows, as many of each task as of the others, drawn by hash."""
    tasks = [
        sorted(rows, key=lambda row: hashlib.sha256(f"{questions.seed}:{row.id}".encode()).hexdigest())
        for name, rows in questions.rows.items()
        if metrics.kind(questions.tasks[name]) == "generated"
    ]
    turns = [rows[turn] for turn in range(max(map(len, tasks), default=0)) for rows in tasks if turn < len(rows)]
    return turns[:count]


def _asked(questions: Questions, row: Chat, messages: Sequence[Message]) -> Asked:
    limit = questions.tasks[row.task].max_new_tokens
    return Asked.render(questions.chat, messages, row.mode, row.tools, max_new_tokens=limit)


def _says(answer: Answer) -> str:
    return normalise(answer.text) or answer.text


def _bytes(answer: Answer) -> tuple[object, ...]:
    return (answer.raw, answer.ids, answer.finished)


def _mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values)
