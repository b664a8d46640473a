"""`finetune serve` before vLLM runs: what it would type on this machine, and what it says when it cannot."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import MODEL, make_adapter, make_base

from finetune.cli import main
from finetune.config.evaluation import Alerts
from finetune.config.model import Model
from finetune.errors import RecipeError
from finetune.handoff import serving
from finetune.memory import Gpu, Here
from finetune.serve.ask import compare
from finetune.serve.server import Server, find_vllm, free_port
from finetune.serve.start import command, read_plan

CPU = Here(gpus=(), cores=2, memory_gib=24.0, disk_free_gib=10.0)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    make_base(folder / "model")
    make_adapter(folder / "model", folder / "adapter")
    serving.write(folder / "serve", name="legal", model=Model(**MODEL), checkpoint=folder / "model",
                  adapter=folder / "adapter", alerts=Alerts(), quantised={})  # fmt: skip
    return folder


def launcher(folder: Path, version: str) -> Path:
    """A `vllm` command as pip writes it, in an environment that holds no more than vLLM's name and version."""
    folder.mkdir()
    (folder / "vllm-1.dist-info").mkdir()
    (folder / "vllm-1.dist-info/METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
    python = folder / "python3"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={folder} exec {sys.executable} "$@"\n')
    (folder / "vllm").write_text(f"#!{python}\n")
    for file in (python, folder / "vllm"):
        file.chmod(0o755)
    return folder / "vllm"


def flags(words: list[str]) -> dict[str, str]:
    return dict(zip(words, [*words[1:], ""], strict=True))


def test_a_cpu_gets_a_small_cache_and_no_compiler(bundle: Path) -> None:
    words = command(bundle, read_plan(bundle), CPU, dtype="bfloat16", base=None)
    assert words[:2] == ["serve", "model"]
    # 2 requests x 256 positions x (2 x 2 layers x 2 heads x 32) x 2 bytes
    assert flags(words)["--kv-cache-memory-bytes"] == str(2 * 256 * 256 * 2)
    assert "--enforce-eager" in words
    assert "--gpu-memory-utilization" not in words


def test_gpus_get_the_bundles_arithmetic_with_the_memory_that_is_there(bundle: Path) -> None:
    machine = Here(gpus=(Gpu("NVIDIA L4", 22.5),) * 2, cores=8, memory_gib=64.0, disk_free_gib=10.0)
    words = command(bundle, read_plan(bundle), machine, dtype="bfloat16", base=None)
    assert flags(words)["--data-parallel-size"] == "2"
    assert flags(words)["--max-num-seqs"] == "64"
    tiny = Here(gpus=(Gpu("small", 2.0),), cores=8, memory_gib=64.0, disk_free_gib=10.0)
    with pytest.raises(RecipeError, match=r"left for keys and values.*more GPUs"):
        command(bundle, read_plan(bundle), tiny, dtype="bfloat16", base=None)


def test_an_adapter_is_served_on_the_base_that_is_named(bundle: Path, tmp_path: Path) -> None:
    words = command(bundle, read_plan(bundle), CPU, dtype="float32", base=bundle / "model")
    assert words[:2] == ["serve", str(bundle / "model")]
    assert flags(words)["--lora-modules"] == "legal=adapter"
    assert flags(words)["--dtype"] == "float32"
    assert words.count("--max-model-len") == 1
    with pytest.raises(RecipeError, match=r"--base.*no model directory"):
        command(bundle, read_plan(bundle), CPU, dtype="float32", base=tmp_path)


def test_a_folder_that_is_no_bundle_is_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(tmp_path)]) == 2
    assert "no bundle with model/ and serve/plan.json" in capsys.readouterr().err


def test_a_check_without_golden_prompts_is_refused_before_anything_starts(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(bundle), "--check"]) == 2
    assert "no golden prompts" in capsys.readouterr().err


def test_without_vllm_it_says_what_to_install(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(bundle), "--vllm", str(tmp_path / "vllm")]) == 2
    assert "scripts/setup.sh serve" in capsys.readouterr().err


