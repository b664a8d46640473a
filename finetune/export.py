"""Stage EXPORT: the merged model in 4 or 8 bit beside itself, held against it and scored as it was.

llm-compressor does the rounding, in an environment of its own (`scripts/setup.sh quantise`); finetune/quantise.py is
the part that runs there. What is measured are the finished files: their logits on the answers that PROOF asked for, and
their answers to every test row that SCORE asked. Which of them is handed over is a gate, and so HANDOFF's.
"""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from finetune import shards
from finetune.artifacts import Artifact, Stage, hash_file, remember, sync_directory, write_whole
from finetune.chat import ChatFormat
from finetune.checks.export import interpreter
from finetune.config.data import Task
from finetune.config.export import Quantise, Scheme
from finetune.config.machine import Machine
from finetune.config.model import Architecture
from finetune.config.section import Section
from finetune.corpus.records import Chat
from finetune.errors import RecipeError
from finetune.generate import Kept
from finetune.metrics import score
from finetune.score import prompts
from finetune.score.statistics import mean, paired_difference
from finetune.score.summary import AGAINST
from finetune.verify import verify

Say = Callable[[str], None]
ROOT = Path(__file__).resolve().parents[1]
_WORK = ".work"
_OURS = ("config.json", shards.INDEX)
"""Files of a model directory that differ with the weights; every other one is the merged model's, byte for byte."""


class Asked(Section):
    """What EXPORT reads of section `score`."""

    batch_tokens: int


class Served(Section):
    """What EXPORT reads of section `model`."""

    dtype: str
    architecture: Architecture


class Config(Section):
    """What changes the quantised models or what is measured of them; their limits are HANDOFF's."""

    seed: int
    export: tuple[Scheme, ...]
    quantise: Quantise
    tasks: dict[str, Task]
    score: Asked
    model: Served


def run(
    config: Mapping[str, Any], *, out: Path, prepared: Artifact, checkpoint: Artifact, scores: Artifact,
    proof: Artifact, machine: Machine, say: Say = print,
) -> dict[str, Any]:
    """Write a model directory for each scheme, answers.jsonl as SCORE does, its systems the schemes, and export.json:
    {scheme: {files, bytes, kl_mean, top1, tasks, ...}}.

    Resumes: models that a killed attempt had finished are kept, and answers by the batch. Raises RecipeError when
    llm-compressor is not installed or fails, or when what it wrote would not pass `finetune verify`.
    """
    finished = out / "export.json"
    if not finished.exists():  # else an earlier attempt was killed while it cleared its folder
        text = json.dumps(_export(config, out, prepared, checkpoint, scores, proof, machine, say), indent=1)
        write_whole(finished, text + "\n")
    finished.chmod(0o644)
    shutil.rmtree(out / _WORK, ignore_errors=True)
    exported = json.loads(finished.read_text(encoding="utf-8"))
    shown = ("bytes", "kl_mean", "kl_max", "top1")
    return {
        scheme: {**{key: one[key] for key in shown}, "losses": {name: t["loss"] for name, t in one["tasks"].items()}}
        for scheme, one in exported.items()
    }


