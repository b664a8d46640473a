"""Steps from examples and texts to what is trained on: length policy, mix of modes, running text, replay."""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from finetune.config.data import TextUse
from finetune.corpus import store, tokens
from finetune.corpus.build import Item, fill, names_in
from finetune.corpus.draws import lowest
from finetune.corpus.engine import work_off
from finetune.corpus.evaluation import Evaluation, leak, show
from finetune.corpus.examples import EXAMPLES
from finetune.corpus.finding import MOST_SHOWN
from finetune.corpus.ledger import Ledger, Reject
from finetune.corpus.rows import Shards
from finetune.corpus.settings import Job, Plan
from finetune.corpus.sides import Sides, save_groups
from finetune.corpus.split import SIDES, Side, draw
from finetune.corpus.texts import take_text
from finetune.errors import Problem

Tokens = list[tuple[Path, store.Mask]]
"""(folder, which of its token rows)."""
_TOGETHER = 1 << 17
"""Draws that are looked at in one piece."""


def fit_length(job: Job, sides: Sides) -> None:
    """Rows over sft.max_length are an error or are dropped; policy `split` cut those it could when they were made."""
    limit, policy = job.settings.sft.max_length, job.settings.prepare.length.policy
    other = "prepare.length.policy=drop to leave such rows out (they are counted)"
    if policy == "split":
        other += "; there is no split_column, or no place in it to cut at"
    count, longest, shown = 0, limit, []
    for found in sides.values():
        for side in SIDES:
            long = found.on(side)
            lengths = np.concatenate([np.empty(0, np.int32), *found.each("longest", long)])
            long[long] = lengths > limit
            if policy == "drop":
                found.drop(job, "length", side, long, "over max_length", tell=True)
                continue
            found.drop(job, "length", side, np.zeros_like(long), "over max_length")
            lengths = lengths[lengths > limit]
            count, longest = count + len(lengths), max(longest, int(lengths.max(initial=0)))
            told = zip(lengths.tolist(), found.chats(long, "file", "line"), strict=True)
            shown += [(f"{row['file']}:{row['line']}", f"{length} tokens") for length, row in islice(told, MOST_SHOWN)]
    rule = f"a row has at most sft.max_length={limit}; {count} are longer, up to {longest} tokens"
    fix = f"set sft.max_length={longest}, or {other}"
    job.refuse([Problem(where, length, rule, fix) for where, length in shown[:MOST_SHOWN]])


def token_rows(sides: Sides, side: Side) -> Tokens:
    """The token rows of the examples that lie on this side, task by task."""
    return [
        (folder, _rows_of(folder, mask) & ~found.over.get(folder, np.False_))
        for found in sides.values()
        for which in [found.on(side), *(found.again if side == "train" else ())]
        for folder, mask in found.parts(which)
    ]


def _rows_of(folder: Path, examples: store.Mask) -> store.Mask:
    of: store.Array = pq.read_table(folder / tokens.ROWS, columns=["example"])["example"].to_numpy()
    mine: store.Mask = examples[of]
    return mine


def mix_modes(job: Job, sides: Sides) -> None:
    """Leave training examples out until prepare.think_share of them are in thinking mode; those are counted.

    The unit is the supervised turn, as it is trained. A conversation none of whose turns is left is no training row.
    """
    share = job.settings.prepare.think_share
    if share is None:
        return
    parts = token_rows(sides, "train")
    think, draws = array("b"), array("d")
    for folder, mask in parts:
        for row in store.read(folder / tokens.ROWS, mask, ["id", "mode"]):
            think.append(row["mode"] == "think")
            draws.append(draw(job.settings.seed, f"mix/{row['mode']}", row["id"]))
    thinking, drawn = np.frombuffer(think, bool), np.frombuffer(draws)
    counts = {"think": int(thinking.sum()), "plain": int((~thinking).sum())}
    for mode, count in counts.items():
        if not count:
            rule = f"no training example is of mode {mode}, so the two cannot be mixed"
            fix = "set prepare.think_share=null, or add rows of that mode"
            job.refuse([Problem("prepare.think_share", share, rule, fix)])
            return
    most = {
        "think": max(1, round(share * counts["plain"] / (1 - share))),
        "plain": max(1, round(counts["think"] * (1 - share) / share)),
    }
    keep = np.zeros(len(thinking), bool)
    for mode, mine in (("think", thinking), ("plain", ~thinking)):
        keep[mine] = np.concatenate(list(lowest(lambda: _pieces(drawn, mine), most[mode])))  # noqa: B023 (called at once)
    _leave_over(job, sides, parts, keep, share)


