"""Builder `teacher`: a served model writes a question, its answer and a quote for each text; what the text does not
bear out is left out and counted. Replies are kept by what was asked, so that nothing is asked twice."""

import hashlib
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from finetune.artifacts import canonical_json
from finetune.config.build import TeacherBuilder
from finetune.corpus.build import Item, fill
from finetune.corpus.builders.drafts import Draft, Found, Span, Unused
from finetune.corpus.builders.sentences import Extent
from finetune.corpus.leaks import words
from finetune.errors import RecipeError
from finetune.kept import append_lines, read_on
from finetune.metrics.objects import NotOneObjectError, read_json

if TYPE_CHECKING:
    from finetune.wire import Wire

KEY = "TEACHER_API_KEY"
_KEPT: dict[Path, tuple[int, dict[str, dict[str, Any]]]] = {}
"""File -> (bytes of it that this process has read, what it holds)."""
_FENCE = re.compile(r"\s*```(?:json)?\s*(.*?)\s*```\s*", re.DOTALL)
_NUMBER = re.compile(
    r"[0-9]+(?:[.,][0-9]+)*|[〇一二两三四五六七八九十百千万亿]{2,}|[一二两三四五六七八九十百](?=[个年月日天时元公斤吨米条款项次名人份])"
)
_THOUSANDS = re.compile(r"(?<=[0-9]),(?=[0-9]{3})")
_NAME = re.compile(r"\b[A-Z][\w’'-]+|《[^》]+》|“[^”]+”")
_OPENER = re.compile(
    "A|An|The|It|Its|He|She|They|We|You|This|That|These|Those|There|If|When|Where|While|Who|What|Which|Yes|No|Not|Only|All"
    "|Any|Each|Every|In|On|At|By|For|From|To|With|Within|Under|After|Before|Because|Since|Until|Unless|As|And|Or|But"
)
"""Words with a capital letter that are no name."""
_SHORT = 6
"""Words (a Chinese character counts as half of one) up to which an answer has to stand in its quote as it is."""


def build(name: str, spec: TeacherBuilder, items: Sequence[Item], books: Path) -> Found:
    """A row for each text whose reply holds; a text without letters is not asked about.

    books: the folder of kept replies. Raises RecipeError when the server cannot be asked, and says how many are kept.
    """
    address, model = spec.endpoint.partition("#")[0], spec.model
    bodies = [_body(spec, model, item) for item in items]
    replies = _ask(name, spec, address, model, bodies, books)
    for item, body in zip(items, bodies, strict=True):
        reply = replies[_digest(body)]
        yield _judge(spec, item, reply, f"teacher:{model}")


def _body(spec: TeacherBuilder, model: str, item: Item) -> dict[str, Any]:
    prompt = fill(spec.prompt, item.columns)
    messages = [{"role": "user", "content": prompt}]
    return {"model": model, "temperature": 0, "max_tokens": spec.max_new_tokens, "messages": messages}


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(body).encode()).hexdigest()


def _ask(
    name: str, spec: TeacherBuilder, address: str, model: str, bodies: Sequence[dict[str, Any]], books: Path
) -> dict[str, dict[str, Any]]:
    """Digest of a request -> {text, finished}: kept ones, and those that are asked now."""
    from finetune.wire import ServerError, Wire

    about = {"teacher": address, "model": model}
    file = books / f"teacher-{hashlib.sha256(canonical_json(about).encode()).hexdigest()[:16]}.jsonl"
    known = _kept(file)
    missing = {_digest(body): body for body in bodies if _digest(body) not in known}
    if not missing:
        return known
    lock, failed = Lock(), False

    def ask(digest: str, body: dict[str, Any], wire: "Wire") -> None:
        nonlocal failed
        if failed:
            return
        try:
            text, finished = wire.post("/v1/chat/completions", body, _read)
        except ServerError:
            failed = True
            raise
        line = {"asked": digest, "text": text, "finished": finished}
        with lock:
            append_lines(file, [line], {"about": about})
            known[digest] = line

    with (
        Wire(address, timeout=spec.timeout_s, tries=spec.tries, key=KEY) as wire,
        ThreadPoolExecutor(spec.concurrency) as pool,
    ):
        asked = [pool.submit(ask, digest, body, wire) for digest, body in missing.items()]
        errors = [error for future in asked if (error := future.exception()) is not None]
    for error in errors:
        if not isinstance(error, ServerError):
            raise error
    if errors:
        raise RecipeError.one(
            f"build.{name}.endpoint", spec.endpoint,
            f"{errors[0]}; {len(known)} replies are kept in {file}, "
            f"{sum(digest not in known for digest in missing)} of this document are missing",
            f"export {KEY}=..." if getattr(errors[0], "status", None) in (401, 403)
            else "see to the server; the same command goes on and asks only for what is missing",
        )  # fmt: skip
    return _kept(file)


