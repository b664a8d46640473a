"""BASES: the base that a QLoRA adapter is merged into is the one that was measured to be closer, and MERGE takes it."""

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from checkpoints import MODEL, make_adapter, make_base, weights

from finetune import artifacts, asked, bases, exact, merge, proof, sft
from finetune.artifacts import Artifact
from finetune.base import load_base
from finetune.config import load
from finetune.config.model import Model
from finetune.config.training import Method
from finetune.errors import RecipeError
from finetune.fourbit import AS_IT_IS, ROUND_TRIPPED, RoundTrip
from tests import tiny

NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
CONFIG = {"model": {**MODEL, "dtype": "float32"}, "method": {"name": "qlora", "bnb": NF4}}
SILENT: dict[str, Any] = {"say": lambda _: None}
QUESTIONS = ("What is a contract?", "Name a part of an excavator.", "Say yes.", "Why do filters clog?", "2 + 2?")


def write_questions(directory: Path, modes: tuple[str, ...] = ("plain",), count: int = len(QUESTIONS)) -> Artifact:
    directory.mkdir(exist_ok=True)
    rows = [
        {"id": f"{mode}-{number}", "task": "t", "source": "s", "line": number, "group": "g", "mode": mode, "tools": [],
         "messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "yes"}]}
        for mode in modes for number, text in enumerate(QUESTIONS[:count])
    ]  # fmt: skip
    (directory / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Artifact(directory, {"stage": "prepare", "digest": f"questions-{len(rows)}", "facts": {}})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """Base in float32 with a head of its own, an adapter with what training would have recorded, and questions."""
    import torch

    folder = tmp_path_factory.mktemp("bases")
    base = Artifact(make_base(folder / "base", dtype=torch.float32), {"stage": "base", "digest": "b", "facts": {}})
    loaded = load_base(base, Model(**CONFIG["model"]), Method(**CONFIG["method"]), device="cpu")
    seen = RoundTrip.seen(loaded)
    assert seen is not None
    path = make_adapter(base.path, folder / "adapter", strength=0.05)
    adapter = Artifact(path, {"stage": "sft", "digest": "a", "facts": {"four_bit": seen.describe()}})
    return {"base": base, "adapter": adapter, "prepared": write_questions(folder / "prepared")}


def measure(out: Path, made: dict[str, Artifact], **changes: Artifact) -> dict[str, Any]:
    out.mkdir()
    bases.run(CONFIG, out=out, machine=tiny.machine(), **{**made, **changes}, **SILENT)
    assert [path.name for path in out.iterdir()] == ["bases.json"]
    found: dict[str, Any] = json.loads((out / "bases.json").read_text())
    return {**found, "kl": {base["name"]: base["kl_mean"] for base in found["bases"]}}


def with_facts(adapter: Artifact, **changes: Any) -> Artifact:
    recorded = {**adapter.facts["four_bit"], **changes}
    return Artifact(adapter.path, {**adapter.manifest, "facts": {"four_bit": recorded}})


def test_the_closer_base_is_taken_and_both_are_told(tmp_path: Path, made: dict[str, Artifact]) -> None:
    """peft#2105, trl#1324, trl#1193: measured, not believed."""
    found = measure(tmp_path / "bases", made)
    assert found["chosen"] == ROUND_TRIPPED
    assert found["kl"][ROUND_TRIPPED] <= 1e-6, "float32 weights: nothing is rounded but by 4 bit"
    assert found["kl"][AS_IT_IS] > 1e-2
    assert [base["chosen"] for base in found["bases"]] == [True, False]
    assert found["n_prompts"] == len(QUESTIONS)
    choice = Artifact(tmp_path / "bases", {"stage": "bases", "digest": "c", "facts": {}})
    out = tmp_path / "merge"
    out.mkdir()
    merge.run(CONFIG, out=out, base=made["base"], adapter=made["adapter"], bases=choice, **SILENT)
    written = json.loads((out / "merge.json").read_text())
    assert (written["base_used"], written["bases"]) == (ROUND_TRIPPED, found["bases"])
    assert "measured" not in written["base_chosen_because"]
    assert "as it is" in written["base_chosen_because"]


def test_each_matrix_of_a_candidate_is_made_once_for_all_prompts(
    tmp_path: Path, made: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 32B one pass over the candidate's matrices is 65 GB of reading and most of an hour of quantising."""
    read, whole = Counter[str](), exact._Plan.read
    monkeypatch.setattr(exact._Plan, "read", lambda plan, name: (read.update([name]), whole(plan, name))[1])
    found = measure(tmp_path / "out", made)
    assert found["n_prompts"] == len(QUESTIONS)
    assert set(read.values()) == {2}  # two candidates
    assert len(read) > 14


def test_the_longest_prompts_are_left_out_where_one_batch_does_not_hold_them(made: dict[str, Artifact]) -> None:
    every = asked.Asked.choose(made["prepared"], made["base"], 24)
    longest = max(map(len, every.prompts)) + asked.LONGEST_ANSWER
    assert every.within(len(QUESTIONS) * longest) == every
    fewer = every.within(len(QUESTIONS) * longest - 1)
    assert fewer.prompts == every.prompts[:-1]
    assert len(every.within(1).prompts) == 1


def test_merge_follows_the_measure_also_where_the_base_as_it_is_won(tmp_path: Path, made: dict[str, Artifact]) -> None:
    (tmp_path / "bases.json").write_text(
        json.dumps({"chosen": AS_IT_IS, "bases": [{"name": AS_IT_IS, "kl_mean": 1e-5, "chosen": True}]})
    )
    choice = Artifact(tmp_path, {"stage": "bases", "digest": "c", "facts": {}})
    out = tmp_path / "merge"
    out.mkdir()
    merge.run(CONFIG, out=out, base=made["base"], adapter=made["adapter"], bases=choice, **SILENT)
    written = json.loads((out / "merge.json").read_text())
    assert (written["base_used"], written["round_trip"]) == (AS_IT_IS, None)


@pytest.mark.parametrize(
    ("key", "wrong"),
    [("blocksize", 128), ("double_quant", False), ("quant_type", "fp4"), ("from_dtype", "bfloat16"),
     ("modules", ["model.layers.0.mlp.up_proj"])],
)  # fmt: skip
def test_a_record_that_is_not_the_base_is_refused_by_name(
    tmp_path: Path, made: dict[str, Artifact], key: str, wrong: Any
) -> None:
    """peft#1043: a base that was quantised in another way gives other numbers without a word."""
    with pytest.raises(RecipeError, match=f"four_bit.{key}"):
        measure(tmp_path / "out", made, adapter=with_facts(made["adapter"], **{key: wrong}))


def test_an_adapter_that_never_saw_4_bit_has_no_choice_to_make(tmp_path: Path, made: dict[str, Artifact]) -> None:
    plain = Artifact(made["adapter"].path, {**made["adapter"].manifest, "facts": {"four_bit": None}})
    with pytest.raises(RecipeError, match="not trained on a 4-bit base"):
        measure(tmp_path / "out", made, adapter=plain)
    old = Artifact(made["adapter"].path, {**made["adapter"].manifest, "facts": {"quantised_modules": ["x"]}})
    with pytest.raises(RecipeError, match="train it again"):
        RoundTrip.of(old.facts)


@pytest.mark.parametrize("wrong", ["head as well", "one left out", "blocks of 128"])
def test_another_round_trip_than_that_of_training_shows_in_the_figure(
    tmp_path: Path, made: dict[str, Artifact], wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer round-trips every matrix, head and embeddings too, once it sees QLoRA."""
    right = RoundTrip.of(made["adapter"].facts)
    assert right is not None
    other = {
        "head as well": dataclasses.replace(right, modules=right.modules | {"lm_head"}),
        "one left out": dataclasses.replace(right, modules=right.modules - {"model.layers.1.mlp.down_proj"}),
        "blocks of 128": dataclasses.replace(right, blocksize=128),
    }[wrong]
    monkeypatch.setattr(bases, "check_recorded", lambda *_: other)
    assert measure(tmp_path / "out", made)["kl"][ROUND_TRIPPED] > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny_qwen3", "smollm2_135m"])
def test_qlora_from_training_to_proof_belongs_on_the_round_tripped_base(
    tmp_path: Path, name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Must 3: at most 1e-3 with the chosen base; what the other one costs is told."""
    monkeypatch.setattr(asked, "LONGEST_ANSWER", 24)
    recipe = load(["recipe=maintenance", f"model={name}", "method=qlora", "machine=cpu"])
    path = request.getfixturevalue({"tiny_qwen3": "tiny_qwen3", "smollm2_135m": "smollm2"}[name])
    model, method = recipe.model.model_dump(mode="json"), recipe.method.model_dump(mode="json")
    start = Artifact(path, {"stage": "base", "digest": name, "facts": {}})
    prepared = tiny.make_prepared(tmp_path / "prepared", rows=8)
    write_questions(prepared.path, tuple(recipe.model.modes), count=2)
    shared: dict[str, Any] = {"root": tmp_path, "machine": tiny.machine(), **SILENT}
    config = tiny.sft_config(model=model, method=method, max_steps=3, save_steps=3, eval_steps=3)
    inputs = {"base": start, "prepared": prepared}
    adapter = artifacts.build(sft.SFT_STAGE, config, inputs=inputs, tracker=tiny.Silent(), **shared)
    assert adapter.facts["four_bit"]["blocksize"] == 64
    config = {"model": model, "method": method}
    chosen = artifacts.build(bases.STAGE, config, inputs={**inputs, "adapter": adapter}, **shared)
    inputs = {"base": start, "adapter": adapter, "bases": chosen}
    merged = artifacts.build(merge.STAGE, config, root=tmp_path, inputs=inputs, **SILENT)
    inputs = {"base": start, "prepared": prepared, "adapter": adapter, "checkpoint": merged}
    config["score"] = {"parity_prompts": 12, "batch_tokens": 2048}
    found = json.loads(artifacts.build(proof.STAGE, config, inputs=inputs, **shared).file("parity.json").read_text())
    kl = {base["name"]: base["kl_mean"] for base in found["bases"]}
    assert merged.facts["base_used"] == ROUND_TRIPPED
    assert kl[ROUND_TRIPPED] <= 1e-3
    assert kl[AS_IT_IS] > 10 * kl[ROUND_TRIPPED]
    assert found["kl_mean"] <= 1e-3
    assert found["greedy_equal_float32"] is True
    assert set(found["modes"]) == (set(recipe.model.modes) if len(recipe.model.modes) > 1 else set())
    untouched = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    before, after = weights(path), weights(merged.file("model"))
    assert all(bool((before[key] == after[key]).all()) for key in untouched & set(before))
