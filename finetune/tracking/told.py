"""What W&B is told of a run: no secret, no place, and no text of the documents unless `privacy.samples` is `full`."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit

from finetune.artifacts import Artifact
from finetune.chat import ChatFormat
from finetune.config.prepare import Treatment
from finetune.config.recipe import Recipe, without_places
from finetune.corpus.conversations import texts_in
from finetune.corpus.redact import RECOGNISERS, hide_paths, redact_texts

HIDDEN = "hidden"
PASSAGE = 5
"""So many words in a row (characters of Chinese), if they stand in the documents, are a passage of them."""
COLUMNS = ("task", "id", "group", "system", "score", "answer", "gold", "answer_sha256", "gold_sha256")
_KINDS = sorted({recogniser.kind for recogniser in RECOGNISERS})
_SYSTEMS = ("base_zero_shot", "base_few_shot", "tuned")
_SECRET_NAME = re.compile(
    r"(?:^|_)(?:(?<!eos_)(?<!bos_)(?<!pad_)(?<!mask_)token|(?:api|access|private|secret|signing)_?key|secret|password"
    r"|credentials?)$",
    re.IGNORECASE,
)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")
_PLACE = re.compile(r"(?:~/|/\w|file:/)\S*")
_MARK = re.compile(r"sha256:[0-9a-f]{16}")
_WORD = re.compile(r"[\u3400-\u9fff]|[^\W_\u3400-\u9fff]+")


def config_of(recipe: Recipe) -> dict[str, Any]:
    """The resolved recipe without folders, accounts, tokens in addresses, personal data in names of files, and whatever
    is named like a secret."""
    shown: dict[str, Any] = _without_secrets("", hide_paths(without_places(recipe.model_dump(mode="json"))))
    return shown


def numbers(facts: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The plain facts of a stage as `prefix/name/name`; lists and running text stay where they are."""
    found: dict[str, Any] = {}
    for name, value in facts.items():
        if isinstance(value, Mapping):
            found |= numbers(value, f"{prefix}/{name}")
        elif isinstance(value, int | float) or (isinstance(value, str) and re.fullmatch(r"[\w.+-]{1,40}", value)):
            found[f"{prefix}/{name}"] = value
    return found