def _pieces(drawn: store.Array, mine: store.Mask) -> Iterator[store.Array]:
    for begin in range(0, len(drawn), _TOGETHER):
        part = slice(begin, begin + _TOGETHER)
        yield drawn[part][mine[part]]


def _leave_over(job: Job, sides: Sides, parts: Tokens, keep: store.Mask, share: float) -> None:
    """Count and list the supervised turns that are over, and let go of conversations without any other."""
    at = 0
    for folder, mask in parts:
        rejects: list[Reject] = []
        before, tokens_in, tokens_out = at, 0, 0
        found = next(found for found in sides.values() if folder in found.folders)
        start = found.starts[found.folders.index(folder)]
        places = list(store.read(folder / EXAMPLES, columns=["file", "line"]))
        over, left = np.zeros(len(mask), bool), np.zeros(len(places), bool)
        rows = store.read(folder / tokens.ROWS, mask, ["id", "mode", "example", "supervised"])
        for number, row in zip(np.flatnonzero(mask).tolist(), rows, strict=True):
            tokens_in += row["supervised"]
            if keep[at]:
                tokens_out += row["supervised"]
                left[row["example"]] = True
            else:
                over[number] = True
                place, reason = places[row["example"]], f"over the share of mode {row['mode']}"
                rejects.append(
                    Reject(place["file"], place["line"], row["id"], "mix", reason, f"think_share {share}",
                           supervised_tokens=row["supervised"])
                )  # fmt: skip
            at += 1
        found.over[folder] = over
        here = slice(start, start + len(places))
        found.alive[here] &= left | ~found.on("train")[here]
        kept, given = int(keep[before:at].sum()), (tokens_in, tokens_out)
        job.ledger.record("mix", "train", at - before, kept, rejects, given, unit="supervised turns")


def mix_tasks(job: Job, sides: Sides) -> None:
    """Training examples in the proportions of prepare.mix: as many as there are, each at most `repeats` times.

    Which are left out, or stand once more, is drawn by hash.
    """
    mix = job.settings.prepare.mix
    if mix is None:
        return
    rows = {name: int(sides[name].on("train").sum()) for name in mix.weights}
    job.refuse([
        Problem(f"prepare.mix.weights.{name}", weight, "this task has no training row left", "see rejects.jsonl")
        for name, weight in mix.weights.items() if not rows[name]
    ])  # fmt: skip
    scale = min(mix.repeats * rows[name] / weight for name, weight in mix.weights.items())
    for name, weight in mix.weights.items():
        found, count = sides[name], rows[name]
        wanted = max(1, round(scale * weight)) if count else 0
        mine = found.on("train")
        if wanted <= count:
            over = mine & ~found.lowest(mine, wanted)
            found.drop(job, "mix tasks", "train", over, "over the weight of its task")
            continue
        for at in range(count, wanted, count):
            found.again.append(found.lowest(mine, min(count, wanted - at)))
        before, stand = found.supervised(mine), count + sum(int(again.sum()) for again in found.again)
        more = sum(found.supervised(again) for again in found.again)
        job.ledger.record(
            "mix tasks", f"{name}/train", count, stand, tokens=(before, before + more), made=wanted - count,
            tokens_made=more,
        )  # fmt: skip


@dataclass(frozen=True)
class Running:
    """Running text of one shard: a unit of work. Pieces are called `name`/id; of `exactly` tokens, None: to the end."""

    label: str
    name: str
    template: str
    shard: store.Shard
    exactly: int | None = None


def make_text(job: Job, shards: Shards, evaluation: Evaluation, examples: Sides) -> dict[str, Tokens]:
    """Running text for continued pre-training: never from groups that a task is tested on, in whatever source."""
    guarded, held = _guarded(job), save_groups(job, examples, "test")
    parts: dict[str, Tokens] = {"train": [], "valid": []}
    for number, use in enumerate(job.settings.text):
        sides: tuple[Side, ...] = ("train", "valid") if use.source in guarded else SIDES
        label = f"text/{use.source}"
        found = take_text(job, label, use, shards[use.source], sides, f"text{number}", held)
        units = [Running(label, f"text{number}", use.template, shard) for shard in found]
        for folder in _run_text(job, f"text{number}", units, evaluation):
            valid = np.load(folder / "valid.npy")
            parts["valid"].append((folder, valid))
            parts["train"].append((folder, ~valid))
    return parts


def _guarded(job: Job) -> set[str]:
    """The sources that something is measured on: a task, or forgetting."""
    tasked = {job.plan.origin(task.source) for task in job.settings.tasks.values()}
    return tasked | {use.source for use in job.settings.general.values()}


