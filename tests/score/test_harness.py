"""Tasks of lm-evaluation-harness by name: its own figures on our models, where its data is in the cache."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from datasets.arrow_writer import ArrowWriter
from datasets.splits import SplitDict, SplitInfo
from multiple_choice import questions
from transformers import AutoModelForCausalLM

from finetune.artifacts import Artifact
from finetune.config.evaluation import Harness
from finetune.score import harness
from finetune.score.answers import Book

ASKED = Harness(tasks=("sciq",), shots=1, limit=4)


@pytest.fixture
def cache(base: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Hugging Face's cache of data sets, as a download leaves it, with 24 real questions where sciq would lie."""
    rows = []
    for asked, chat in questions(base.path):
        wrong = [choice for choice in chat.choices if choice != chat.answer]
        named = {f"distractor{number}": choice for number, choice in enumerate(wrong, start=1)}
        rows.append({"support": "", "question": asked.text[:120], **named, "correct_answer": chat.answer})
    rows = [row for row in rows if len(row) == 6]
    home = tmp_path / "datasets"
    folder = home / "allenai___sciq" / "default" / "0.0.0" / ("0" * 40)
    folder.mkdir(parents=True)
    made, splits = datasets.Dataset.from_list(rows), {}
    for split in ("train", "validation", "test"):
        with ArrowWriter(path=str(folder / f"sciq-{split}.arrow"), features=made.features) as writer:
            for row in rows:
                writer.write(row)
            count, size = writer.finalize()
        splits[split] = SplitInfo(name=split, num_bytes=size, num_examples=count, dataset_name="sciq")
    known = {"dataset_name": "sciq", "builder_name": "parquet", "config_name": "default", "version": "0.0.0"}
    info = datasets.DatasetInfo(features=made.features, splits=SplitDict(splits), **known)
    info.write_to_directory(str(folder))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(home))
    return home


def model(base: Artifact, change: float) -> Any:
    """The base, or a model that a little training might have made of it."""
    made = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32).eval()
    with torch.no_grad():
        torch.manual_seed(1)
        for weight in made.model.layers[0].parameters():
            weight += change * torch.randn_like(weight)
    return made


@pytest.mark.slow
def test_a_task_by_name_has_lm_evals_own_figures_row_by_row_and_is_asked_once(
    base: Artifact, cache: Path, tmp_path: Path
) -> None:
    from lm_eval import simple_evaluate

    rows: dict[str, harness.Rows] = {}
    for system, change in (("base", 0.0), ("tuned", 0.5)):
        loads = []

        @contextmanager
        def loaded(change: float = change, loads: list[int] = loads) -> Iterator[Any]:
            loads.append(1)
            yield model(base, change)

        for _ in range(2):
            book = Book(tmp_path / "answers", {"model": system})
            rows[system] = harness.ask(system, ASKED, loaded, base.path, book, lambda _: None)
        assert loads == [1]
    found = {line["metric"]: line for line in harness.compare(rows["base"], rows["tuned"])}
    theirs = simple_evaluate(
        "hf", f"pretrained={base.path},dtype=float32,device=cpu,enable_thinking=False", ["sciq"], num_fewshot=1,
        limit=4, bootstrap_iters=0, apply_chat_template=True, task_manager=harness.task_manager(),
    )  # fmt: skip
    assert theirs is not None
    for metric in ("acc", "acc_norm"):
        line = found[metric]
        assert line["base"] == theirs["results"]["sciq"][f"{metric},none"]
        assert line["n"] == 4
        assert (line["shots"], line["version"], line["better"]) == (1, "1.0", "higher")
        assert line["ci95"][0] <= line["difference"] <= line["ci95"][1]
    assert any(line["difference"] for line in found.values()), "the changed model answers some row otherwise"
    kept = [json.loads(line) for line in harness.lines(rows["base"], rows["tuned"])]
    of_acc = [row for row in kept if row["metric"] == "acc"]
    assert sum(row["tuned"] for row in of_acc) / len(of_acc) == pytest.approx(found["acc"]["tuned"], abs=1e-12)
    assert all(set(row) == {"task", "metric", "row", "row_sha256", "base", "tuned"} for row in kept)  # no text


def test_a_figure_that_is_no_mean_of_rows_gets_no_interval() -> None:
    row = {"task": "t", "version": "1", "shots": 0, "metric": "bleu", "better": "higher", "row": 0, "row_sha256": "a"}
    base, tuned = ([{**row, "value": None, "whole": whole}] for whole in (20.0, 25.0))
    (line,) = harness.compare(base, tuned)
    assert (line["difference"], line["ci95"]) == (5.0, None)


@pytest.mark.slow
def test_unknown_tasks_and_tasks_without_data_are_said_before_anything_is_trained(cache: Path) -> None:
    command = [sys.executable, "-m", "finetune.score.harness", "sciq", "sciqq", "arc_easy"]
    environment = {**os.environ, "HF_DATASETS_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found = json.loads(done.stdout.splitlines()[-1])
    assert [name for name, _, _ in found] == ["sciqq", "arc_easy"]
    assert "no task, group or tag" in found[0][1]
    assert "data is not at hand" in found[1][1]