def dropped(ledger: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """ledger.json as `prepare/dropped/step/reason`: rows of all sources."""
    found: dict[str, int] = {}
    for row in ledger:
        for reason, rows in row["dropped"].items():
            name = f"prepare/dropped/{row['step']}/{reason}"
            found[name] = found.get(name, 0) + rows
    return found


def headline(scores: Mapping[str, Any]) -> dict[str, Any]:
    """scores.json as summary: each task's systems, the difference with its interval, the change of perplexity."""
    found: dict[str, Any] = {}
    for task in scores["tasks"]:
        prefix = f"score/{task['name']}"
        plain = {name: value for name, value in task.items() if isinstance(value, int | float | str)}
        found |= {f"{prefix}/{name}": value for name, value in plain.items() if name != "title"}
        found |= {f"{prefix}/ci95_low": task["ci95"][0], f"{prefix}/ci95_high": task["ci95"][1]}
    changes = scores["general"]["change"]
    return found | {f"score/general/{kind}/perplexity_change": change for kind, change in changes.items()}


def gates(judged: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Each gate's status, value and limit."""
    found: dict[str, Any] = {}
    for gate in judged:
        known = {name: gate[name] for name in ("status", "value", "limit") if gate[name] is not None}
        found |= {f"gates/{gate['name']}/{name}": value for name, value in known.items()}
    return found


def metadata(artifact: Artifact) -> dict[str, Any]:
    """What an artifact is and was made of."""
    manifest = artifact.manifest
    return {name: manifest[name] for name in ("stage", "key", "version", "digest", "inputs", "seconds")}


def samples(recipe: Recipe, base: Artifact, prepared: Artifact, scores: Artifact) -> list[list[Any]]:
    """A row of COLUMNS for each evaluated prompt and model, as `privacy.samples` lets it leave this machine.

    `none`: no row. `redacted`: personal data and secrets become placeholders, and so does every passage that stands in
    the documents: a model repeats what it read. Prompts are passages of the documents, and are left out; ids and groups
    may be columns of them and become marks. `full`: as is.
    """
    privacy = recipe.privacy.samples
    if privacy == "none":
        return []
    rows = [row for row in _lines(scores.file("answers.jsonl")) if row["system"] in _SYSTEMS]
    known = passages((row[name] for row in rows for name in ("answer", "gold")), _texts(recipe, base, prepared))
    table = []
    for row in rows:
        shown = given = [str(row["answer"]), str(row["gold"])]
        names = [row["id"], row["group"]]
        if privacy == "redacted":
            shown, _ = redact_texts([cut(text, known) for text in given], _KINDS)
            names = [mark(name) for name in names]
        marks = [fingerprint(text) for text in given]
        table.append([row["task"], *names, row["system"], row["score"], *shown, *marks])
    return table


def mark(name: str) -> str:
    """What tells two ids or groups apart where they may not be shown; a mark's is itself."""
    return name if _MARK.fullmatch(name) else f"sha256:{sha256(name.encode()).hexdigest()[:16]}"


def fingerprint(text: str) -> str:
    """What tells two texts apart where they may not be shown: of personal data only its kind goes in."""
    return sha256(redact_texts([text], _KINDS)[0][0].encode()).hexdigest()[:16]


def passages(texts: Iterable[str], documents: Iterable[str]) -> set[tuple[str, ...]]:
    """Runs of PASSAGE words of `texts` that stand in `documents` too, whatever the case and the signs between."""
    asked = {run for text in texts for run in _runs(_words(text))}
    return {run for text in documents for run in _runs(_words(text)) if run in asked}


def cut(text: str, known: set[tuple[str, ...]]) -> str:
    """`text` with each known passage replaced by the number of its words."""
    places = list(_WORD.finditer(text))
    inside = [False] * len(places)
    for at, run in enumerate(_runs([place.group().lower() for place in places])):
        if run in known:
            inside[at : at + PASSAGE] = [True] * PASSAGE
    pieces, begin, at = [], 0, 0
    while at < len(places):
        end = at
        while end < len(places) and inside[end]:
            end += 1
        if end > at:
            pieces += [text[begin : places[at].start()], f"[{end - at} words of the documents]"]
            begin = places[end - 1].end()
        at = max(end, at + 1)
    return "".join([*pieces, text[begin:]])


def _texts(recipe: Recipe, base: Artifact, prepared: Artifact) -> Iterator[str]:
    """Every text that the model was trained on, asked about, or measured on."""
    for split in ("train", "valid", "test"):
        for row in _lines(prepared.file(f"{split}.jsonl")):
            yield from _conversation(row["messages"])
            yield from texts_in([row.get("choices"), row.get("passages")])
    for row in _lines(prepared.file("preferences.jsonl")):
        yield from _conversation([*row["messages"], row["chosen"], row["rejected"]])
    for row in _lines(prepared.file("general.jsonl")):
        yield row["text"]
    if "cpt" in recipe.stages:
        import pyarrow.parquet as pq

        chat = ChatFormat.read(base.path)
        for batch in pq.ParquetFile(prepared.file("text_train.parquet")).iter_batches(256, columns=["input_ids"]):
            yield from (chat.decode(ids) for ids in batch.column(0).to_pylist())


def _conversation(messages: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Every text of the messages: content, reasoning, arguments of calls. What was asked also as it was written."""
    for message in messages:
        for text in texts_in(message):
            if message["role"] != "assistant":
                yield text
            yield from _said(text)


def _said(text: str) -> Iterator[str]:
    """The texts in an answer that is JSON, however deep, without its names: those stand in the recipe."""
    try:
        read = json.loads(text)
    except (ValueError, RecursionError):
        read = None
    if isinstance(read, dict | list | str):
        for inner in texts_in(read):
            yield from _said(inner)
    else:
        yield text


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]


def _runs(words: list[str]) -> Iterator[tuple[str, ...]]:
    return zip(*(words[start:] for start in range(PASSAGE)), strict=False)


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def _without_secrets(name: str, value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_secrets(key, item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_secrets(name, item) for item in value]
    if not isinstance(value, str):
        return value
    # prepare.redact.secret says what becomes of secrets.
    if _SECRET_NAME.search(name) and value not in get_args(Treatment):
        return HIDDEN
    if _PLACE.fullmatch(value):
        return Path(value).name
    shown = _URL.sub(lambda url: _address(url.group()), value)
    return redact_texts([shown], ["secret"])[0][0]


def _address(url: str) -> str:
    """Scheme, host, port and path: an account, a password or a token stands before the host or behind the path."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
