"""`finetune score TARGET recipe=...`: a recipe's test rows asked of any model, alone."""

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from finetune import metrics, shards
from finetune.artifacts import Artifact, write_whole
from finetune.base import find_base, set_threads
from finetune.chat import ChatFormat
from finetune.config import Recipe
from finetune.errors import RecipeError
from finetune.gates import weights_of
from finetune.memory import here
from finetune.score import latency, table
from finetune.score.answers import Book, Say
from finetune.score.endpoint import Endpoint
from finetune.score.inprocess import InProcess
from finetune.score.questions import Questions
from finetune.score.stage import prompting
from finetune.score.summary import Scored, alone, lines
from finetune.score.systems import Whole
from finetune.serve import start
from finetune.serve.server import Server, find_vllm, free_port
from finetune.wire import Wire


def run(chosen: argparse.Namespace, recipe: Recipe, config: Mapping[str, Any], prepared: Artifact) -> int:
    """Write scores.json and answers.jsonl, or latency.json. `config`: what SCORE reads of the recipe.

    Raises RecipeError for a target that is none, and when a server cannot be asked: what it answered is kept.
    """
    say: Say = partial(print, flush=True)
    for name in ("requests", "concurrency", "tries", "timeout"):
        if getattr(chosen, name) <= 0:
            raise RecipeError.one(f"--{name}", getattr(chosen, name), "must be more than 0", f"--{name} 4")
    books = Path(recipe.work) / "answers"
    with _target(chosen, recipe, books, say) as (name, chat, answerer, weights):
        questions = Questions.read(prepared, chat, recipe.tasks, shots=recipe.score.shots, seed=recipe.seed)
        out = chosen.out or Path(recipe.work) / "scores" / f"{name}-{answerer.model[:8]}"
        out.mkdir(parents=True, exist_ok=True)
        if chosen.latency:
            if not isinstance(answerer, Endpoint):
                raise RecipeError.one(
                    "--latency", chosen.target, "it is measured of a server", "--vllm, or give the server's address"
                )
            measured = latency.measure(
                answerer, questions, requests=chosen.requests, concurrency=chosen.concurrency, say=say
            ) | {"weights": weights}
            write_whole(out / "latency.json", json.dumps(measured, indent=1, ensure_ascii=False) + "\n")
            table.show_latency(measured)
            say(f"latency: {out / 'latency.json'}")
            return 0
        before = len(answerer.book)
        scored, made = questions.ask(name, answerer, say, few_shot=chosen.few_shot)
        written = [task for task in questions.rows if metrics.kind(recipe.tasks[task]) == "generated"]
        put = answerer.transport([
            one for task in written for one in questions.asked(task, few_shot=chosen.few_shot)
        ]) if isinstance(answerer, Endpoint) else {"api": "in process", "prompt": "token ids"}  # fmt: skip
    own = {(task, "model"): one for (task, _), one in scored.items()}
    found: dict[tuple[str, str], Scored] = {**own, **questions.classic()}
    tasks = [
        alone(task, rows, found, recipe.tasks[task], made[task])
        for task, rows in questions.rows.items()
    ]
    result = {
        "schema_version": "1", "recipe": recipe.name, "model": {"name": name, "digest": answerer.model,
        "about": dict(answerer.book.about)}, "asked_through": put, "few_shot": chosen.few_shot, "tasks": tasks,
        "prompting": prompting(questions), "prepared": prepared.digest, "config": dict(config)["score"],
    }  # fmt: skip
    write_whole(out / "scores.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    write_whole(
        out / "answers.jsonl",
        "".join(line for task, rows in questions.rows.items() for line in lines(task, rows, found)),
    )
    table.show(result)
    kept = len(answerer.book)
    say(f"kept:   {kept} answers of this model in {answerer.book.file} ({kept - before} new)")
    if before and weights is None:
        say(f"        {before} of them are from earlier calls and known by this address alone: "
            "if other weights are served there now, delete that file and score again")  # fmt: skip
    say(f"scores: {out / 'scores.json'}")
    return 0


