"""VERIFY: every defect that a server would pass over is named, and nothing good is."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import make_adapter, make_base
from verify_faults import FAULTS, FINE, LAYER, edit, tensors_with

from finetune import merge
from finetune.cli import main
from finetune.verify import verify


def quiet(_: str) -> None:
    pass


def found(directory: Path, *, deep: bool = False) -> str:
    return "\n".join(map(str, verify(directory, deep=deep, say=quiet)))


@pytest.fixture(scope="module", params=[("qwen3", False, 1), ("qwen3", False, 3), ("llama", True, 1)], ids=str)
def good(request, tmp_path_factory) -> Path:
    kind, tied, shards = request.param
    folder = tmp_path_factory.mktemp("good")
    base = make_base(folder / "base", kind=kind, tied=tied, shards=shards)
    mode = "plain" if shards == 1 else None
    merge.merge_adapter(base, make_adapter(base, folder / "adapter"), folder / "out", say=quiet, default_mode=mode)
    return folder / "out/model"


def test_what_merge_writes_raises_no_alarm(good):
    assert found(good, deep=True) == ""


def test_the_embedded_models_give_no_alarm_about_weights_or_text(smollm2, tiny_qwen3):
    for directory in (smollm2, tiny_qwen3):
        alarms = [line for line in found(directory, deep=True).splitlines() if "temperature" not in line]
        assert alarms == []


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    base = make_base(folder / "base")
    merge.merge_adapter(base, make_adapter(base, folder / "adapter"), folder / "out", say=quiet, default_mode="plain")
    return folder / "out/model"


def names(directory: Path, *, deep: bool = False) -> set[str]:
    return {finding.name for finding in verify(directory, deep=deep, say=quiet)}


@pytest.mark.parametrize(("spoil", "rule"), FAULTS.values(), ids=FAULTS.keys())
def test_a_seeded_fault_is_refused_by_name(original, tmp_path, spoil, rule):
    model = tmp_path / "m"
    shutil.copytree(original, model)
    spoil(model)
    assert rule in names(model)


@pytest.mark.parametrize(("change", "rule"), FINE.values(), ids=FINE.keys())
def test_what_servers_read_alike_gives_no_alarm_unless_others_do_not(original, tmp_path, change, rule):
    model = tmp_path / "m"
    shutil.copytree(original, model)
    change(model)
    assert names(model) in ({rule}, {rule, "leftover-file"}) if rule else names(model, deep=True) == set()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_are_found_by_reading_deep(original, tmp_path, value):
    shutil.copytree(original, tmp_path / "m")

    def spoil(tensors) -> None:
        tensors[f"{LAYER}mlp.up_proj.weight"][7, 5] = value

    tensors_with(spoil)(tmp_path / "m")
    assert found(tmp_path / "m") == ""
    assert names(tmp_path / "m", deep=True) == {"not-finite"}
    assert "mlp.up_proj.weight" in found(tmp_path / "m", deep=True)


def test_a_tied_head_that_differs_is_found_by_reading_deep(original, tmp_path):
    shutil.copytree(original, tmp_path / "m")
    edit("config.json", tie_word_embeddings=True)(tmp_path / "m")
    assert names(tmp_path / "m") == set()
    assert names(tmp_path / "m", deep=True) == {"tied-head-differs"}


def test_a_folder_that_is_not_there_is_said(tmp_path):
    assert names(tmp_path / "nowhere") == {"no-folder"}


def test_a_finding_is_one_line_without_control_characters(original, tmp_path):
    shutil.copytree(original, tmp_path / "m")
    edit("config.json", model_type="qwen3", rope_scaling={"rope_type": "\x1b[2J\nall is well"})(tmp_path / "m")
    (tmp_path / "m/\x1b]0;x\x07.py").write_text("")
    for line in map(str, verify(tmp_path / "m", say=quiet)):
        assert line.isprintable()


def test_a_file_that_cannot_be_read_is_an_answer_and_no_traceback(original, tmp_path, capsys):
    shutil.copytree(original, tmp_path / "m")
    (tmp_path / "m/NOTICE").symlink_to("/proc/self/mem")
    assert main(["verify", str(tmp_path / "m"), "--deep"]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_verifying_needs_neither_torch_nor_transformers(original):
    code = (
        "import sys; from pathlib import Path; from finetune.verify import verify;"
        f"assert verify(Path({str(original)!r}), deep=True) == [];"
        "print(sorted({'torch', 'transformers', 'tokenizers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
