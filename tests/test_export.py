"""EXPORT without llm-compressor: what is refused at the start, what is calibrated on, and how models are compared."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from quantise import small
from safetensors.torch import load_file, save_file

from finetune import export
from finetune.artifacts import Artifact
from finetune.chat import ChatFormat
from finetune.checks import export as checks
from finetune.config import load
from finetune.config.export import Quantise
from finetune.config.machine import Machine
from finetune.errors import RecipeError
from finetune.generate import Kept
from finetune.memory.disk import disk_bytes


def problems(*words: str) -> list[str]:
    recipe = load(["recipe=legal", "model=smollm2_135m", "machine=cpu", *words])
    return [str(problem) for problem in checks.check_export(recipe)]


def test_an_unknown_scheme_is_refused_with_the_known_ones() -> None:
    with pytest.raises(RecipeError, match=r"w4a16.*w8a8"):
        load(["recipe=legal", "export=[w3a16]"])


def test_a_group_that_does_not_divide_the_model_is_refused_with_the_one_that_does() -> None:
    (problem,) = problems("export=[w4a16]", "quantise.group_size=128")
    assert "does not divide the inputs of the linear layers (576, 1536): quantise.group_size=64" in problem


def test_the_largest_group_that_fits_is_taken() -> None:
    shape = load(["recipe=legal", "model=smollm2_135m"]).model.architecture
    assert Quantise().group_for(shape) == 64
    assert Quantise().group_for(shape.model_copy(update={"hidden_size": 640, "num_attention_heads": 10})) == 128
    assert Quantise().group_for(shape.model_copy(update={"intermediate_size": 1504})) == 32
    assert Quantise().group_for(shape.model_copy(update={"intermediate_size": 1520})) is None


def test_a_model_of_odd_width_is_refused_in_4_bit_only() -> None:
    assert "multiples of 32" in problems("export=[w4a16]", "model.architecture.intermediate_size=1520")[0]
    assert not problems("export=[w8a8]", "model.architecture.intermediate_size=1520")


def test_a_scheme_named_twice_and_a_group_without_its_scheme_are_refused() -> None:
    assert "export=[w8a8]" in problems("export=[w8a8,w8a8]")[0]
    assert "is w4a16's alone" in problems("export=[w8a8]", "quantise.group_size=32")[0]


def test_a_missing_environment_is_said_at_the_start_with_what_to_type(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(checks, "_ENVIRONMENT", tmp_path)
    recipe = load(["recipe=legal", "export=[w8a8]"])
    (problem,) = checks.check_environment(recipe)
    assert "scripts/setup.sh quantise" in problem.fix
    assert not list(checks.check_environment(recipe.model_copy(update={"export": ()})))


def test_the_plan_counts_the_bytes_of_quantised_models() -> None:
    """Weight files that llm-compressor wrote of SmolLM2-135M on 2026-11-22: 113,175,416 and 163,226,688 bytes."""
    recipe = load(["recipe=legal", "model=smollm2_135m", "machine=cpu", "export=[w4a16]"])
    assert disk_bytes(recipe)["quantised"] == pytest.approx(113_175_416, rel=0.003)
    eight = disk_bytes(recipe.model_copy(update={"export": ("w8a8",)}))["quantised"]
    assert eight == pytest.approx(163_226_688, rel=0.003)
    assert disk_bytes(recipe.model_copy(update={"export": ("w4a16", "w8a8")}))["quantised"] > eight + 113_000_000


@pytest.mark.slow
def test_calibration_reads_whole_examples_as_they_are_served_the_same_ones_each_time(tmp_path) -> None:
    given = small.inputs(tmp_path)
    chat, train = ChatFormat.read(given["checkpoint"].file("model")), given["prepared"].file("train.jsonl")
    rows = export._calibration(train, chat, Quantise(rows=4), 0)
    assert rows == export._calibration(train, chat, Quantise(rows=4), 0)
    assert rows != export._calibration(train, chat, Quantise(rows=4), 1)
    assert rows == export._calibration(train, chat, Quantise(rows=99), 0)[:4]
    messages = [json.loads(line)["messages"] for line in train.read_text().splitlines()]
    served = [chat.prompt_text(row[:1], "plain") + row[1]["content"] + chat.end_of_turn for row in messages]
    assert {chat.decode(ids, skip_special=False) for ids in rows} < set(served)
    assert max(map(len, export._calibration(train, chat, Quantise(rows=4, max_length=20), 0))) == 20
    train.write_text("")
    with pytest.raises(RecipeError, match="no training row"):
        export._calibration(train, chat, Quantise(), 0)


@pytest.mark.slow
def test_a_copy_is_found_equal_and_a_changed_one_is_not(tmp_path) -> None:
    """The worker's measuring needs no llm-compressor: here it reads an unquantised copy and a disturbed one."""
    given = small.inputs(tmp_path)
    merged, work = given["checkpoint"].file("model"), tmp_path / "out/.work"
    work.mkdir(parents=True)
    for name in ("w8a8", "w4a16"):
        shutil.copytree(merged, tmp_path / "out" / name)
    weights = load_file(merged / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"] *= 1.5
    save_file(weights, tmp_path / "out/w4a16/model.safetensors", metadata={"format": "pt"})
    settings = export.Config.model_validate(small.config("w8a8", "w4a16"))
    chat = ChatFormat.read(merged)
    order = export._order(settings, Machine(name="test", device="cpu", threads=1), chat)
    said: list[str] = []
    worker = export._Worker(Path(sys.executable), work, order, said.append)
    rows = export._by_task(given["prepared"].file("test.jsonl"), settings)
    export._measure(rows, settings, merged, given["proof"], chat, tmp_path / "out", worker)
    same, other = (json.loads((work / f"parity-{name}.json").read_text()) for name in ("w8a8", "w4a16"))
    assert (same["kl_mean"], same["kl_max"], same["top1"]) == (0.0, 0.0, 1.0)
    assert other["kl_mean"] > 0.01
    answers = Kept(work / "answers-w8a8.jsonl")
    assert [sorted(answers.of(task)) for task in ("t0", "t1")] == [[0, 1, 2, 3]] * 2
    assert any("w4a16, t1, 4 prompts" in line for line in said)
    lines = export._answered("w8a8", rows, settings, chat, work)
    assert [(line["task"], line["id"]) for line in lines] == [(row.task, row.id) for task in rows for row in rows[task]]
    scored = dict(export._scored(lines, given["scores"]))
    assert scored["t0"]["loss"] == scored["t0"]["tuned"] - scored["t0"]["quantised"] == 1.0
    assert scored["t0"]["against"] == "base_few_shot", "the one that SCORE's headline is taken to"
    assert scored["t0"]["gain"]["difference"] == scored["t0"]["quantised"] - 0.5
    lines[0]["prompt_sha256"] = "another prompt"
    with pytest.raises(AssertionError, match="SCORE asked something else"):
        dict(export._scored(lines, given["scores"]))
    assert not (work / "merged_logits").exists()

    (tmp_path / "out/w4a16/config.json").write_text("{")
    (work / "parity-w4a16.json").unlink()
    with pytest.raises(RecipeError, match=r"measure\.log"):
        export._measure(rows, settings, merged, given["proof"], chat, tmp_path / "out", worker)


def test_killed_while_it_clears_its_folder_nothing_is_made_again_and_nothing_else_is_published(tmp_path) -> None:
    one = {"bytes": 1, "kl_mean": 0.1, "kl_max": 0.2, "top1": 0.9, "tasks": {"t0": {"loss": 0.25}}}
    (tmp_path / "w8a8").mkdir()
    (tmp_path / "export.json").write_text(json.dumps({"w8a8": one}))
    (tmp_path / ".work").mkdir()
    (tmp_path / ".work/measure.order.json").write_text("{}")  # what it quantised with is gone already
    nothing = Artifact(tmp_path / "nowhere", {})
    given = dict.fromkeys(("prepared", "checkpoint", "scores", "proof"), nothing)
    machine = Machine(name="test", device="cpu", threads=1)
    found = export.run(small.config("w8a8"), out=tmp_path, machine=machine, say=pytest.fail, **given)
    assert found == {"w8a8": {"bytes": 1, "kl_mean": 0.1, "kl_max": 0.2, "top1": 0.9, "losses": {"t0": 0.25}}}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export.json", "w8a8"]
