"""The training benchmark measures what it says: equal rows, a clock that can be checked by hand, one evaluation."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks.train import clock, heldout, rows, run, table
from benchmarks.train.job import DPO, Job
from benchmarks.train.peers import axolotl, llamafactory, ms_swift, ours, plain_trl
from finetune.chat import ChatFormat

ASK = {"role": "user", "content": "Work order: SWAP BUCKET\nGive the action."}
CHATS: list[dict[str, Any]] = [
    {"id": "a", "messages": [ASK, {"role": "assistant", "content": '{"action":"Replace"}'}]},
    {
        "id": "b",
        "messages": [{"role": "system", "content": "Be brief."}, ASK, {"role": "assistant", "content": "none"}],
    },
]
PAIR = {
    "messages": [ASK], "chosen": {"role": "assistant", "content": "Replace"},
    "rejected": {"role": "assistant", "content": "Repair"},
}


def test_every_contender_is_given_the_same_answers_to_the_same_prompts(tmp_path: Path, smollm2: Path) -> None:
    rows.export_chats(CHATS, tmp_path)
    rows.export_pairs([PAIR], tmp_path)
    chat = ChatFormat.read(smollm2)
    expected = [chat.supervise(row["messages"]) for row in CHATS]
    messages = [row["messages"] for row in rows.read(tmp_path / "messages.jsonl")]
    apart = [[*row["prompt"], *row["completion"]] for row in rows.read(tmp_path / "prompt_completion.jsonl")]
    for given in (messages, apart):
        assert [chat.supervise(row).labels for row in given] == [row.labels for row in expected]
    (trl,) = rows.read(tmp_path / "pairs_trl.jsonl")
    (factory,) = rows.read(tmp_path / "pairs_llamafactory.jsonl")
    (swift,) = rows.read(tmp_path / "pairs_ms_swift.jsonl")
    assert [*trl["prompt"], *trl["chosen"]] == [*factory["messages"], factory["chosen"]] == swift["messages"]
    assert trl["rejected"][0] == factory["rejected"] == PAIR["rejected"]
    assert swift["rejected_response"] == "Repair"


def test_llamafactory_is_told_the_system_turn_that_the_models_own_template_writes(smollm2: Path) -> None:
    from benchmarks.train.job import SYSTEM

    assert f"<|im_start|>system\n{SYSTEM}<|im_end|>\n" in ChatFormat.read(smollm2).prompt_text([ASK])


@pytest.mark.parametrize("peer", [plain_trl, llamafactory, axolotl, ms_swift, ours])
@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_all_train_with_the_same_batch_rank_and_learning_rate(peer: Any, kind: Any, tmp_path: Path) -> None:
    work = tmp_path / "work"
    given = Job(kind, peer.VARIANTS[0], work / "rows", tmp_path / "base", tmp_path / "adapter", work / "out")
    command = peer.command(given)
    files = [file.read_text() for file in given.out.glob("*.yaml")] if given.out.exists() else []
    asked = " ".join([*command.words, *files, Path(peer.__file__).read_text(encoding="utf-8")])
    if peer is ours:
        # Its batch and DPO's learning rate stand in configs/model/smollm2_135m.yaml.
        asked += (Path(__file__).parents[2] / "configs/model/smollm2_135m.yaml").read_text(encoding="utf-8")
        assert all(part in asked for part in ("batch_size: 8", "method.lora.r=16", "learning_rate=0.001", "2.0e-5"))
        return
    if peer is plain_trl:
        keys = json.loads((given.out / "told.json").read_text())["keys"]
        assert (keys["per_device_train_batch_size"], keys["learning_rate"]) == (8, given.numbers["learning_rate"])
        return
    for number in (given.numbers["learning_rate"], given.numbers["steps"]):
        assert str(number) in asked
    assert '"lora_r": 16' in asked or '"lora_rank": 16' in asked or "--lora_rank 16" in asked


def tick(event: str, step: int, time: float, cpu: float, supervised: int = 0) -> dict[str, Any]:
    return {
        "event": event, "step": step, "time": time, "cpu": cpu, "supervised": supervised, "peak_kib": 2048,
        "output_dir": "work/dpo-1",
    }


def test_the_clock_leaves_out_warm_steps_and_counts_tokens_by_cpu_seconds() -> None:
    ticks = [tick("on_step_end", n, 100 + 2 * n, 10 + 3 * n, 30 * n) for n in (1, 2, 3, 4)]
    made = {"began": 97.0, "exit": 0, "peak_mib": 5, "ticks": ticks, "last_line": ""}
    cell = clock.measure(made, warm=2, kind="sft")
    assert (cell["first_step_s"], cell["steps"], cell["cpu_step"], cell["wall_step"]) == (5.0, 2, 3.0, 2.0)
    assert (cell["supervised_per_cpu_s"], cell["peak_mib"]) == (10.0, 2)


def test_a_reference_that_is_scored_before_the_first_step_is_counted_with_the_steps() -> None:
    ticks = [tick("on_init_end", 0, 50, 5), tick("on_train_begin", 0, 66, 5 + 2.0 * DPO["steps"])]
    ticks += [tick("on_step_end", n, 100 + n, 50 + n) for n in (1, 2, 3)]
    made = {"began": 0.0, "exit": 0, "peak_mib": 5, "ticks": ticks, "last_line": ""}
    cell = clock.measure(made, warm=1, kind="dpo")
    assert (cell["reference_cpu_step"], cell["cpu_step"], cell["wall_step"]) == (2.0, 3.0, 2.0)


def test_a_run_without_a_step_is_reported_with_its_error() -> None:
    made = {"began": 0.0, "exit": 1, "peak_mib": 5, "ticks": [], "last_line": "ValueError: no"}
    assert clock.measure(made, warm=1, kind="sft") == {"exit": 1, "peak_mib": 5, "error": "ValueError: no"}


@pytest.mark.slow
def test_held_out_loss_is_the_mean_over_answer_tokens_whatever_the_batch(tiny_qwen3: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_qwen3, dtype=torch.float32).eval()
    examples = [([5, 6, 7, 8], [9, 10, 11]), ([12, 13], [14]), ([15] * 9, [16, 17])]
    total = 0.0
    for prompt, answer in examples:
        labels = torch.tensor([[-100] * len(prompt) + answer])
        with torch.no_grad():
            total += len(answer) * float(model(input_ids=torch.tensor([prompt + answer]), labels=labels).loss)
    assert math.isclose(heldout.mean_nll(model, examples, batch=2), total / 6, rel_tol=1e-5)
    model.get_output_embeddings().weight.data.zero_()
    assert math.isclose(heldout.mean_nll(model, examples), math.log(model.config.vocab_size), rel_tol=1e-5)


def test_the_most_important_cells_come_first_and_contenders_take_turns() -> None:
    names = [name for name, _ in run.plan(["ours", "trl", "llamafactory", "axolotl"], 2, 12, 3)]
    assert names[0] == "whole"
    assert len(names) == len(set(names))
    best = ["ours.direct", "trl.best", "llamafactory.best"]
    turns = [f"dpo/{name}/{turn}" for turn in (0, 1) for name in best]
    assert [name for name in names if name.startswith("dpo/")][:6] == turns
    assert [name for name in names if name.startswith("heldout/")][:3] == [f"heldout/{name}/1" for name in best]
    firsts = [min(i for i, name in enumerate(names) if name.startswith(word)) for word in (
        "sft/ours", "dpo/ours", "heldout/", "sft/trl.default", "sft/axolotl", "documented/",
    )]  # fmt: skip
    assert firsts == sorted(firsts)


def test_a_cell_is_taken_again_where_its_packages_settings_rows_or_our_code_are_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "work", lambda seed=0: tmp_path / str(seed))
    monkeypatch.setattr(run, "prepare", lambda seed: tmp_path)
    peers = ("sft/trl.best/0", "dpo/trl.best/0", "heldout/axolotl.best/1", "sft/ms-swift.best/0")
    names = ("whole", "sft/ours.direct/0", *peers)
    for seed in "01":
        (tmp_path / seed / "rows").mkdir(parents=True)
        for file in ("messages", "pairs_trl"):
            (tmp_path / seed / f"rows/{file}.jsonl").write_text(seed)

    seen: dict[str, str] = {}

    def changed() -> set[str]:
        now = {name: run.measured_of(name) for name in names}
        others = {name for name in names if now[name] != seen.get(name)}
        seen.update(now)
        return others

    assert changed() == set(names)
    assert changed() == set()
    (tmp_path / "0/rows/pairs_trl.jsonl").write_text("other pairs")
    assert changed() == {"dpo/trl.best/0"}
    (tmp_path / "1/rows/messages.jsonl").write_text("other rows")
    assert changed() == {"heldout/axolotl.best/1"}
    monkeypatch.setattr(run, "TRAINS", run.TRAINS[1:])
    assert changed() == {"whole", "sft/ours.direct/0"}
    monkeypatch.setattr(run, "version", lambda package: "another")
    assert changed() == {"whole", "sft/ours.direct/0", "sft/trl.best/0", "dpo/trl.best/0"}


def test_a_difference_over_seeds_has_students_interval() -> None:
    assert table.difference([0.01, 0.03]) == ""
    # Mean 0.02, standard error 0.01 / sqrt(3), t(2) = 4.303.
    assert table.difference([0.01, 0.02, 0.03]) == "+0.0200 [-0.0048, +0.0448]"


def test_the_tables_of_the_page_are_those_of_the_committed_results() -> None:
    page = (table.HERE / "README.md").read_text(encoding="utf-8")
    named = [file.name for file in (table.HERE / "results").glob("*.json")]
    assert named, "results are committed"
    assert all(table.BEGIN.format(file=name) in page for name in named)
    assert table.fill(page, table.HERE / "results") == page
