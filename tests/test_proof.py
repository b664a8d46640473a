"""PROOF: sees that merged and adapter agree, and sees it when they do not."""

import json
from pathlib import Path

import pytest
from checkpoints import MODEL, make_adapter, make_base

from finetune import asked, merge, parity, proof
from finetune.artifacts import Artifact, hash_file
from finetune.config.machine import Machine
from finetune.errors import RecipeError

MACHINE = Machine(name="test", device="cpu", threads=1)
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
SILENT = {"say": lambda _: None}


def artifact(path: Path, stage: str, **facts) -> Artifact:
    return Artifact(path, {"stage": stage, "digest": hash_file(next(p for p in sorted(path.rglob("*")) if p.is_file())),
                           "facts": facts})  # fmt: skip


def write_prepared(directory: Path, rows: int = 8, modes: tuple[str, ...] = ("plain",)) -> Artifact:
    directory.mkdir()
    lines = [
        json.dumps({"id": f"r{number}", "task": f"t{number % 2}", "source": "s", "line": number, "group": "g",
                    "mode": modes[number * len(modes) // rows], "tools": [],
                    "messages": [{"role": "user", "content": f"Question {number}?"},
                                 {"role": "assistant", "content": "yes"}]})
        for number in range(rows)
    ]  # fmt: skip
    (directory / "test.jsonl").write_text("\n".join(lines) + "\n")
    return artifact(directory, "prepare")


def prove(folder: Path, config: dict, base: Artifact, adapter: Artifact, checkpoint: Artifact) -> dict:
    out = folder / "proof"
    out.mkdir(exist_ok=True)
    prepared = write_prepared(folder / f"prepared{len(list(folder.iterdir()))}")
    proof.run(config, out=out, base=base, prepared=prepared, adapter=adapter, checkpoint=checkpoint, machine=MACHINE,
              **SILENT)  # fmt: skip
    assert sorted(path.name for path in out.iterdir()) == ["answers.jsonl", "parity.json"]
    return json.loads((out / "parity.json").read_text())


def merge_into(folder: Path, config: dict, base: Artifact, adapter: Artifact) -> Artifact:
    folder.mkdir()
    identity = {"model": config["model"], "method": config["method"]}
    merge.run(identity, out=folder, base=base, adapter=adapter, **SILENT)
    return artifact(folder, "merge")


@pytest.fixture
def config() -> dict:
    return {"model": MODEL, "method": {"name": "lora"}, "score": {"parity_prompts": 6, "batch_tokens": 4096}}


def test_a_right_merge_agrees_with_its_adapter_and_a_wrong_one_does_not(tmp_path, config):
    base = artifact(make_base(tmp_path / "base"), "base")
    adapter = artifact(make_adapter(base.path, tmp_path / "adapter", strength=0.05), "sft")
    other = artifact(make_adapter(base.path, tmp_path / "other", strength=0.05, seed=9), "sft")
    right = prove(tmp_path, config, base, adapter, merge_into(tmp_path / "right", config, base, adapter))
    wrong = prove(tmp_path, config, base, adapter, merge_into(tmp_path / "wrong", config, base, other))
    assert right["greedy_equal_float32"] is True
    assert right["n_prompts"] == 6
    assert right["n_positions"] > 50
    assert right["kl_mean"] < 0.01 < wrong["kl_mean"]
    assert right["top1"] > 0.9 > wrong["top1"]
    assert len(right["near_ties"]) + len(right["disagreements"]) == round((1 - right["top1"]) * right["n_positions"])


def test_a_scale_that_is_off_shows_in_float32(tmp_path, config, monkeypatch):
    base = artifact(make_base(tmp_path / "base"), "base")
    adapter = artifact(make_adapter(base.path, tmp_path / "adapter"), "sft")
    checkpoint = merge_into(tmp_path / "merged", config, base, adapter)
    monkeypatch.setattr(proof.Adapter, "_scale", lambda self, module: 1.0)
    assert prove(tmp_path, config, base, adapter, checkpoint)["greedy_equal_float32"] is False


def test_a_4_bit_adapter_belongs_on_the_round_tripped_base(tmp_path, config):
    from finetune.base import load_base, quantised_modules
    from finetune.config.model import Model
    from finetune.config.training import Method
    from finetune.fourbit import RoundTrip

    config["method"] = {"name": "qlora", "bnb": NF4}
    base = artifact(make_base(tmp_path / "base"), "base")
    make_adapter(base.path, tmp_path / "adapter", strength=0.05)
    loaded = load_base(base, Model.model_validate(MODEL), Method.model_validate(config["method"]), device="cpu")
    modules = quantised_modules(loaded)
    assert len(modules) == 14, "the seven linear layers of both blocks, never the head"
    adapter = artifact(tmp_path / "adapter", "sft", four_bit=RoundTrip.seen(loaded).describe())
    unaware = artifact(tmp_path / "adapter", "sft")
    good = prove(tmp_path, config, base, adapter, merge_into(tmp_path / "good", config, base, adapter))
    bad = prove(tmp_path, config, base, adapter, merge_into(tmp_path / "bad", config, base, unaware))
    assert good["quantised_base"] is True
    assert good["greedy_equal_float32"] is True
    assert good["kl_mean"] * 10 < bad["kl_mean"]


def test_a_checkpoint_whose_template_makes_other_prompts_is_refused(tmp_path, config):
    base = artifact(make_base(tmp_path / "base"), "base")
    adapter = artifact(make_adapter(base.path, tmp_path / "adapter"), "sft")
    checkpoint = merge_into(tmp_path / "merged", config, base, adapter)
    template = tmp_path / "merged/model/chat_template.jinja"
    template.write_text(template.read_text().replace("<think>\\n\\n</think>", "<think></think>"))
    with pytest.raises(RecipeError, match="another prompt"):
        prove(tmp_path, config, base, adapter, checkpoint)


def test_no_test_rows_is_an_error_and_not_a_perfect_score(tmp_path, config):
    base = artifact(make_base(tmp_path / "base"), "base")
    adapter = artifact(make_adapter(base.path, tmp_path / "adapter"), "sft")
    checkpoint = merge_into(tmp_path / "merged", config, base, adapter)
    prepared = write_prepared(tmp_path / "prepared", rows=1)
    (tmp_path / "prepared/test.jsonl").write_text("")
    (tmp_path / "out").mkdir()
    with pytest.raises(RecipeError, match="no test row"):
        proof.run(config, out=tmp_path / "out", base=base, prepared=prepared, adapter=adapter, checkpoint=checkpoint,
                  machine=MACHINE, **SILENT)  # fmt: skip


def test_every_mode_is_asked_and_has_figures_of_its_own(tmp_path, config):
    """A model trained on both modes may agree in one and not in the other (Qwen3#1377)."""
    base = artifact(make_base(tmp_path / "base"), "base")
    adapter = artifact(make_adapter(base.path, tmp_path / "adapter", strength=0.05), "sft")
    prepared = write_prepared(tmp_path / "prepared", modes=("plain", "think"))
    rows = asked.choose_rows(prepared.file("test.jsonl"), 4)
    assert {f"{row.task} {row.mode}" for row in rows} == {"t0 plain", "t0 think", "t1 plain", "t1 think"}
    checkpoint = merge_into(tmp_path / "merged", config, base, adapter)
    (tmp_path / "out").mkdir()
    proof.run(config, out=tmp_path / "out", base=base, prepared=prepared, adapter=adapter, checkpoint=checkpoint,
              machine=MACHINE, **SILENT)  # fmt: skip
    found = json.loads((tmp_path / "out/parity.json").read_text())
    assert {mode: one["n_prompts"] for mode, one in found["modes"].items()} == {"plain": 4, "think": 2}
    assert sum(one["n_positions"] for one in found["modes"].values()) == found["n_positions"]
    worst = max(found["modes"].values(), key=lambda one: one["kl_max"])
    assert found["kl_max"] == worst["kl_max"] >= found["kl_mean"]
    answers = {line["id"]: line for line in map(json.loads, (tmp_path / "out/answers.jsonl").read_text().splitlines())}
    assert found["kl_max_at"]["position"] < len(answers[found["kl_max_at"]["id"]]["answer"])
    assert (found["n_prompts"], found["full_prompts"]) == (6, 200)


def test_rows_in_one_batch_have_the_logits_of_rows_alone(tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(make_base(tmp_path / "base"), dtype=torch.float32).eval()
    prompts, answers = [[5, 6, 7], [8, 9, 10, 11, 12], [13]], [[20, 21], [22], [23, 24, 25]]
    alone = list(parity.logits_of(model, prompts, answers))
    together = list(parity.logits_of(model, prompts, answers, batch_tokens=100))
    with torch.inference_mode():
        straight = model(input_ids=torch.tensor([[5, 6, 7, 20]])).logits[0, 2:]
    torch.testing.assert_close(alone[0], straight, rtol=0, atol=1e-5)
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_every_task_is_asked_however_few_prompts(tmp_path):
    prepared = write_prepared(tmp_path / "prepared", rows=10)
    assert {row.task for row in asked.choose_rows(prepared.file("test.jsonl"), 2)} == {"t0", "t1"}
    assert len(asked.choose_rows(prepared.file("test.jsonl"), 99)) == 10