def _export(
    config: Mapping[str, Any], out: Path, prepared: Artifact, checkpoint: Artifact, scores: Artifact, proof: Artifact,
    machine: Machine, say: Say,
) -> dict[str, Any]:
    settings = Config.model_validate(config)
    work, merged = out / _WORK, checkpoint.file("model")
    work.mkdir(exist_ok=True)
    chat = ChatFormat.read(merged)
    worker = _Worker(interpreter(), work, _order(settings, machine, chat), say)
    made = {scheme: _quantise(scheme, settings, prepared, merged, chat, out, worker) for scheme in settings.export}
    rows = _by_task(prepared.file("test.jsonl"), settings)
    _measure(rows, settings, merged, proof, chat, out, worker)
    exported: dict[str, Any] = {}
    answered: list[dict[str, Any]] = []
    for scheme, facts in made.items():
        found = json.loads((work / f"parity-{scheme}.json").read_text(encoding="utf-8"))
        found |= {kind: len(found[kind]) for kind in ("near_ties", "disagreements")}  # a list of thousands in 4 bit
        own = _answered(scheme, rows, settings, chat, work)
        answered += own
        tasks = dict(_scored(own, scores))
        files = {path.name: hash_file(path) for path in sorted((out / scheme).iterdir())}
        remember(out, {f"{scheme}/{name}": digest for name, digest in files.items()})
        size = sum(path.stat().st_size for path in (out / scheme).iterdir())
        exported[scheme] = {**found, "tasks": tasks, "bytes": size, "files": files, "settings": facts}
        losses = ", ".join(f"{task} {one['tuned']:.4f} -> {one['quantised']:.4f}" for task, one in tasks.items())
        parity = f"KL {found['kl_mean']:.4f} nats, top-1 {found['top1']:.1%}"
        say(f"export: {scheme}: {size / 1e9:.3f} GB, {parity}, {losses}")
    write_whole(out / "answers.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in answered))
    return exported


def _quantise(
    scheme: Scheme, settings: Config, prepared: Artifact, merged: Path, chat: ChatFormat, out: Path, worker: "_Worker"
) -> dict[str, Any]:
    """Make `out/<scheme>` unless an earlier attempt did; how it was made."""
    final, partial, noted = out / scheme, worker.folder / scheme, worker.folder / f"settings-{scheme}.json"
    if final.is_dir():
        worker.say(f"export: {scheme} kept from before")
        kept: dict[str, Any] = json.loads(noted.read_text(encoding="utf-8"))
        return kept
    how = settings.quantise
    calibrated = how.rounding == "gptq" or (scheme == "w8a8" and how.smoothing > 0)
    rows = _calibration(prepared.file("train.jsonl"), chat, how, settings.seed) if calibrated else []
    write_whole(worker.folder / "calibration.jsonl", "".join(json.dumps({"ids": ids}) + "\n" for ids in rows))
    facts: dict[str, Any] = {
        "scheme": scheme,
        "rounding": how.rounding,
        "group_size": how.group_for(settings.model.architecture) if scheme == "w4a16" else None,
        "smoothing": how.smoothing if scheme == "w8a8" else 0.0,
    }
    tokens = sum(map(len, rows))
    worker.say(f"export: {scheme}, {how.rounding}, calibrated on {len(rows)} training rows ({tokens} tokens)")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    calibration = str(worker.folder / "calibration.jsonl") if calibrated else None
    worker.run("compress", {**facts, "model": str(merged), "out": str(partial), "calibration": calibration})
    versions = json.loads((partial / "versions.json").read_text(encoding="utf-8"))
    facts |= {"calibration_rows": len(rows), "calibration_tokens": tokens, "seed": settings.seed, "versions": versions}
    _complete(partial, merged)
    problems = verify(partial, say=lambda _: None)
    if problems:
        raise RecipeError(problems)
    write_whole(noted, json.dumps(facts))
    partial.replace(final)
    sync_directory(out)
    return facts


def _calibration(file: Path, chat: ChatFormat, how: Quantise, seed: int) -> list[list[int]]:
    """Token ids of `how.rows` training examples as they are served, answer included, drawn by a hash of seed and id."""
    drawn = sorted(_read(file), key=lambda row: hashlib.sha256(f"{seed}:{row.id}".encode()).hexdigest())
    turns = (turn for row in drawn for turn in chat.supervise_turns(row.messages, row.tools))
    ids = [turn.input_ids[: how.max_length] for turn in islice(turns, how.rows)]
    if not ids:
        raise RecipeError.one(
            "quantise.rounding", how.rounding, "there is no training row to calibrate on", "quantise.rounding=nearest"
        )
    return ids


def _complete(made: Path, merged: Path) -> None:
    """Leave weights and index of what was made; config.json is the merged model's with `quantization_config` in it."""
    config = json.loads((merged / "config.json").read_text(encoding="utf-8"))
    wrote = json.loads((made / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = wrote["quantization_config"]
    for path in made.iterdir():
        if path.suffix != ".safetensors" and path.name != shards.INDEX:
            path.unlink()
    for path in merged.iterdir():
        if path.suffix != ".safetensors" and path.name not in _OURS:
            shutil.copyfile(path, made / path.name)
    write_whole(made / "config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    for path in [made, *made.iterdir()]:
        path.chmod(0o755 if path.is_dir() else 0o644)  # safetensors writes 0600, and a server is often another user


def _measure(
    rows: Mapping[str, Sequence[Chat]], settings: Config, merged: Path, proof: Artifact, chat: ChatFormat, out: Path,
    worker: "_Worker",
) -> None:
    questions = [
        {"task": task, "max_new_tokens": settings.tasks[task].max_new_tokens,
         "prompts": [chat.prompt_ids(row.prompt, row.mode, row.tools) for row in those]}
        for task, those in rows.items()
    ]  # fmt: skip
    file = worker.folder / "questions.jsonl"
    write_whole(file, "".join(json.dumps(line) + "\n" for line in questions))
    places = {"merged": str(merged), "quantised": {scheme: str(out / scheme) for scheme in settings.export}}
    files = {"asked": str(proof.file("answers.jsonl")), "questions": str(file), "out": str(worker.folder)}
    worker.run("measure", {**places, **files, "dtype": settings.model.dtype})


def _answered(
    scheme: Scheme, rows: Mapping[str, Sequence[Chat]], settings: Config, chat: ChatFormat, work: Path
) -> list[dict[str, Any]]:
    """What the quantised model answered, graded: lines as SCORE's answers.jsonl has them, its scheme as the system."""
    answers, found = Kept(work / f"answers-{scheme}.jsonl"), []
    for task, those in rows.items():
        made = answers.of(task)
        for number, row in enumerate(those):
            prompt = chat.prompt_text(row.prompt, row.mode, row.tools)
            text = prompts.answer_text(chat, made[number], row.mode)
            found.append({
                "task": task, "id": row.id, "group": row.group, "system": scheme,
                "prompt_sha256": hashlib.sha256(prompt.encode()).hexdigest(), "answer": text,
                "score": score(text, row, settings.tasks[task]), "gold": row.answer,
                "finished": made[number][-1] in chat.stop_ids,
            })  # fmt: skip
    return found


def _scored(answered: Sequence[Mapping[str, Any]], scores: Artifact) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each task's score beside SCORE's of the tuned model, row by row on the same prompts: what was lost; and what is
    still gained over the best of base and most frequent answer, the one that SCORE's headline is taken to."""
    before: dict[tuple[str, str], dict[str, Any]] = {}
    with scores.file("answers.jsonl").open(encoding="utf-8") as lines:
        for line in map(json.loads, lines):
            before.setdefault((line["task"], line["system"]), {})[line["id"]] = line
    for task in dict.fromkeys(str(line["task"]) for line in answered):
        those = [line for line in answered if line["task"] == task]
        asked = [before[task, "tuned"][line["id"]]["prompt_sha256"] for line in those]
        assert asked == [line["prompt_sha256"] for line in those], "SCORE asked something else"
        others = {
            system: [float(before[task, system][line["id"]]["score"]) for line in those]
            for system in ("tuned", *AGAINST)
            if (task, system) in before
        }
        against = max((name for name in AGAINST if name in others), key=lambda name: mean(others[name]))
        own, groups = [line["score"] for line in those], [line["group"] for line in those]
        lost = paired_difference(others["tuned"], own, groups)
        gained = paired_difference(own, others[against], groups)
        yield task, {
            "tuned": mean(others["tuned"]), "quantised": mean(own), "loss": lost.difference, "ci95": list(lost.ci95),
            "p": lost.p, "n": lost.n, "against": against,
            "gain": {"difference": gained.difference, "ci95": list(gained.ci95), "p": gained.p},
        }  # fmt: skip


def _by_task(file: Path, settings: Config) -> dict[str, list[Chat]]:
    found: dict[str, list[Chat]] = {name: [] for name in settings.tasks}
    for row in _read(file):
        found[row.task].append(row)
    return found


def _read(file: Path) -> Iterator[Chat]:
    with file.open(encoding="utf-8") as lines:
        yield from map(Chat.from_json, lines)


def _order(settings: Config, machine: Machine, chat: ChatFormat) -> dict[str, Any]:
    return {
        "seed": settings.seed,
        "threads": machine.threads or len(os.sched_getaffinity(0)),
        "device": "cuda" if machine.device == "cuda" else "cpu",
        "stop_ids": list(chat.stop_ids),
        "pad_id": chat.pad_id,
        "batch_tokens": settings.score.batch_tokens,
    }


class _Worker:
    """Runs orders in the environment of llm-compressor; our lines are said, all others stay in a log in `folder`."""

    def __init__(self, python: Path, folder: Path, order: Mapping[str, Any], say: Say) -> None:
        self.folder, self.say = folder, say
        self._python, self._order = python, order

    def run(self, do: str, order: Mapping[str, Any]) -> None:
        """Raises RecipeError with the last line of the log when the worker fails."""
        file, log = self.folder / f"{do}.order.json", self.folder / f"{do}.log"
        write_whole(file, json.dumps({"do": do, **self._order, **order}, indent=1))
        environment = {
            **os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE",
            "TOKENIZERS_PARALLELISM": "false",
        }  # fmt: skip
        command = [str(self._python), "-m", "finetune.quantise", str(file), str(os.getpid())]
        with (
            log.open("w", encoding="utf-8") as errors,
            subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
            ) as worker,
        ):
            assert worker.stdout is not None
            for line in worker.stdout:
                if line.startswith("export: "):
                    self.say(line.rstrip())
                else:
                    errors.write(line)
        if worker.returncode:
            last = [*log.read_text(encoding="utf-8", errors="replace").split("\n"), ""]
            words = next((line.strip() for line in reversed(last) if line.strip()), f"exit code {worker.returncode}")
            raise RecipeError.one(
                "export", do, f"llm-compressor's environment failed ({words[-300:]})",
                f"read {log}; leave the scheme out of `export`, or see docs/quantising.md",
            )  # fmt: skip


STAGE = Stage("export", 3, run)