def _run_text(job: Job, step: str, units: list[Running], evaluation: Evaluation) -> list[Path]:
    work = partial(cut_text, plan=job.plan, evaluation=evaluation.frozen())
    folders = work_off(step, units, work, scratch=job.scratch, engine=job.engine, say=job.say)
    job.ledger.take_in(folders)
    return folders


def cut_text(unit: Running, folder: Path, *, plan: Plan, evaluation: Evaluation) -> None:
    """One unit of work: the pieces of texts that share nothing with an evaluation row."""
    chat, length = plan.chat, unit.exactly or plan.settings.cpt.max_length
    valid, draws = [], []
    rows = made = lost = 0
    with Ledger.opened(folder) as ledger, store.Table(folder / tokens.ROWS, tokens.ROW) as table:
        for item in _clean(unit, plan, evaluation, ledger):
            text = fill(unit.template, item.columns)
            ids = chat.encode(text) if unit.exactly else [*chat.encode(text), chat.eos_id]
            pieces = tokens.cut(f"{unit.name}/{item.id}", ids, length, whole=unit.exactly is not None)
            for name, piece in pieces:
                row = tokens.TokenRow(name, unit.name, piece, piece, "plain")
                tokens.add_row(table, row, rows)
                valid.append(plan.side_of(item) == "valid")
                draws.append(draw(plan.settings.seed, unit.name, name))
            made += len(ids)
            lost += len(ids) - sum(len(piece) for _, piece in pieces)
            rows += 1
        if unit.exactly is None:
            ledger.record("cut text", unit.label, rows, rows, tokens=(made, made), pieces=len(valid))
    np.save(folder / "valid.npy", np.array(valid, bool))
    np.savez(folder / "pieces.npz", draw=np.array(draws), counts=np.array([rows, made, lost]))


def _clean(unit: Running, plan: Plan, evaluation: Evaluation, ledger: Ledger) -> Iterator[Item]:
    items = unit.shard.items(plan.nested(unit.shard.source))
    if not evaluation.on:
        return items
    index, columns = evaluation.index(), names_in([unit.template])

    def judge(item: Item) -> Reject | None:
        text, values = fill(unit.template, item.columns), [item.columns[name] for name in columns]
        # A column that is a whole prompt gives it away, whatever stands beside it.
        asked = [([text], values), *(([], [value]) for value in values if len(values) > 1)]
        hit = next((hit for each in asked if (hit := index.find(*each))), None)
        if hit is None:
            return None
        reject = leak({"file": item.file, "line": item.line, "id": item.id}, hit, zip(columns, values, strict=True))
        show(ledger, unit.label, reject, hit, text)
        return reject

    return ledger.keep("decontaminate", unit.label, items, judge)


def make_replay(job: Job, shards: Shards, evaluation: Evaluation, sides: Sides) -> Tokens:
    """Pieces of general text, `share` as many as there are training rows, every token supervised.

    Of a source that something is measured on only the training side: nothing of replay is held out for validation.
    Of other sources no group that a task is tested or validated on.
    """
    use = job.settings.replay
    wanted = 0 if use is None else round(use.share * sum(int(mask.sum()) for _, mask in token_rows(sides, "train")))
    if use is None or not wanted:
        return []
    allowed: tuple[Side, ...] = ("train",) if use.source in _guarded(job) else SIDES
    text = TextUse(source=use.source, template=use.template)
    held = save_groups(job, sides, "valid", "test")
    found = take_text(job, "replay", text, shards[use.source], allowed, "replay", held)
    units = [Running("replay", "replay", use.template, shard, use.tokens) for shard in found]
    folders = _run_text(job, "replay", units, evaluation)
    rows, made, lost = (int(count) for count in np.sum(list(store.each(folders, "pieces", "counts")), axis=0))
    chosen = list(lowest(lambda: store.each(folders, "pieces", "draw"), wanted))
    pieces = sum(map(len, chosen))
    if pieces < wanted:
        problem = Problem(
            "replay.share",
            use.share,
            f"{wanted} pieces of {use.tokens} tokens are asked for, the source gives {pieces}",
            "lower replay.share or replay.tokens, or name a longer source",
        )
        job.refuse([problem])
    taken = sum(int(mask.sum()) for mask in chosen)
    over = {"shorter than replay.tokens": lost, "over replay.share": made - lost - taken * use.tokens}
    job.ledger.record(
        "cut replay", "replay", rows, rows, (), (made, taken * use.tokens), over, pieces=pieces, chosen=taken
    )
    return list(zip(folders, chosen, strict=True))
