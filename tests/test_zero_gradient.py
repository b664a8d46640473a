"""What is not supervised has a gradient of exactly zero, in the steps that training really takes.

The last hidden state is caught in the running stage: position t is what predicts token t + 1 and nothing else, so its
gradient is that of its logits. Zero means 0.0 in every bit; what is supervised must have a gradient.
"""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finetune import arguments, artifacts, dpo, sft
from finetune.artifacts import Artifact
from finetune.base import find_base
from finetune.chat import ChatFormat
from finetune.config import load
from finetune.corpus import tokens
from finetune.corpus.store import Table
from tests import tiny
from tests.test_served_tokens import GRID, TOOLS, conversation

Batch = dict[str, torch.Tensor]


class Watch:
    """Stands behind a stage's `_trainer`: of every training step the hidden states, with gradients, and the batch."""

    def __init__(self, patch: pytest.MonkeyPatch, stage: Any, expected: Callable[[Any, Batch], torch.Tensor]) -> None:
        self.steps: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.rows: list[list[int]] = []
        self.repeated: list[tuple[float, float]] = []
        self.expected = expected
        self.noise = False
        self.batch: Batch = {}
        made = stage._trainer

        def watched(adapted: Any, *args: Any, **kwargs: Any) -> Any:
            trainer = made(adapted, *args, **kwargs)
            trainer.model.get_base_model().base_model.register_forward_hook(self.catch)
            inner = trainer.compute_loss

            def compute_loss(model: Any, inputs: Batch, *more: Any, **named: Any) -> Any:
                if not torch.is_grad_enabled():  # an evaluation, or the reference's scores
                    return inner(model, inputs, *more, **named)
                self.batch = dict(inputs)
                self.rows.append(inputs["row"].tolist())
                loss = inner(model, dict(inputs), *more, **named)
                # The same step with noise where nothing is supervised must give the same loss to the last bit.
                self.noise = True
                with torch.no_grad():
                    again = inner(model, dict(inputs), *more, **named)
                self.noise = False
                self.repeated.append((float(loss.detach()), float(again)))
                self.batch = {}
                return loss

            trainer.compute_loss = compute_loss
            return trainer

        patch.setattr(stage, "_trainer", watched)

    def catch(self, _: Any, __: Any, output: Any) -> Any:
        hidden = output.last_hidden_state
        if not self.batch:
            return output
        if self.noise:
            quiet = ~self.expected(hidden, self.batch)
            output.last_hidden_state = hidden + 50 * torch.randn_like(hidden) * quiet[..., None]
        elif hidden.requires_grad:
            hidden.retain_grad()
            self.steps.append((hidden, self.expected(hidden, self.batch)))
        return output

    def check(self, steps: int) -> None:
        assert len(self.steps) == len(self.repeated) == steps
        for hidden, supervised in self.steps:
            slopes = hidden.grad
            assert slopes is not None
            assert slopes.shape[:2] == supervised.shape
            assert 0 < supervised.sum() < supervised.numel()
            assert torch.equal(slopes[~supervised], torch.zeros_like(slopes[~supervised]))
            assert bool((slopes[supervised].abs().amax(-1) > 0).all())
        assert all(loss == again for loss, again in self.repeated), self.repeated


def count_labels(prepared: Artifact, rows: list[int]) -> int:
    """How many tokens of these rows PREPARE wants trained; the first of a row has nothing that would predict it."""
    labels = sft.read_rows(prepared.file("sft_train.parquet"))["labels"]
    return sum(label != -100 for row in rows for label in labels[row][1:])


