"""`finetune show`: the examples that are trained, token by token, with the trained ones coloured; no second rendering.

Read from PREPARE's own output (and that of PAIRS where it is there), so that what is shown is what is trained.
"""

import difflib
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import jinja2

from finetune import artifacts
from finetune.artifacts import Artifact
from finetune.chat import IGNORED, ChatFormat
from finetune.config import Recipe, load
from finetune.errors import RecipeError

_TRAINED, _PROMPT, _HEAD, _OFF = "\x1b[1;32m", "\x1b[2m", "\x1b[1m", "\x1b[0m"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class Piece:
    """The text of one token, or of the few that hold one character together."""

    text: str
    trained: bool


@dataclass(frozen=True)
class Shown:
    """One example: a supervised turn, a piece of running text, or one answer of a preference."""

    id: str
    task: str
    mode: str
    origin: str
    """`file:line` of the row it was made of, or where else it came from."""
    pieces: tuple[Piece, ...]
    tokens: int
    trained: int

    @property
    def spans(self) -> list[Piece]:
        """Neighbours of one kind joined."""
        joined: list[Piece] = []
        for piece in self.pieces:
            if joined and joined[-1].trained == piece.trained:
                piece = Piece(joined.pop().text + piece.text, piece.trained)
            joined.append(piece)
        return joined


def run(
    words: Sequence[str], *, config_dir: Path | None, rows: int = 4, only: str | None = None, html: Path | None = None
) -> int:
    """Print `rows` examples (or all of record `only`), or write them to `html`; PREPARE runs first where it has not."""
    from finetune.base import find_base
    from finetune.checks import check

    recipe = load(words, config_dir=config_dir)
    if problems := check(recipe):
        raise RecipeError(problems)
    if rows < 1:
        raise RecipeError.one("--rows", rows, "is less than one example", "--rows 4")
    base = find_base(recipe.model)
    chat = ChatFormat.read(base.path)
    prepared = find_prepared(recipe, base)
    shown = collect(recipe, chat, prepared, rows, only)
    if html is not None:
        with artifacts.explained(html.parent):
            artifacts.write_whole(html, render_page(recipe, prepared, shown))
        print(html)
    else:
        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        print(render_text(shown, colour=colour))
    return 0


def find_prepared(recipe: Recipe, base: Artifact) -> Artifact:
    """PREPARE's finished output for this recipe, made now where it is not there."""
    from finetune.corpus import prepare
    from finetune.corpus.engine import Engine
    from finetune.corpus.finding import find_documents
    from finetune.ranks import hold
    from finetune.train import identity

    work = Path(recipe.work)
    config = identity(recipe, prepare.Config)
    inputs = {"base": base, "documents": find_documents(recipe.sources, recipe.documents, recipe.prepare.files)}
    found = artifacts.find(prepare.STAGE, config, root=work, inputs=inputs)
    if found is not None:
        return found
    with hold(work), redirect_stdout(sys.stderr):
        return artifacts.build(prepare.STAGE, config, root=work, inputs=inputs, engine=Engine.of(recipe.machine))


def collect(recipe: Recipe, chat: ChatFormat, prepared: Artifact, rows: int, only: str | None = None) -> list[Shown]:
    """At most `rows` training examples and as many preferences, each task, mode and origin in turn."""
    import pyarrow.parquet as pq

    from finetune import dpo

    records = {record["id"]: record for record in map(json.loads, _lines(prepared.file("train.jsonl")))}
    named: list[dict[str, Any]] = []
    for kind in ("sft", "text") if "cpt" in recipe.stages else ("sft",):
        named += pq.read_table(prepared.file(f"{kind}_train.parquet")).to_pylist()
    wanted = _in_turn(named, rows) if only is None else [row for row in named if only in _names(row["id"])]
    found = [_example(chat, row, records) for row in wanted]
    if "dpo" not in recipe.stages:
        return found if found else _nothing(only, [row["id"] for row in named])
    pairs, _, _ = dpo.read_pairs(_preferences(Path(recipe.work), prepared), chat, max_length=recipe.dpo.max_length)
    chosen = [pair for pair in pairs if only in (None, pair["id"])]
    both = [[_answer(chat, pair, side) for side in ("chosen", "rejected")] for pair in chosen]
    found += [answer for answers in (both if only else both[:rows]) for answer in answers]
    return found if found else _nothing(only, [row["id"] for row in named] + [pair["id"] for pair in pairs])


