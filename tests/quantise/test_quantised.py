"""EXPORT with llm-compressor: what it writes, what a receiver and vLLM say to it, and what a kill leaves behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from quantise import small
from safetensors.torch import load_file

from finetune import export
from finetune.artifacts import Artifact, hash_file
from finetune.checks.export import interpreter
from finetune.config.machine import Machine
from finetune.verify import verify

pytestmark = pytest.mark.quantise
ROOT = Path(__file__).resolve().parents[2]
MACHINE = Machine(name="test", device="cpu", threads=1)
BOTH = ("w4a16", "w8a8")


def make(folder: Path, given: dict[str, Artifact], **quantise: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    export.run(small.config(*BOTH, **quantise), out=folder, machine=MACHINE, say=lambda _: None, **given)
    found: dict[str, Any] = json.loads((folder / "export.json").read_text())
    return found


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    return small.inputs(tmp_path_factory.mktemp("given"))


@pytest.fixture(scope="module")
def calibrated(given, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("calibrated")
    return folder, make(folder, given, rows=6)


@pytest.fixture(scope="module")
def nearest(given, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("nearest")
    return folder, make(folder, given, rounding="nearest", smoothing=0)


def test_a_receiver_finds_nothing_wrong_and_small_files_are_the_merged_models(calibrated, given) -> None:
    merged = given["checkpoint"].file("model")
    for scheme in BOTH:
        made = calibrated[0] / scheme
        assert not verify(made, deep=True, say=lambda _: None)
        assert {path.stat().st_mode & 0o777 for path in made.iterdir()} == {0o644}
        assert {path.name for path in made.iterdir()} == {path.name for path in merged.iterdir()}
        for path in merged.iterdir():
            same = (made / path.name).read_bytes() == path.read_bytes()
            assert same == (path.name not in ("config.json", "model.safetensors")), path.name
        config = json.loads((made / "config.json").read_text())
        assert config.pop("quantization_config")["ignore"] == ["lm_head"]
        assert config == json.loads((merged / "config.json").read_text())


def test_what_was_measured_is_written_down(calibrated, given) -> None:
    folder, found = calibrated
    assert sorted(path.name for path in folder.glob("[!.]*")) == ["answers.jsonl", "export.json", *BOTH]
    chat = export.ChatFormat.read(given["checkpoint"].file("model"))
    rows = export._calibration(given["prepared"].file("train.jsonl"), chat, export.Quantise(rows=6), 0)
    for scheme in BOTH:
        one = found[scheme]
        assert one["files"] == {path.name: hash_file(path) for path in (folder / scheme).iterdir()}
        assert one["n_prompts"] == 8
        assert set(one["tasks"]) == {"t0", "t1"}
        for task in one["tasks"].values():
            assert (task["tuned"], task["n"]) == (1.0, 4)
            assert task["loss"] == 1.0 - task["quantised"]
            assert task["gain"]["difference"] == task["quantised"] - 0.5
        how = one["settings"]
        assert (how["scheme"], how["rounding"], how["calibration_rows"]) == (scheme, "gptq", 6)
        assert how["calibration_tokens"] == sum(map(len, rows))
        assert how["versions"]["llmcompressor"] == "0.14.0.1"
    lines = _lines(folder / "answers.jsonl")
    for scheme in BOTH:
        for name, task in found[scheme]["tasks"].items():
            own = [line["score"] for line in lines if (line["system"], line["task"]) == (scheme, name)]
            assert task["quantised"] == sum(own) / len(own), "each number traces to rows"
    assert found["w4a16"]["settings"]["group_size"] == 32
    assert 0 < found["w8a8"]["kl_mean"] < found["w4a16"]["kl_mean"]


def test_every_weight_is_rounded_to_its_nearest_step(nearest, given) -> None:
    whole = load_file(given["checkpoint"].file("model") / "model.safetensors")
    four, eight = (load_file(nearest[0] / scheme / "model.safetensors") for scheme in BOTH)
    linear = [name for name in whole if name.endswith("_proj.weight")]
    assert len(linear) == 14
    for name in linear:
        weight = whole[name].float()
        # Half a step, and what the quotient itself loses in bfloat16: near 7 a 32nd of a step, near 127 a half.
        scale = four[f"{name}_scale"].float().repeat_interleave(32, dim=1)
        assert bool(((_unpacked(four[f"{name}_packed"]) * scale - weight).abs() <= 0.55 * scale).all()), name
        scale = eight[f"{name}_scale"].float()
        assert bool(((eight[name].float() * scale - weight).abs() <= scale).all()), name
    for name in set(whole) - set(linear):
        assert torch.equal(four[name], whole[name])
        assert torch.equal(eight[name], whole[name])


def test_activations_of_w8a8_are_rounded_where_it_is_measured(nearest, given, tmp_path) -> None:
    """Without their rounding 8-bit weights alone would be measured, and the model would look better than it serves."""
    plain = tmp_path / "w8a8"
    shutil.copytree(nearest[0] / "w8a8", plain)
    config = json.loads((plain / "config.json").read_text())
    for group in config["quantization_config"]["config_groups"].values():
        group["input_activations"] = None
    (plain / "config.json").write_text(json.dumps(config))
    settings = export.Config.model_validate(small.config("w8a8"))
    chat = export.ChatFormat.read(given["checkpoint"].file("model"))
    worker = export._Worker(interpreter(), tmp_path, export._order(settings, MACHINE, chat), lambda _: None)
    rows = export._by_task(given["prepared"].file("test.jsonl"), settings)
    export._measure(rows, settings, given["checkpoint"].file("model"), given["proof"], chat, tmp_path, worker)
    weights_alone = json.loads((tmp_path / "parity-w8a8.json").read_text())["kl_mean"]
    assert nearest[1]["w8a8"]["kl_mean"] > 1.2 * weights_alone


def test_killed_it_takes_its_worker_along_and_goes_on_with_what_was_finished(nearest, given, tmp_path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    places = {name: str(artifact.path) for name, artifact in given.items()}
    order = {"config": small.config(*BOTH, rounding="nearest", smoothing=0), "out": str(out), "places": places}
    (tmp_path / "order.json").write_text(json.dumps(order))
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    stage = subprocess.Popen([sys.executable, __file__, str(tmp_path / "order.json")], cwd=ROOT, env=environment)
    until = time.monotonic() + 120
    while not (out / "w4a16").is_dir():
        assert stage.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)
    while not _workers(out):
        assert time.monotonic() < until
        time.sleep(0.02)
    os.kill(stage.pid, signal.SIGKILL)
    stage.wait()
    while _workers(out):
        assert time.monotonic() < until, "the worker outlived the stage"
        time.sleep(0.1)
    before = (out / "w4a16").stat().st_ino
    again = make(out, given, rounding="nearest", smoothing=0)
    assert (out / "w4a16").stat().st_ino == before
    assert again == nearest[1]
    assert make(out, given, rounding="nearest", smoothing=0) == again, "killed between export.json and publishing"


def test_vllm_reads_both_as_transformers_does(calibrated, given, tmp_path) -> None:
    prompts = [line["prompt"] for line in _lines(given["proof"].file("answers.jsonl"))]
    models = {"merged": given["checkpoint"].file("model"), **{scheme: calibrated[0] / scheme for scheme in BOTH}}
    order = {"models": {name: str(path) for name, path in models.items()}, "prompts": prompts[:4], "tokens": 8,
             "dtype": "bfloat16"}  # fmt: skip
    (tmp_path / "order.json").write_text(json.dumps(order))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for python, script in (
        (ROOT / ".venv-serve/bin/python", "vllm_reads.py"),
        (interpreter(), "transformers_reads.py"),
    ):
        command = [str(python), str(Path(__file__).with_name(script)), str(tmp_path / "order.json")]
        subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=300)
    found, read = (json.loads((tmp_path / name).read_text()) for name in ("found.json", "reads.json"))
    for name in models:
        theirs = np.array([one["logprobs"] for one in found[name]])
        assert theirs.shape == (4, 8)
        assert np.abs(theirs - np.array(read[name])).mean() < 0.1, name
    for scheme in BOTH:  # and vLLM does not take them for the merged model
        assert found[scheme] != found["merged"]


def _unpacked(packed: torch.Tensor) -> torch.Tensor:
    """int32 [rows, columns / 8] -> [rows, columns]: eight unsigned 4-bit numbers, the lowest first, 8 stands for 0."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    return (((packed[..., None] >> shifts) & 15) - 8).flatten(1).float()


def _workers(out: Path) -> list[int]:
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = process.read_bytes()
        except OSError:  # it has just ended
            continue
        if b"finetune.quantise" in words and str(out).encode() in words:
            found.append(int(process.parent.name))
    return found


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


if __name__ == "__main__":
    told = json.loads(Path(sys.argv[1]).read_text())
    artifacts = {name: Artifact(Path(path), {"stage": name, "digest": name}) for name, path in told["places"].items()}
    export.run(told["config"], out=Path(told["out"]), machine=MACHINE, **artifacts)