@contextmanager
def _target(
    chosen: argparse.Namespace, recipe: Recipe, books: Path, say: Say
) -> Iterator[tuple[str, ChatFormat, InProcess | Endpoint, dict[str, str] | None]]:
    """(name, chat format, who answers, sha256 of each weights file: None behind an address, which tells no weights)."""
    if chosen.target.startswith(("http://", "https://")):
        address, _, name = chosen.target.partition("#")
        chat = ChatFormat.read(find_base(recipe.model).path)
        with _wire(chosen, address) as wire:
            found = _endpoint(chosen, wire, name or None, chat, books, say)
            yield _plain(found.name), chat, found, None
        return
    directory = Path(chosen.target).resolve()
    whole = directory if (directory / "config.json").is_file() else directory / chosen.model
    if not (whole / "config.json").is_file():
        raise RecipeError.one(
            "target", chosen.target, "no model directory, no bundle and no address of a server",
            "a folder with config.json, a folder with model/, or http://HOST:PORT#MODEL",
        )  # fmt: skip
    for shard in shards.shard_names(whole):
        shards.read_header(whole / shard)  # a torn file is told before anything of it is loaded
    artifact = find_base(recipe.model.model_copy(update={"path": str(whole), "origin": "hub"}))
    weights = weights_of(artifact.manifest["files"])
    chat = ChatFormat.read(whole)
    name = _plain(directory.name if whole == directory else f"{directory.name}-{whole.name}")
    if chosen.vllm:
        with _served(chosen, recipe, directory, whole, say) as (url, served, version, dtype):
            about = {"checkpoint": artifact.digest, "server": f"vllm {version}", "dtype": dtype}
            with _wire(chosen, url) as wire:
                yield name, chat, _endpoint(chosen, wire, served, chat, books, say, about), weights
        return
    set_threads(recipe.machine)
    model = Whole(artifact, recipe.model, recipe.machine)
    book = Book(books, model.about())
    asker = InProcess(model.as_it_is, chat, book, batch_tokens=recipe.score.batch_tokens, say=say)
    yield name, chat, asker, weights


def _wire(chosen: argparse.Namespace, url: str) -> Wire:
    return Wire(url, timeout=chosen.timeout, tries=chosen.tries)


def _endpoint(
    chosen: argparse.Namespace, wire: Wire, name: str | None, chat: ChatFormat, books: Path, say: Say,
    about: Mapping[str, Any] | None = None,
) -> Endpoint:  # fmt: skip
    tell = lambda line: say(f"score: {line}")  # noqa: E731
    return Endpoint(wire, name, chat, books, concurrency=chosen.concurrency, say=tell, about=about)


@contextmanager
def _served(
    chosen: argparse.Namespace, recipe: Recipe, directory: Path, whole: Path, say: Say
) -> Iterator[tuple[str, str, str, str]]:
    """(address, name, version, number format) of our vLLM on this directory; it ends with the block."""
    vllm = find_vllm(None, any_version=False)
    free_port("127.0.0.1", chosen.port)
    machine = here()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as log:
        if whole == directory:  # a model directory alone is served as the model/ of a bundle would be
            (Path(folder) / "model").symlink_to(whole)
            bundle = Path(folder)
            plan: dict[str, Any] = {
                "name": _plain(whole.name), "dtype": recipe.model.dtype, "default_mode": recipe.model.default_mode,
                "setups": [{"max_model_len": min(recipe.model.positions, 8192), "problem": ""}],
            }  # fmt: skip
            weights = "model"
        else:
            bundle, plan, weights = directory, start.read_plan(directory), chosen.model
        words = start.command(bundle, plan, machine, dtype=plan["dtype"], base=None, weights=weights)
        words = [str(vllm), *words, "--host", "127.0.0.1", "--port", str(chosen.port)]
        say(f"score: starting vLLM on {whole}")
        at: dict[str, Any] = {"host": "127.0.0.1", "port": chosen.port, "log": log}
        with Server(words, bundle, compiled=bool(machine.gpus), **at) as server:
            version, seconds = server.wait()
            say(f"score: vLLM {version} is ready after {seconds:.0f} s")
            yield server.url, plan["name"], version, plan["dtype"]


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name).strip("-.") or "model"
