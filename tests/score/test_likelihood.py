"""A multiple choice by likelihood: as one forward pass each says, and as lm-evaluation-harness scores it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from multiple_choice import questions
from real_rows import task
from transformers import AutoModelForCausalLM

from finetune import metrics
from finetune.artifacts import Artifact
from finetune.chat import ChatFormat
from finetune.corpus.records import Chat
from finetune.metrics.labels import both_ways, likeliest
from finetune.score.answers import Book
from finetune.score.inprocess import InProcess
from finetune.score.questions import Questions
from finetune.score.statistics import interval
from finetune.score.summary import Scored, details, lines

THEIRS = json.loads(Path(__file__).with_name("lm_eval_choices.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_options_are_as_likely_as_lm_eval_finds_them_and_the_likeliest_is_the_answer(
    base: Artifact, tmp_path: Path
) -> None:
    asked = questions(base.path)
    rows = [row for _, row in asked]
    model = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32).eval()

    loads: list[int] = []

    @contextmanager
    def loaded() -> Iterator[Any]:
        loads.append(1)
        yield model

    chat = ChatFormat.read(base.path)
    answerer = InProcess(loaded, chat, Book(tmp_path, {"model": "tiny"}), batch_tokens=1024, say=lambda _: None)
    branch = task("multiple_choice", normalise=True)
    branch.max_new_tokens = 8
    made = Questions({"branch": rows}, [], {"branch": branch}, chat, 0, 0)
    graded, answers = made.ask("tuned", answerer, lambda _: None)
    scored = graded["branch", "tuned"]
    ours = scored.log_probs
    assert ours is not None

    # Alone, without a batch, in transformers' own words.
    prompt, row = asked[3]
    for value, choice in zip(ours[3], row.choices, strict=True):
        ids = chat.encode(prompt.text + choice)
        with torch.inference_mode():
            log_probs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        first = len(prompt.ids)
        assert value == pytest.approx(sum(log_probs[at - 1, ids[at]].item() for at in range(first, len(ids))), abs=1e-3)

    # lm-eval counts the line ends that close the served prompt to the option: the same for each option of a row.
    for own, theirs in zip(ours, THEIRS["rows"], strict=True):
        shift = theirs["log_probs"][0] - own[0]
        assert [value + shift for value in own] == pytest.approx(theirs["log_probs"], abs=2e-3)
    assert both_ways(ours, rows)["acc"] == THEIRS["acc"]
    theirs = [row["log_probs"] for row in THEIRS["rows"]]
    assert both_ways(theirs, rows) == {name: THEIRS[name] for name in ("acc", "acc_norm")}

    texts = [likeliest(own, row.choices, normalise=True) for own, row in zip(ours, rows, strict=True)]
    assert scored.answers == [answer.text for answer in answers["branch"]] == texts
    assert details(rows, scored, branch)["acc_norm"] == sum(scored.scores) / len(rows)
    written = [json.loads(line) for line in lines("branch", rows, {("branch", "tuned"): scored})]
    assert [line["log_probs"] for line in written] == ours
    assert made.ask("tuned", answerer, lambda _: None)[0]["branch", "tuned"] == scored
    assert loads == [1], "kept, not asked again"


def test_of_equally_likely_options_the_first_is_taken_and_length_counts_only_where_asked() -> None:
    assert likeliest([-2.0, -2.0], ["yes", "no"], normalise=False) == "yes"
    assert likeliest([-3.0, -4.0], ["no", "not at all"], normalise=False) == "no"
    assert likeliest([-3.0, -4.0], ["no", "not at all"], normalise=True) == "not at all"
    assert metrics.kind(task("multiple_choice")) == "likelihood"
    assert metrics.kind(task("rouge_l")) == "generated"


def test_a_rate_over_the_set_has_an_interval_by_group_and_one_without_a_denominator_has_none() -> None:
    flags = task("flag_accuracy", clean=("ok",), flagged=("fraud",))
    rows: list[Any] = [SimpleNamespace(answer="ok", group=str(number // 2)) for number in range(40)]
    answers = ["fraud" if number % 8 < 2 else "ok" for number in range(40)]  # both rows of every fourth group
    scores = [metrics.score(answer, one, flags) for answer, one in zip(answers, rows, strict=True)]
    found = details(rows, Scored(answers, scores, [], [True] * 40), flags)
    assert found["false_positive_rate"] == 0.25
    low, high = found["ci95"]["false_positive_rate"]
    alone = interval([1 - score for score in scores], [1.0] * 40, [str(number) for number in range(40)])
    assert low < alone.low < 0.25 < alone.high < high, "rows of a group are not free: the interval is wider"
    assert found["recall"] is None
    assert "recall" not in found["ci95"]


def test_a_record_keeps_its_choices_and_passages_and_others_are_written_as_before() -> None:
    plain = Chat("a", "t", ({"role": "user", "content": "?"}, {"role": "assistant", "content": "B"}), "f", 1, "g")
    assert "choices" not in plain.to_json()
    assert "passages" not in plain.to_json()
    full = Chat(**{**plain.__dict__, "choices": ("A", "B"), "passages": {"第一条": "文"}})
    assert Chat.from_json(full.to_json()) == full
    assert Chat.from_json(plain.to_json()) == plain
