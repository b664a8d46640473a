"""Steps from examples and texts to what is trained on: token rows, running text, replay."""

from finetune.config.data import TextUse
from finetune.corpus import tokens
from finetune.corpus.build import Example, Item, fill
from finetune.corpus.ledger import Reject
from finetune.corpus.read import capped
from finetune.corpus.settings import Items, Job, Sides
from finetune.corpus.sides import leak_reject, take_text
from finetune.corpus.split import SIDES, EvaluationIndex, Side, choose, side_of
from finetune.errors import Problem, RecipeError


def tokenise(job: Job, sides: Sides) -> dict[Side, list[tokens.TokenRow]]:
    """Token rows of each side. Rows over sft.max_length are an error or are dropped, never cut."""
    limit, policy = job.settings.sft.max_length, job.settings.prepare.length.policy
    rows: dict[Side, list[tokens.TokenRow]] = {side: [] for side in SIDES}
    problems: list[Problem] = []
    for name, dealt in sides.items():
        for side in SIDES:
            made: dict[str, list[tokens.TokenRow]] = {}

            def judge(example: Example, made: dict[str, list[tokens.TokenRow]] = made) -> Reject | None:
                turns = tokens.tokenise(job.chat, example)
                problem = tokens.too_long(example, turns, limit)
                if problem is None or policy != "drop":
                    made[example.chat.id] = turns
                if problem is not None and policy != "drop":
                    problems.append(problem)
                    return None
                return None if problem is None else example.reject("length", "over max_length", str(problem.value))

            entries = len(job.ledger.entries)
            dealt[side] = job.ledger.keep("length", f"{name}/{side}", dealt[side], judge)
            found = [row for turns in made.values() for row in turns]
            job.ledger.entries[entries]["tokens_supervised_out"] = sum(row.supervised for row in found)
            rows[side] += found
    if problems:
        raise capped(problems)
    return rows


def mix_modes(job: Job, sides: Sides, rows: list[tokens.TokenRow]) -> list[tokens.TokenRow]:
    """Training examples with prepare.think_share of them in thinking mode; what is over in one mode is counted.

    The unit is the supervised turn, as it is trained. A conversation none of whose turns is left is no training row.
    """
    share = job.settings.prepare.think_share
    if share is None:
        return rows
    of_mode = {mode: [row.id for row in rows if row.mode == mode] for mode in ("plain", "think")}
    think, plain = len(of_mode["think"]), len(of_mode["plain"])
    for mode, count in (("think", think), ("plain", plain)):
        if not count:
            raise RecipeError.one(
                "prepare.think_share",
                share,
                f"no training example is of mode {mode}, so the two cannot be mixed",
                "set prepare.think_share=null, or add rows of that mode",
            )
    most = {"think": max(1, round(share * plain / (1 - share))), "plain": max(1, round(think * (1 - share) / share))}
    kept = set().union(*(choose(ids, most[mode], job.settings.seed, f"mix/{mode}") for mode, ids in of_mode.items()))
    examples = {example.chat.id: example for dealt in sides.values() for example in dealt["train"]}
    over = [row for row in rows if row.id not in kept]
    rejects = []
    for row in over:
        item = (examples.get(row.id) or examples[row.id.rpartition("#")[0]]).item
        reason = f"over the share of mode {row.mode}"
        rejects.append(Reject(item.file, item.line, row.id, "mix", reason, f"think_share {share}"))
    mixed = [row for row in rows if row.id in kept]
    job.ledger.record("mix", "train", len(rows), len(mixed), rejects, unit="supervised turns")
    left = {row.id for row in mixed} | {row.id.rpartition("#")[0] for row in mixed}
    for dealt in sides.values():
        dealt["train"] = [example for example in dealt["train"] if example.chat.id in left]
    return mixed


def make_text(job: Job, items: Items, index: EvaluationIndex | None) -> dict[str, list[tuple[str, list[int]]]]:
    """Running text for continued pre-training: never from test groups of a source that tasks are made of."""
    pieces: dict[str, list[tuple[str, list[int]]]] = {"train": [], "valid": []}
    tasked = {task.source for task in job.settings.tasks.values()}
    measured = {use.source for use in job.settings.general.values()}
    for number, use in enumerate(job.settings.text):
        guarded = use.source in tasked | measured
        found = take_text(job, f"text/{use.source}", use, items[use.source], ("train", "valid") if guarded else SIDES)
        if index is not None:
            found = _keep_clean(job, f"text/{use.source}", found, use.template, index)
        for item in found:
            side = side_of(item.group, job.settings.seed, job.settings.prepare.split)
            name = f"text{number}/{item.id}"
            text = fill(use.template, item.columns)
            pieces["valid" if side == "valid" else "train"] += tokens.cut_text(
                job.chat, name, text, job.settings.cpt.max_length
            )
    return pieces


def _keep_clean(job: Job, label: str, found: list[Item], template: str, index: EvaluationIndex) -> list[Item]:
    return job.ledger.keep(
        "decontaminate", label, found, lambda item: leak_reject(item, index.find([fill(template, item.columns)]))
    )


def make_replay(job: Job, items: Items, index: EvaluationIndex | None, trained: int) -> list[tokens.TokenRow]:
    """Pieces of general text, `share` as many as there are training rows, every token supervised."""
    use = job.settings.replay
    if use is None or not trained or not round(use.share * trained):
        return []
    measured = {general.source for general in job.settings.general.values()}
    sides: tuple[Side, ...] = ("train", "valid") if use.source in measured else SIDES
    found = take_text(job, "replay", TextUse(source=use.source, template=use.template), items[use.source], sides)
    if index is not None:
        found = _keep_clean(job, "replay", found, use.template, index)
    pieces = {}
    for item in found:
        ids = job.chat.encode(fill(use.template, item.columns))
        for number, at in enumerate(range(0, len(ids) - use.tokens + 1, use.tokens), start=1):
            pieces[f"replay/{item.id}#{number}"] = ids[at : at + use.tokens]
    wanted = round(use.share * trained)
    if len(pieces) < wanted:
        raise RecipeError.one(
            "replay.share",
            use.share,
            f"{wanted} pieces of {use.tokens} tokens are asked for, the source gives {len(pieces)}",
            "lower replay.share or replay.tokens, or name a longer source",
        )
    chosen = choose(list(pieces), wanted, job.settings.seed, "replay")
    job.ledger.record("cut replay", "replay", len(found), len(found), pieces=len(pieces), chosen=len(chosen))
    return [tokens.TokenRow(name, "replay", ids, ids, "plain") for name, ids in pieces.items() if name in chosen]
