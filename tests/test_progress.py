"""What a plan says about a work folder, against folders that a real PREPARE, a sealed checkpoint and a key made."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from finetune import artifacts, cli, progress, resume
from finetune.config import load
from finetune.config.machine import Machine
from finetune.memory import here, plan, settle
from finetune.sft import SFT_STAGE, Config
from finetune.train import identity

WORDS = [
    "recipe=maintenance", "model=tiny_qwen3", "machine=cpu", "machine.threads=1", "tasks.fields.train_rows=24",
    "tasks.fields.valid_rows=4", "tasks.fields.test_rows=8", "tasks.place.train_rows=8", "tasks.place.valid_rows=2",
    "tasks.place.test_rows=4", "sft.max_length=512", "stages=[sft]", "sft.max_steps=null",
]
STAGES = ["prepare", "sft", "merge", "score", "proof", "handoff"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, tiny_qwen3) -> Path:
    work = tmp_path_factory.mktemp("progress") / "work"
    assert cli.main(["prepare", *WORDS, f"work={work}"]) == 0
    return work


def settled(work: Path, *words: str):
    return settle(load([*WORDS, f"work={work}", *words]), here(work.parent))


def states(work: Path, *words: str) -> dict[str, str]:
    found, _ = progress.look(settled(work, *words))
    return {stage.name: stage.state for stage in found}


def inputs(work: Path) -> dict:
    from finetune.base import find_base

    made = artifacts.read(next(path for path in work.glob("prepare-*") if path.suffix != ".partial"))
    return {"base": find_base(settled(work).model), "prepared": made}


def test_before_anything_has_run_everything_is_to_run(tmp_path):
    assert states(tmp_path / "nothing") == dict.fromkeys(STAGES, "to run")
    assert not (tmp_path / "nothing").exists()


def test_quantised_models_are_a_stage_where_they_are_asked_for_and_nowhere_else(tmp_path):
    assert [name for name in states(tmp_path / "nothing", "export=[w8a8]") if name not in STAGES] == ["export"]
    assert list(states(tmp_path / "nothing", "export=[w8a8]"))[-2:] == ["export", "handoff"]


def test_after_prepare_it_is_cached_and_a_changed_recipe_is_to_run(prepared):
    assert states(prepared) == {**dict.fromkeys(STAGES, "to run"), "prepare": "cached"}
    assert states(prepared, "tasks.place.train_rows=7")["prepare"] == "to run"
    assert states(prepared, "method.lora.r=4")["prepare"] == "cached"


def test_rows_and_tokens_that_were_counted_replace_the_limits(prepared):
    recipe = settled(prepared)
    facts = inputs(prepared)["prepared"].facts
    _, counted = progress.look(recipe)
    limits, known = plan(recipe).stages[0], plan(recipe, counted=counted).stages[0]
    assert (limits.counted, limits.longest) == ((), 512)
    assert known.counted == ("rows", "tokens", "longest", "held_out")
    assert (known.rows, known.longest) == (facts["rows"]["train"], facts["longest"])
    mean = facts["tokens"]["train"] / facts["rows"]["train"]
    assert known.tokens == round(known.steps * recipe.sft.batch_size * mean) < limits.tokens
    evaluations = -(-known.steps // recipe.sft.eval_steps)
    assert known.evaluated == evaluations * facts["tokens"]["valid"] < limits.evaluated
    assert known.bytes.activations < limits.bytes.activations


def test_a_sealed_checkpoint_of_this_layout_is_resumable_and_one_of_another_is_not(prepared):
    recipe = settled(prepared)
    key = artifacts.stage_key(SFT_STAGE, identity(recipe, Config), inputs(prepared))
    folder = prepared / f"sft-{key}.partial" / ".checkpoints"
    machine: Machine = recipe.machine
    share = recipe.sft.batch_size // machine.processes
    each = min(machine.per_device_batch_size or 1, share)
    for step, world in ((2, 1), (4, 1), (5, 2)):
        checkpoint = folder / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "adapter_model.safetensors").write_bytes(b"x")
        resume.seal(checkpoint, resume.Layout(world, each, share // each, "single"), owner=f"sft-{key}")
    (folder / "checkpoint-6").mkdir()  # torn: no marker
    found, _ = progress.look(recipe)
    assert (found[1].state, found[1].step) == ("resumable", 4)
    assert states(prepared, "machine.per_device_batch_size=1")["sft"] == "to run"
    planned = plan(recipe, progress=found)
    text = planned.render()
    assert f"prepare: cached; sft: resumable (step 4 of {planned.stages[0].steps}); merge, score" in text
    assert json.loads(json.dumps(planned.to_json()))["progress"][1] == {
        "name": "sft", "state": "resumable", "note": "", "step": 4,
    }


def test_stages_behind_a_finished_training_are_looked_at_too(prepared):
    recipe = settled(prepared, "method.lora.r=4")
    given = inputs(prepared)
    key = artifacts.stage_key(SFT_STAGE, identity(recipe, Config), given)
    final = prepared / f"sft-{key}"
    partial = final.with_name(final.name + ".partial")
    partial.mkdir()
    (partial / "adapter_model.safetensors").write_bytes(b"trained")
    artifacts.publish(
        partial, final, stage=SFT_STAGE, key=key, config=identity(recipe, Config), inputs=given, facts={}, seconds=1.0,
        made={},
    )  # fmt: skip
    assert states(prepared, "method.lora.r=4")["sft"] == "cached"
    from finetune import merge

    adapter = artifacts.read(final)
    config = identity(recipe, merge.Config)
    key = artifacts.stage_key(merge.STAGE, config, {"base": given["base"], "adapter": adapter})
    left = prepared / f"merge-{key}.partial"
    left.mkdir()
    (left / ".merge.json").write_text(json.dumps({"identity": "x", "shards": {"a": {}, "b": {}}}))
    found, _ = progress.look(recipe)
    assert {stage.name: (stage.state, stage.note) for stage in found}["merge"] == ("resumable", "2 files merged")


def test_pairs_that_are_only_measured_on_are_no_rows_of_dpo(prepared):
    recipe = settled(prepared, "stages=[sft,dpo]")
    pairs = artifacts.Artifact(prepared, {"facts": {"pairs": 56, "held_out": 8}})
    counted = progress._counted(recipe, {"prepare": inputs(prepared)["prepared"], "pairs": pairs})
    assert counted["dpo"].rows == 48


def test_a_base_that_was_never_hashed_here_is_said_and_nothing_is_hashed(prepared, monkeypatch, tmp_path):
    monkeypatch.setattr("finetune.base._REMEMBERED", "another-book.json")
    found, counted = progress.look(settled(prepared))
    assert {stage.state for stage in found} == {"to run"}
    assert "hashed" in found[0].note
    assert counted == {}


def test_looking_at_a_work_folder_keeps_a_plan_under_a_second_of_cpu_time_and_free_of_torch(prepared):
    from test_cli_speed import PROBE

    words = ["plan", *WORDS, f"work={prepared}"]
    done = subprocess.run([sys.executable, "-c", PROBE, *words], capture_output=True, text=True, check=False)
    facts = json.loads(done.stdout.splitlines()[-1])
    assert "prepare: cached" in done.stdout
    assert facts["heavy"] == []
    assert facts["seconds"] < 1.0
