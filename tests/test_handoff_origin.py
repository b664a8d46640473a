"""Where a bundle comes from: who made each stage, and whose bytes are signed without being read once more."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from test_handoff import bundle, hand_over, made, quiet  # noqa: F401 - bundle and made are fixtures
from test_handoff_papers import files_of

from finetune import artifacts, export, gates, merge, signing
from finetune import handoff as stage
from finetune.artifacts import Artifact
from finetune.config.recipe import without_places
from finetune.errors import RecipeError
from finetune.handoff import placed
from finetune.handoff.publish import publish as hand_out
from finetune.train import identity
from finetune.verify import verify


def finished(folder: Path) -> Artifact:
    """A HANDOFF whose `bundle/` stands in `folder`."""
    files = {f"bundle/{name}": digest for name, digest in files_of(folder / "bundle").items()}
    return Artifact(folder, {"stage": "handoff", "files": files})


# --- whose latency counts ---------------------------------------------------------------------------------------------


def test_a_latency_counts_only_where_the_checkpoints_own_weights_were_served(made, tmp_path):  # noqa: F811
    """A latency.json of any model opened the gate."""
    weights = gates.weights_of(made.stages["checkpoint"].manifest["files"])
    assert weights
    times = {"p50": 0.2, "p95": 0.4}
    for number, (served, status, said) in enumerate((
        (weights, "pass", ""), (None, "not_measured", "nobody knows which weights were served"),
        (dict.fromkeys(weights, "0" * 64), "not_measured", "with other weights than those of this model"),
    )):  # fmt: skip
        file = tmp_path / "latency.json"
        file.write_text(json.dumps({
            "concurrency": 4, "requests": 64, "failed": 0, "ttft_s": times, "token_s": times, "answer_s": times,
            "server": "vllm", "machine": "2 CPU cores", "weights": served,
        }))  # fmt: skip
        score = made.recipe.score.model_copy(update={"latency_file": str(file)})
        out = hand_over(made, tmp_path / f"out{number}", score=score)
        facts = json.loads((out / "report.json").read_text())
        judged = {gate["name"]: gate["status"] for gate in facts["gates"]}
        assert judged["latency_p95_max"] == status
        assert facts["latency"]["answer_s"]["p95"] == 0.4
        for name in ("REPORT.md", "report.html"):
            text = (out / name).read_text(encoding="utf-8")
            assert (said in text) if said else ("limit" in text and "It was measured" not in text)


# --- who made each stage ---------------------------------------------------------------------------------------------


def test_each_stage_is_said_to_come_from_its_own_commit_versions_and_machine(made, tmp_path):  # noqa: F811
    trained = dict(made.stages["adapter"].manifest["made"])
    trained |= {"gpu": "Card X", "packages": trained["packages"] | {"torch": "9.9"}}
    trained["code"] = trained["code"] | {"commit": "d" * 40, "dirty": True}
    folders = {"prepare": made.stages["prepared"].path}
    for name, recorded in (("sft", trained), ("merge", None)):
        source = made.stages["adapter" if name == "sft" else "checkpoint"]
        folders[name] = Path(shutil.copytree(source.path, tmp_path / name))
        manifest = {key: value for key, value in source.manifest.items() if key != "made"}
        manifest |= {"made": recorded} if recorded else {}
        (folders[name] / "manifest.json").write_text(json.dumps(manifest))
    out = hand_over(made, tmp_path / "out", run_facts={"stages": {name: str(at) for name, at in folders.items()}})
    traced = json.loads((out / "lineage.json").read_text())
    own = traced["environment"]["packages"]["torch"]
    assert [entry["made"] and entry["made"]["packages"]["torch"] for entry in traced["stages"]] == [own, "9.9", None]
    differing = {one["what"]: {found["value"]: found["stages"] for found in one["values"]}
                 for one in traced["differences"]}  # fmt: skip
    assert differing["torch"] == {own: ["prepare", "handoff"], "9.9": ["sft"], "unknown": ["merge"]}
    assert differing["commit"]["d" * 40 + " with uncommitted changes"] == ["sft"]
    card = (out / "README.md").read_text()
    assert "Not all stages were made with the same code, versions and machine" in card
    assert f"- torch: {own} (prepare, handoff); 9.9 (sft); unknown (merge)" in card
    assert "`dddddddddddd` with uncommitted changes, on Card X" in card
    parts = json.loads((out / "bom.cdx.json").read_text())
    libraries = {one["purl"]: one["properties"][0]["value"] for one in parts["components"] if one["type"] == "library"}
    assert libraries["pkg:pypi/torch@9.9"] == "sft"
    assert libraries[f"pkg:pypi/torch@{own}"] == "prepare, handoff"
    said = {one["name"]: one["value"] for one in parts["metadata"]["component"]["properties"]}
    assert said["finetune:stage:merge"] == "not recorded"
    assert "d" * 40 in said["finetune:stage:sft"]
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str((out / "bom.cdx.json").read_text()) is None


# --- whose bytes are signed ------------------------------------------------------------------------------------------


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """Names of the files that are read to hash them, from now on."""
    found: list[str] = []
    for module, name in ((artifacts, "hash_file"), (placed, "hash_file"), (merge, "hash_file"), (export, "hash_file"),
                         (signing, "_hash")):  # fmt: skip
        monkeypatch.setattr(module, name, noting(getattr(module, name), found))
    return found


def noting(real, found: list[str]):
    def call(path: Path) -> str:
        found.append(path.name)
        return real(path)

    return call


def build_bundle(made, work: Path) -> Artifact:  # noqa: F811
    """MERGE and HANDOFF as the main job runs them, behind the stages of `made`."""
    stages, config = dict(made.stages), {"model": made.recipe.model.model_dump(mode="json"),
                                         "method": made.recipe.method.model_dump(mode="json")}  # fmt: skip
    given = {name: stages[name] for name in ("base", "adapter")}
    stages["checkpoint"] = artifacts.build(merge.STAGE, config, root=work, inputs=given, say=quiet)
    live = {"run_facts": made.facts, "machine": made.recipe.machine, "say": quiet}
    return artifacts.build(stage.STAGE, identity(made.recipe, stage.Config), root=work, inputs=stages, **live)


def test_weights_are_hashed_while_they_are_merged_and_never_read_again_up_to_the_signature(made, tmp_path, read):  # noqa: F811
    handed = build_bundle(made, tmp_path)
    private, public = signing.keygen(tmp_path / "keys")
    link = hand_out(handed, tmp_path, str(private))
    weights = [name for name in read if name.startswith("model") and name.endswith(".safetensors")]
    assert weights == []
    assert read.count("tokenizer.json") <= 2, "once for the merged model, once for its copy in the bundle"
    assert "SHA256SUMS" in read
    del read[:]
    assert verify(link, deep=True, key=public, say=quiet) == [], "the receiver reads them all"


def flip(file: Path) -> None:
    """The last bit of it."""
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", ["model/model.safetensors", "README.md", "SHA256SUMS"])
def test_a_bundle_that_changed_before_it_was_signed_is_not_signed(made, tmp_path, name):  # noqa: F811
    handed = build_bundle(made, tmp_path)
    flip(handed.path / "bundle" / name)
    private, _ = signing.keygen(tmp_path / "keys")
    with pytest.raises(RecipeError, match="its bytes are not those that handoff wrote"):
        hand_out(handed, tmp_path, str(private))
    assert not (handed.path / "bundle/model.sig").exists()


def test_a_checkpoint_that_changed_after_merging_gets_into_no_bundle(made, tmp_path):  # noqa: F811
    config = {"model": made.recipe.model.model_dump(mode="json"), "method": made.recipe.method.model_dump(mode="json")}
    given = {name: made.stages[name] for name in ("base", "adapter")}
    checkpoint = artifacts.build(merge.STAGE, config, root=tmp_path, inputs=given, say=quiet)
    flip(checkpoint.path / "model/model.safetensors")
    with pytest.raises(RecipeError, match="its bytes are not those that merge wrote"):
        placed.place_model(checkpoint, tmp_path)


@pytest.mark.parametrize(
    ("made_by", "name"),
    [("checkpoint", "model/config.json"), ("checkpoint", "model/tokenizer.json"), ("checkpoint", "merge.json"),
     ("adapter", "adapter_model.safetensors"), ("adapter", "adapter_config.json"), ("proof", "parity.json"),
     ("scores", "scores.json")],
)  # fmt: skip
def test_one_byte_changed_after_its_stage_is_refused_by_name(made, tmp_path, made_by, name):  # noqa: F811
    source = made.stages[made_by]
    changed = Artifact(Path(shutil.copytree(source.path, tmp_path / made_by)), source.manifest)
    flip(changed.path / name)
    others = SimpleNamespace(**{**vars(made), "stages": {**made.stages, made_by: changed}})
    with pytest.raises(RecipeError, match=f"{changed.path / name}: its bytes are not those that {source.stage} wrote"):
        hand_over(others, tmp_path / "out")
    assert not (tmp_path / "out/bundle").exists()


def test_weights_that_changed_while_they_answered_are_in_no_checksums_nor_are_their_answers_kept(
    made, tmp_path, monkeypatch  # noqa: F811
):
    source = made.stages["checkpoint"]
    own = Artifact(Path(shutil.copytree(source.path, tmp_path / "merged")), source.manifest)
    write = stage.golden.write

    def then_changed(*given, **named):
        answers = write(*given, **named)
        flip(own.path / "model/model.safetensors")
        return answers

    monkeypatch.setattr(stage.golden, "write", then_changed)
    others = SimpleNamespace(**{**vars(made), "stages": {**made.stages, "checkpoint": own}})
    with pytest.raises(RecipeError, match=r"model/model\.safetensors: it changed while the bundle was made"):
        hand_over(others, tmp_path / "out")
    assert not (tmp_path / "out/bundle/SHA256SUMS").exists()
    assert not list((tmp_path / "out").glob(".golden*"))


def test_a_copy_that_changed_in_the_bundle_is_refused_and_what_merge_did_not_write_stays_out(made, tmp_path):  # noqa: F811
    source = made.stages["checkpoint"]
    own = Artifact(Path(shutil.copytree(source.path, tmp_path / "merged")), source.manifest)
    (own.path / "model/notes.txt").write_text("x")
    target = tmp_path / "out/bundle"
    target.mkdir(parents=True)
    known = placed.place_model(own, target)
    assert not (target / "model/notes.txt").exists()
    flip(target / "model/config.json")
    with pytest.raises(RecipeError, match=r"model/config\.json: it changed while the bundle was made"):
        placed.finish(target, known)


def test_a_file_that_nobody_wrote_is_not_signed_but_named(bundle, tmp_path):  # noqa: F811
    work = tmp_path / "work"
    shutil.copytree(bundle, work / "handoff-one/bundle")
    handed = finished(work / "handoff-one")
    private, _ = signing.keygen(tmp_path / "keys")
    stranger = handed.path / "bundle/model/notes.txt"
    stranger.write_text("x")
    with pytest.raises(RecipeError, match=r"model/notes\.txt: handoff did not write it"):
        hand_out(handed, work, str(private))
    assert not (handed.path / "bundle/model.sig").exists()
    stranger.unlink()
    (handed.path / "bundle" / signing.UNFINISHED).write_text("of a killed attempt")
    assert (hand_out(handed, work, str(private)) / "model.sig").is_file()


def test_weights_that_cannot_be_linked_are_copied_and_hashed(made, tmp_path, monkeypatch, read):  # noqa: F811
    def other_disk(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "hardlink_to", other_disk)
        handed = build_bundle(made, tmp_path)
    assert read.count("model.safetensors") == 1
    assert (handed.path / "bundle/model/model.safetensors").stat().st_nlink == 1
    assert verify(handed.path / "bundle", deep=True, say=quiet) == []


def test_a_bundle_is_signed_once_by_each_key_and_again_by_another(bundle, tmp_path):  # noqa: F811
    work = tmp_path / "work"
    shutil.copytree(bundle, work / "handoff-one/bundle")
    handed = finished(work / "handoff-one")
    keys = [signing.keygen(tmp_path / name) for name in ("first", "second")]
    seen = []
    for private, _ in (keys[0], keys[0], keys[1]):
        link = hand_out(handed, work, str(private))
        seen.append((link / "model.sig").read_bytes())
    assert seen[0] == seen[1] != seen[2], "signing again would read 65 GB again; another key has to sign"
    assert verify(work / "bundle", deep=True, key=keys[1][1], say=quiet) == []
    assert verify(work / "bundle", deep=True, key=keys[0][1], say=quiet) != []


def test_the_signing_key_stands_in_no_key_no_config_and_no_file(made, bundle, tmp_path):  # noqa: F811
    private, _ = signing.keygen(tmp_path / "keys")
    handoff = made.recipe.handoff.model_copy(update={"signing_key": str(private)})
    recipe = made.recipe.model_copy(update={"handoff": handoff})
    assert identity(recipe, stage.Config) == identity(made.recipe, stage.Config)
    assert str(private) not in json.dumps(without_places(recipe.model_dump(mode="json")))
    signed = hand_over(made, tmp_path / "out", handoff=handoff)
    hand_out(finished(tmp_path / "out"), tmp_path, str(private))
    secret = private.read_bytes()
    for path in signed.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert secret[40:80] not in content, path
            assert str(private).encode() not in content, path
    assert {name for name in files_of(signed) if name not in files_of(bundle)} == {"model.sig"}