def _kept(file: Path) -> dict[str, dict[str, Any]]:
    """The replies in a file, by digest. A process asks about many documents: it reads on where it last stopped."""
    begin, known = _KEPT.get(file, (0, {}))
    if not file.exists() or file.stat().st_size < begin:
        begin, known = 0, {}
    lines, begin = read_on(file, begin)
    known |= {line["asked"]: line for line in lines if "asked" in line}
    _KEPT[file] = begin, known
    return known


def _read(reply: dict[str, Any]) -> tuple[str, bool]:
    from finetune.wire import finish_reason

    (choice,) = reply["choices"]
    return str(choice["message"]["content"] or ""), finish_reason(choice) != "length"


def _judge(spec: TeacherBuilder, item: Item, reply: dict[str, Any], mark: str) -> Draft | Unused:
    if not reply["finished"]:
        return Unused(item, "the reply was cut off at max_new_tokens")
    told = reply["text"].rpartition("</think>")[2]
    fenced = _FENCE.fullmatch(told)
    try:
        said = read_json(fenced.group(1) if fenced else told)
    except NotOneObjectError:
        return Unused(item, "the reply is no JSON")
    keys = ("question", "answer", "quote")
    if not isinstance(said, dict) or not all(isinstance(said.get(key), str) and said[key].strip() for key in keys):
        return Unused(item, "the reply lacks question, answer or quote")
    question, answer, quote = (said[key].strip() for key in keys)
    text = item.columns[spec.text]
    place = find_quote(text, quote)
    if place is None:
        return Unused(item, "its quote does not stand in the text")
    if "quote" in spec.checks and not bears(quote, answer):
        return Unused(item, "its quote does not hold the answer")
    if "numbers" in spec.checks and not {*_numbers(answer)} <= {*_numbers(text)}:
        return Unused(item, "a number of its answer does not stand in the text")
    names = [name for name in _NAME.findall(answer) if not _OPENER.fullmatch(name)]
    if "names" in spec.checks and not all(name.casefold() in text.casefold() for name in names):
        return Unused(item, "a name of its answer does not stand in the text")
    columns = {"question": question, "answer": answer, "_builder": mark}
    return Draft(item, "teacher", (Span(item, spec.text, *place),), columns)


def find_quote(text: str, quote: str) -> Extent | None:
    """Where the words of a quote stand in a text, one after the other; only white space may differ."""
    match = re.search(r"\s+".join(map(re.escape, quote.split())), text)
    return match.span() if match else None


def bears(quote: str, answer: str) -> bool:
    """Whether a short answer stands in the quote, or half of what a longer one says; case and signs aside.

    What was asked is not looked at: an answer such as "yes" is borne by nothing.
    """
    told, asked = (words(_THOUSANDS.sub("", text)) for text in (quote, answer))
    chinese = sum(not word.isascii() and len(word) == 1 for word in asked)
    if len(asked) - chinese / 2 <= _SHORT:
        return any(told[at : at + len(asked)] == asked for at in range(len(told) - len(asked) + 1)) and asked != []
    if 2 * chinese > len(asked):  # one character alone says too little
        told, asked = ([a + b for a, b in pairwise(found)] for found in (told, asked))
    return 2 * len({*asked} & {*told}) >= len({*asked})


def _numbers(text: str) -> list[str]:
    return [number.replace(",", "") for number in _NUMBER.findall(text)]