def render_text(shown: Sequence[Shown], *, colour: bool) -> str:
    """For a terminal: trained tokens green, or between ⟦ and ⟧ where there is no colour."""
    head, off = (_HEAD, _OFF) if colour else ("", "")
    lines = []
    for one in shown:
        facts = f"{one.task}, mode {one.mode}, {one.origin}, {one.tokens} tokens, {one.trained} of them trained"
        lines.append(f"{head}{visible(one.id)}{off}  {visible(facts)}")
        text = "".join(
            f"{_TRAINED if piece.trained else _PROMPT}{visible(piece.text)}{_OFF}"
            if colour
            else f"⟦{visible(piece.text)}⟧" if piece.trained else visible(piece.text)
            for piece in one.spans
        )
        lines += [f"  {line}" for line in text.split("\n")] + [""]
    lines.append("trained: what is " + (f"{_TRAINED}green{_OFF}" if colour else "between ⟦ and ⟧"))
    return "\n".join(lines)


def render_page(recipe: Recipe, prepared: Artifact, shown: Sequence[Shown]) -> str:
    """One page that needs nothing else. The same examples give the same bytes."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["visible"] = visible
    template = Path(__file__).with_name("show.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(template).render(recipe=recipe, facts=prepared.facts, shown=shown) + "\n"


def visible(text: str) -> str:
    """Control and bidirectional characters spelt out: a document must not steer the terminal or reorder the page."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def _example(chat: ChatFormat, row: Mapping[str, Any], records: Mapping[str, Any]) -> Shown:
    record = next((records[name] for name in _names(row["id"]) if name in records), None)
    task = row.get("task") or "running text"
    origin = f"{record['source']}:{record['line']}" if record else "general text" if task == "replay" else "a document"
    labels = row.get("labels") or row["input_ids"]
    return _shown(chat, row["id"], task, row.get("mode") or "none", origin, row["input_ids"], labels)


def _answer(chat: ChatFormat, pair: Mapping[str, Any], side: str) -> Shown:
    prompt, answer = list(pair["prompt_ids"]), list(pair[f"{side}_ids"])
    labels = [IGNORED] * len(prompt) + answer
    where = "held out, measured only" if pair["held_out"] else "trained"
    origin = f"{pair['origin']} preference, {where}"
    return _shown(chat, pair["id"], f"dpo {side}", pair["mode"], origin, prompt + answer, labels)


def _shown(
    chat: ChatFormat, id_: str, task: str, mode: str, origin: str, ids: Sequence[int], labels: Sequence[int]
) -> Shown:
    trained = [label != IGNORED for label in labels]
    return Shown(id_, task, mode, origin, tuple(cut_pieces(chat, ids, trained)), len(ids), sum(trained))


def cut_pieces(chat: ChatFormat, ids: Sequence[int], trained: Sequence[bool]) -> list[Piece]:
    """The ids as texts; tokens are joined until they hold whole characters, never across the edge of the trained."""
    pieces: list[Piece] = []
    start = 0
    for end in range(1, len(ids) + 1):
        text = chat.decode(ids[start:end], skip_special=False)
        if end == len(ids) or trained[end] != trained[start] or not text.endswith("\ufffd"):
            pieces.append(Piece(text, trained[start]))
            start = end
    return pieces


def _names(example: str) -> tuple[str, str]:
    """The record that an example may be of: `NAME`, or of `NAME#2`, its second supervised turn, `NAME`."""
    return example, example.rpartition("#")[0]


def _in_turn(rows: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The first of each (task, mode), then the second of each, ... until there are `count`."""
    kinds: dict[tuple[Any, Any], list[dict[str, Any]]] = {}
    for row in rows:
        kinds.setdefault((row.get("task"), row.get("mode")), []).append(row)
    rounds = zip_longest(*kinds.values())
    return [row for together in rounds for row in together if row is not None][:count]


def _preferences(work: Path, prepared: Artifact) -> Path:
    """Those of the newest PAIRS made of this PREPARE; before PAIRS the ready-made ones."""
    made = [artifacts.read(path) for path in work.glob("pairs-*") if not path.name.endswith(".partial")]
    made = [pairs for pairs in made if pairs.manifest["inputs"].get("prepared") == prepared.digest]
    newest = max(made, key=lambda pairs: pairs.path.stat().st_mtime_ns, default=prepared)
    return newest.file("preferences.jsonl")


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").split("\n") if line]


def _nothing(only: str | None, ids: Sequence[str]) -> list[Shown]:
    if only is None:
        return []
    near = difflib.get_close_matches(only, ids, n=1, cutoff=0.3)
    fix = f"did you mean {near[0]}?" if near else "see the ids in train.jsonl"
    raise RecipeError.one("--id", only, "is no training example (rows left out stand in rejects.jsonl)", fix)