def test_a_version_that_nobody_tested_is_refused_until_somebody_insists(tmp_path: Path) -> None:
    vllm = launcher(tmp_path / "new", "0.99.1")
    with pytest.raises(RecipeError, match=r"0\.99\.1.*only with 0\.32\.0.*--any-version"):
        find_vllm(vllm, any_version=False)
    assert find_vllm(vllm, any_version=True) == vllm
    tested = launcher(tmp_path / "tested", "0.32.0+cpu")
    assert find_vllm(tested, any_version=False) == tested


def test_a_launcher_of_something_else_is_no_vllm(tmp_path: Path) -> None:
    (tmp_path / "vllm").write_text("#!/bin/sh\n")
    with pytest.raises(RecipeError, match="no launcher of an installed vLLM"):
        find_vllm(tmp_path / "vllm", any_version=True)


def test_a_taken_port_is_named_with_the_next_one() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RecipeError, match=rf"--port={port}.*--port {port + 1}"):
            free_port("127.0.0.1", port)


def test_a_server_that_dies_is_told_with_its_own_words(tmp_path: Path) -> None:
    words = ["sh", "-c", "echo 'ValueError: no room for the cache'; exit 3"]
    with (
        (tmp_path / "log").open("w+") as log,
        Server(words, tmp_path, host="127.0.0.1", port=9, log=log) as server,
        pytest.raises(RecipeError, match=r"vllm=3.*no room for the cache"),
    ):
        server.wait()


@pytest.mark.parametrize("compiled", [True, False])
def test_only_a_cpu_is_spared_the_compiler(tmp_path: Path, compiled: bool) -> None:
    words = ["sh", "-c", "echo dynamo=$TORCHDYNAMO_DISABLE offline=$HF_HUB_OFFLINE"]
    with (tmp_path / "log").open("w+") as log:
        with Server(words, tmp_path, host="127.0.0.1", port=9, log=log, compiled=compiled) as server, pytest.raises(
            RecipeError, match="it said nothing of an error"
        ):
            server.wait()
        log.seek(0)
        assert log.read() == f"dynamo={'' if compiled else '1'} offline=1\n"


def test_a_server_that_ignores_sigint_is_ended_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.serve.server._LAST_SECONDS", 0.5)
    words = ["sh", "-c", "trap '' INT; echo $$ > pid; while :; do sleep 0.1; done"]
    with Server(words, tmp_path, host="127.0.0.1", port=9, log=None):
        while not (tmp_path / "pid").exists():
            pass
    pid = (tmp_path / "pid").read_text().strip()
    assert subprocess.run(["ps", "-p", pid], capture_output=True).returncode == 1


LINE = {
    "prompt_token_ids": [1, 2], "expected": {"bfloat16": {
        "token_ids": [5, 6, 7], "logprobs": [-0.1, -0.2, -0.3], "near_ties": [1], "margins": [5.0, 0.5, 0.35]}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "compared", "word"),
    [
        ({}, 3, ""),
        ({"logprobs": [-0.1, -0.29, -0.3]}, 3, ""),
        ({"logprobs": [-0.1, -0.2, -0.5]}, 3, "log-prob of token 2 is off by 0.2"),
        ({"token_ids": [5, 9, 9]}, 1, ""),
        ({"token_ids": [9, 6, 7]}, 0, "answer ids differ from 0"),
        ({"token_ids": [5, 6, 9]}, 2, "answer ids differ from 2"),
        ({"token_ids": [5, 6], "logprobs": [-0.1, -0.2]}, 2, "answer ids differ from 2"),
        ({"prompt_token_ids": [1, 3]}, 0, "prompt ids differ from 1"),
    ],
)
def test_rounding_is_told_from_a_defect(changes: dict, compared: int, word: str) -> None:
    served = {"prompt_token_ids": [1, 2], "token_ids": [5, 6, 7], "logprobs": [-0.1, -0.2, -0.3], **changes}
    found = compare(LINE, served, "bfloat16", 0.15)
    assert found.compared == compared
    assert word in found.problem
    assert bool(word) == bool(found.problem)


def test_what_the_server_says_against_a_prompt_is_shown() -> None:
    assert "WRONG: HTTP 400" in str(compare(LINE, "HTTP 400: no template", "bfloat16", 0.15))