def next_is_trained(hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Positions whose next token has a label, in the layout of `hidden`: rows, or all rows flat without padding.

    What all rows begin with stands in the flat layout once, in the first: then the others lack as much.
    """
    marked = batch["labels"] != -100 if "labels" in batch else batch["completion_mask"].bool()
    found = torch.nn.functional.pad(marked[:, 1:], (0, 1))
    if hidden.shape[:2] == found.shape:
        return found
    if "attention_mask" in batch:
        found = found[batch["attention_mask"].bool()][None]
        begins = batch["attention_mask"].sum(1).cumsum(0)[:-1].tolist()
    else:
        begins = batch["cu_seq_lens_q"][1:-1].tolist()
    shared, rest = divmod(found.shape[1] - hidden.shape[1], len(begins))
    assert rest == 0
    once = torch.ones_like(found)
    for begin in begins:
        once[:, begin : begin + shared] = False
    assert not found[~once].any(), "what is read once trains nothing"
    return found[once][None]


def predicts_an_answer(hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The same for pairs whose prompt is read once: prompt, chosen answer, rejected answer in one row."""
    if hidden.shape[0] == batch["input_ids"].shape[0]:
        return next_is_trained(hidden, batch)
    found = torch.zeros(hidden.shape[:2], dtype=torch.bool)
    pairs = hidden.shape[0]
    answers, lengths = batch["completion_mask"].sum(1).tolist(), batch["attention_mask"].sum(1).tolist()
    for row in range(pairs):
        chosen, rejected = answers[row], answers[row + pairs]
        prompt = lengths[row] - chosen
        found[row, prompt - 1 : prompt + chosen - 1] = True  # its first place predicts the first token of both answers
        found[row, prompt + chosen : prompt + chosen + rejected - 1] = True
    return found


def rows_of_every_kind(chat: ChatFormat) -> list[tokens.TokenRow]:
    """Every supervised turn of the grid of test_served_tokens, and running text, as PREPARE writes them."""
    rows = []
    for number, case in enumerate(GRID):
        turns = chat.supervise_turns(conversation(*case), TOOLS if case[1] == "tools" else [])
        rows += [tokens.TokenRow(f"{number}#{i}", "t", t.input_ids, t.labels, t.mode) for i, t in enumerate(turns)]
    ids = chat.encode("The hose of the pump is worn and leaks at the clamp.")
    return [*rows, tokens.TokenRow("replay", "replay", ids, ids, "plain")]


@pytest.fixture(scope="module")
def prepared(tiny_qwen3: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("prepared")
    rows = rows_of_every_kind(ChatFormat.read(tiny_qwen3))
    assert {row.mode for row in rows} == {"plain", "think"}
    with Table(folder / tokens.ROWS, tokens.ROW) as table:
        for row in rows:
            tokens.add_row(table, row, 0)
    tokens.write_sft(folder / "sft_train.parquet", [(folder, np.ones(len(rows), bool))])
    tokens.write_sft(folder / "sft_valid.parquet", [])
    return Artifact(folder, {"stage": "prepare", "digest": "0", "facts": {}})


@pytest.mark.slow
@pytest.mark.parametrize(("method", "packing"), [("lora", False), ("lora", True), ("qlora", False)])
def test_sft_has_no_gradient_where_nothing_is_supervised(
    method: str, packing: bool, prepared: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """trl#3781, trl#3484: a loss kernel dropped the mask in silence and trained every token."""
    recipe = load([
        "recipe=legal", "model=tiny_qwen3", "machine=cpu", f"method={method}", f"sft.packing={packing}",
        f"sft.batch_size={2 if packing else 8}", "sft.max_length=1024", "sft.max_steps=2",
        "method.lora.lora_dropout=0",
    ])  # fmt: skip
    watch = Watch(monkeypatch, sft, next_is_trained)
    config = {name: getattr(recipe, name).model_dump(mode="json") for name in ("sft", "model", "method")}
    inputs = {"base": find_base(recipe.model), "prepared": prepared}
    live = {"machine": tiny.machine(), "tracker": tiny.Silent()}
    artifacts.build(sft.SFT_STAGE, {"seed": 0, **config}, root=tmp_path, inputs=inputs, **live)
    watch.check(steps=2)
    for (_, supervised), rows in zip(watch.steps, watch.rows, strict=True):
        assert int(supervised.sum()) == count_labels(prepared, rows)


@pytest.mark.slow
def test_nor_has_trls_own_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs on CUDA and under DeepSpeed, where every position reaches the head."""
    inputs = {"base": tiny.make_base(tmp_path / "base"), "prepared": tiny.make_prepared(tmp_path / "prepared")}
    monkeypatch.setattr(arguments, "score_supervised_only", lambda *_, **__: None)
    watch = Watch(monkeypatch, sft, next_is_trained)
    live = {"machine": tiny.machine(), "tracker": tiny.Silent()}
    artifacts.build(sft.SFT_STAGE, without_dropout(), root=tmp_path, inputs=inputs, **live)
    watch.check(steps=2)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["ours", "TRL's"])
def test_dpo_has_no_gradient_on_prompts(head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = {"base": tiny.make_base(tmp_path / "base"), "prepared": tiny.make_prepared(tmp_path / "prepared")}
    config = without_dropout()
    live = {"machine": tiny.machine(), "tracker": tiny.Silent()}
    inputs["adapter"] = artifacts.build(sft.SFT_STAGE, config, root=tmp_path, inputs=dict(inputs), **live)
    inputs["preferences"] = tiny.make_preferences(tmp_path / "preferences")
    file = inputs["preferences"].file("preferences.jsonl")
    pairs = [json.loads(line) for line in file.read_text().splitlines()]
    for pair, (side, letter) in itertools.product(pairs, (("chosen", "x"), ("rejected", "y"))):
        pair[side]["content"] = letter + pair[side]["content"]  # a shared first token would have no gradient by right
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    if head == "TRL's":
        monkeypatch.setattr(arguments, "score_supervised_only", lambda *_, **__: None)
    watch = Watch(monkeypatch, dpo, predicts_an_answer)
    config["dpo"] = config.pop("sft")
    artifacts.build(dpo.STAGE, config, root=tmp_path, inputs=inputs, **live)
    watch.check(steps=2)


def without_dropout() -> dict[str, Any]:
    config = tiny.sft_config(max_steps=2)
    return {**config, "method": {**tiny.METHOD, "lora": {**tiny.METHOD["lora"], "lora_dropout": 0.0}}}
