"""`finetune serve` before vLLM runs: what it would type on this machine, and what it says when it cannot."""

import json
import re
import shutil
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from checkpoints import MODEL, make_adapter, make_base

from finetune.cli import main
from finetune.config.evaluation import Alerts
from finetune.config.model import Model
from finetune.errors import RecipeError
from finetune.handoff import serving
from finetune.memory import Gpu, Here
from finetune.serve.ask import chat, compare
from finetune.serve.server import fetch, find_vllm, free_port, url_of
from finetune.serve.start import check, command, read_plan

CPU = Here(gpus=(), cores=2, memory_gib=24.0, disk_free_gib=10.0)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    make_base(folder / "model")
    make_adapter(folder / "model", folder / "adapter")
    serving.write(folder / "serve", name="legal", model=Model(**MODEL), checkpoint=folder / "model",
                  adapter=folder / "adapter", alerts=Alerts(), quantised={},
                  merge={"base_used": "as it is", "bases": None})  # fmt: skip
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


@pytest.mark.parametrize(
    ("host", "reached"), [("::", "[::1]"), ("::1", "[::1]"), ("0.0.0.0", "127.0.0.1"), ("vllm.local", "vllm.local")]
)
def test_a_host_is_asked_where_it_can_be_reached(host: str, reached: str) -> None:
    assert url_of(host, 8000) == f"http://{reached}:8000"


def test_ports_of_ipv6_are_looked_at_too() -> None:
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("::1", 0))
        port = taken.getsockname()[1]
        free = port + 1 if port < 65_000 else port - 1
        taken.listen()
        for host in ("::", "::1"):
            with pytest.raises(RecipeError, match=rf"--port={port}.*--port {port + 1}"):
                free_port(host, port)
    free_port("::", free)
    with pytest.raises(RecipeError, match=r"--host=no such host"):
        free_port("no such host", port)


def test_a_quantised_sibling_is_served_by_its_name_and_only_what_the_bundle_has(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(bundle, tmp_path / "bundle")
    whole = tmp_path / "bundle"
    shutil.copytree(whole / "model", whole / "model-w4a16")
    words = command(whole, read_plan(whole), CPU, dtype="bfloat16", base=None, weights="model-w4a16")
    assert words[:4] == ["serve", "model-w4a16", "--served-model-name", "legal"]
    for other in ("model-w8a8", "adapter", "../bundle/model", "Qwen/Qwen3-32B"):
        with pytest.raises(RecipeError, match=r"--model=.*no such model.*one of model, model-w4a16"):
            command(whole, read_plan(whole), CPU, dtype="bfloat16", base=None, weights=other)
    with pytest.raises(RecipeError, match="--base serves adapter/"):
        command(whole, read_plan(whole), CPU, dtype="bfloat16", base=whole / "model", weights="model-w4a16")
    assert main(["serve", str(whole), "--model", "model-w4a16", "--check"]) == 2
    assert "--check compares with the answers of model/" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["--api-key=s3cret"], ["--api_key=s3cret"], ["--api-k=s3cret"], ["--api-key s3cret"],
              ["--api-key", "s3cret"], ["--hf-token=s3cret"]]
)  # fmt: skip
def test_a_key_on_the_command_line_is_refused_and_not_repeated(
    bundle: Path, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vllm = launcher(tmp_path / "vllm", "0.32.0")
    assert main(["serve", str(bundle), "--vllm", str(vllm), *[f"--flag={word}" for word in words]]) == 2
    said = capsys.readouterr()
    assert re.search(r"export (VLLM_API_KEY|HF_TOKEN)=", said.err)
    assert "s3cret" not in said.out + said.err


def test_a_key_that_no_header_can_hold_is_refused_and_not_repeated(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "s3cret\n")
    assert main(["serve", str(bundle)]) == 2
    said = capsys.readouterr()
    assert "VLLM_API_KEY: it holds" in said.err
    assert "s3cret" not in said.out + said.err


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


def answer_of(**changes) -> bytes:
    content = [{"logprob": value} for value in (-0.1, -0.2, -0.3)]
    choice = {"token_ids": [5, 6, 7], "logprobs": {"content": content}, **changes}
    return json.dumps({"prompt_token_ids": [1, 2], "choices": [choice]}).encode()


@pytest.fixture
def broken() -> Iterator[SimpleNamespace]:
    """A server on 127.0.0.1 that sends `raw` to whoever asks and hangs up; `asked` holds the headers it saw."""
    found = SimpleNamespace(raw=b"", status=200, length=None, asked=[], url="")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            found.asked.append(self.headers)
            self.rfile.read(int(self.headers["Content-Length"]))
            if found.status:
                self.send_response(found.status)
                self.send_header("Content-Length", str(found.length or len(found.raw)))
                self.end_headers()
                self.wfile.write(found.raw)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield found
        server.shutdown()


ASKED = {**LINE, "id": "golden-1", "messages": [{"role": "user", "content": "Hello"}], "tools": [], "mode": None}


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"raw": answer_of()}, ""),
        ({"status": 0}, "no answer: RemoteDisconnected"),
        ({"raw": answer_of(), "length": 9_999}, "no answer: IncompleteRead"),
        ({"raw": b"busy", "status": 503}, "HTTP 503: busy"),
        ({"raw": b"<html>"}, "no JSON: <html>"),
        ({"raw": b"[]"}, "no JSON object"),
        ({"raw": b'{"choices": []}'}, "no token ids"),
        ({"raw": answer_of(token_ids=None)}, "no token ids"),
        ({"raw": answer_of(logprobs=None)}, "no token ids"),
        ({"raw": answer_of(token_ids=[5, 6])}, "2 answer ids came with 3 log-probs"),
        ({"raw": answer_of(logprobs={"content": [{"logprob": float("nan")}] * 3})}, "3 log-probs: [nan"),
    ],
)
def test_what_is_no_answer_is_told_beside_its_prompt(broken: SimpleNamespace, changes: dict, word: str) -> None:
    vars(broken).update(changes)
    found = compare(LINE, chat(broken.url, "legal", ASKED, "bfloat16"), "bfloat16", 0.15)
    assert word in found.problem
    assert bool(word) == bool(found.problem)


def test_a_server_that_is_gone_makes_the_check_fail_and_not_break(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "bundle")
    tolerances = {"golden": {"tolerance_nats": {"bfloat16": 0.15, "float32": 0.001}}}
    (tmp_path / "bundle/lineage.json").write_text(json.dumps(tolerances))
    said: list[str] = []
    gone = "http://127.0.0.1:9"
    assert check(gone, read_plan(bundle), [ASKED, ASKED], "bfloat16", tmp_path / "bundle", said.append) == 1
    assert "WRONG: no answer: URLError(ConnectionRefusedError" in said[0]
    assert "2 NOT as the bundle says" in said[2]


def test_an_empty_golden_file_is_no_check_that_passes(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(bundle, tmp_path / "bundle")
    (tmp_path / "bundle/golden.jsonl").touch()
    assert main(["serve", str(tmp_path / "bundle"), "--check"]) == 2
    assert "no golden prompt stands in it" in capsys.readouterr().err


def test_the_own_machine_is_asked_past_every_proxy_and_with_the_key(
    broken: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    broken.raw = b"{}"
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    assert fetch(broken.url, {}) == {}
    monkeypatch.setenv("VLLM_API_KEY", "s3cret")
    assert fetch(broken.url, {}) == {}
    assert [headers["Authorization"] for headers in broken.asked] == [None, "Bearer s3cret"]
