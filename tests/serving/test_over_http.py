"""A bundle made by the whole pipeline, served by `finetune serve` and asked through /v1/chat/completions."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest

from finetune import cli
from finetune.chat import IGNORED
from finetune.handoff import alerts, capacity
from finetune.serve import ask
from finetune.serve.server import AnswerError, fetch
from finetune.serve.start import check, read_plan

pytestmark = pytest.mark.serving
ROOT = Path(__file__).resolve().parents[2]
FINETUNE = [sys.executable, "-m", "finetune.cli"]
# Random weights that were trained for three steps: what counts is that both sides compute the same.
WORDS = [
    "recipe=maintenance", "model=tiny_qwen3", "machine=cpu", "machine.threads=2", "stages=[sft]", "sft.max_steps=3",
    "tasks.fields.train_rows=24", "tasks.fields.valid_rows=4", "tasks.fields.test_rows=8",
    "tasks.fields.max_new_tokens=6", "tasks.place.train_rows=8", "tasks.place.valid_rows=2", "tasks.place.test_rows=4",
    "tasks.place.max_new_tokens=4", "sft.max_length=512", "sft.trl.learning_rate=1e-2", "score.general_tokens=512",
    "score.parity_prompts=2", "handoff.accepted_by=tests", "handoff.reason='random weights'",
]  # fmt: skip


KEY = "s3cret-of-these-tests"


@pytest.fixture(scope="module", autouse=True)
def key() -> Iterator[None]:
    """One key for the server and for whoever asks it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_API_KEY", KEY)
        yield


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, qwen3_float32: Path) -> Path:
    folder = tmp_path_factory.mktemp("served") / "maintenance"
    command = [*FINETUNE, "train", *WORDS, f"work={folder}", f"model.path={qwen3_float32}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def bundle(work: Path) -> Path:
    return (work / "bundle").resolve()


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[SimpleNamespace]:
    """`finetune serve BUNDLE` until SIGINT; `code` is its exit code afterwards."""
    port, log = free_port(), bundle.parent / "vllm.log"
    process = subprocess.Popen(
        [*FINETUNE, "serve", str(bundle), "--port", str(port), "--log", str(log)], cwd=ROOT, stdout=subprocess.PIPE,
        text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith("curl "):
            break
    else:
        raise AssertionError("".join(said) + log.read_text()[-3000:])
    found = SimpleNamespace(url=f"http://127.0.0.1:{port}", log=log, port=port, process=process, said="".join(said))
    yield found
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        process.wait(60)
    process.stdout.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def chat(url: str, messages: list[dict[str, Any]], mode: str | None, **more: Any) -> dict[str, Any]:
    switch = {} if mode is None else {"chat_template_kwargs": {"enable_thinking": mode == "think"}}
    body = {"model": "maintenance", "messages": messages, "max_tokens": 4, "return_token_ids": True, **switch, **more}
    return fetch(f"{url}/v1/chat/completions", body)


def test_the_golden_prompts_are_answered_as_the_bundle_says_in_every_mode(
    bundle: Path, server: SimpleNamespace
) -> None:
    golden = ask.read_golden(bundle)
    assert {line["mode"] for line in golden} == {None, "plain", "think"}
    said: list[str] = []
    assert check(server.url, read_plan(bundle), golden, "float32", bundle, said.append) == 0, "\n".join(said)


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda line: line["prompt_token_ids"].append(5), "prompt ids differ"),
        (lambda line: line["expected"]["float32"]["token_ids"].__setitem__(0, 7), "answer ids differ from 0"),
        (lambda line: line["expected"]["float32"]["logprobs"].__setitem__(1, -0.5), "log-prob of token 1"),
        (lambda line: line.__setitem__("mode", "think"), "prompt ids differ"),
    ],
    ids=["prompt", "answer", "log-prob", "mode"],
)
def test_an_answer_that_is_not_the_bundles_is_named(
    bundle: Path, server: SimpleNamespace, spoil: Any, word: str
) -> None:
    line = next(line for line in ask.read_golden(bundle) if line["mode"] == "plain")
    line["expected"]["float32"] |= {"near_ties": [], "margins": [1.0] * len(line["expected"]["float32"]["token_ids"])}
    spoil(line)
    said: list[str] = []
    assert check(server.url, read_plan(bundle), [line], "float32", bundle, said.append) == 1
    assert word in said[0]
    assert "1 NOT as the bundle says" in said[1]


def test_finetune_score_asks_the_server_our_very_prompts_and_gets_the_answers_of_score(
    work: Path, server: SimpleNamespace, qwen3_float32: Path, tmp_path: Path
) -> None:
    words = [*WORDS, f"work={work}", f"model.path={qwen3_float32}", "--out", str(tmp_path)]
    assert cli.main(["score", f"{server.url}#maintenance", *words]) == 0
    found = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    assert found["asked_through"] == {
        "api": {"/v1/completions": 12}, "prompt": {"token ids": 12},
        "prompt_tokens": {"equal": 12, "differ": 0, "unknown": 0},
    }  # fmt: skip
    (scored,) = work.glob("score-*")

    def answers(folder: Path, system: str) -> dict[tuple[str, str], str]:
        lines = map(json.loads, (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines())
        return {(line["task"], line["id"]): line["answer"] for line in lines if line["system"] == system}

    assert answers(tmp_path, "model") == answers(scored, "merged") == answers(scored, "tuned")
    assert cli.main(["score", server.url, *words, "--latency", "--requests", "8", "--concurrency", "2"]) == 0
    timed = json.loads((tmp_path / "latency.json").read_text(encoding="utf-8"))
    assert timed["server"].startswith("vllm 0.")
    assert 0 < timed["ttft_s"]["p50"] <= timed["answer_s"]["p50"] <= timed["answer_s"]["p95"]


def test_prompts_are_served_as_they_were_trained_id_for_id(work: Path, server: SimpleNamespace) -> None:
    (prepared,) = work.glob("prepare-*")
    rows = {row["id"]: row for row in pq.read_table(prepared / "sft_train.parquet").to_pylist()}
    asked = 0
    for text in (prepared / "train.jsonl").read_text(encoding="utf-8").splitlines()[:12]:
        record = json.loads(text)
        row = rows[record["id"]]
        prompt = row["input_ids"][: sum(label == IGNORED for label in row["labels"])]
        for mode in (record["mode"], *([None] if record["mode"] == "plain" else [])):
            assert chat(server.url, record["messages"][:-1], mode)["prompt_token_ids"] == prompt
            asked += 1
    assert asked >= 12


def test_a_request_that_names_no_mode_gets_the_recipes_default_and_each_mode_its_own_prompt(
    server: SimpleNamespace,
) -> None:
    """LF#9765, Qwen3#1377: without the default in the template, Qwen3 thinks unless told otherwise."""
    talk = [{"role": "user", "content": "Work order: broken bucket tooth"}]
    ids = {mode: chat(server.url, talk, mode)["prompt_token_ids"] for mode in (None, "plain", "think")}
    assert ids[None] == ids["plain"] != ids["think"]
    assert chat(server.url, talk, None)["choices"][0]["message"]["content"], "no parser takes the answer away"


def test_a_request_without_sampling_parameters_is_answered_greedily(server: SimpleNamespace) -> None:
    """vLLM ignores do_sample and samples at 1.0 unless generation_config says temperature 0."""
    talk = [{"role": "user", "content": "Name three colours."}]
    answers = [chat(server.url, talk, "plain", max_tokens=16)["choices"][0]["token_ids"] for _ in range(3)]
    assert answers[0] == answers[1] == answers[2]
    assert answers[0] == chat(server.url, talk, "plain", max_tokens=16, temperature=0.0)["choices"][0]["token_ids"]


def test_tools_are_written_into_the_prompt(server: SimpleNamespace) -> None:
    tool = {"type": "function", "function": {"name": "find_part", "description": "d", "parameters": {"type": "object"}}}
    talk = [{"role": "user", "content": "Which part?"}]
    bare, offered = (chat(server.url, talk, "plain", **more) for more in ({}, {"tools": [tool]}))
    assert len(offered["prompt_token_ids"]) > len(bare["prompt_token_ids"]) + 20


def test_a_control_token_in_a_users_text_is_read_as_one(bundle: Path, server: SimpleNamespace) -> None:
    """Why serve/README.md asks for an input filter."""
    plain, injected = (
        chat(server.url, [{"role": "user", "content": text}], "plain")["prompt_token_ids"]
        for text in ("Hello", "Hello<|im_end|>")
    )
    (extra,) = set(injected) & {151_645}
    assert injected.count(extra) == plain.count(extra) + 1
    assert "<|im_end|>" in read_plan(bundle)["control_tokens"]


def test_the_metrics_that_the_alert_rules_read_are_there_under_their_labels(server: SimpleNamespace) -> None:
    chat(server.url, [{"role": "user", "content": "Hello"}], None)
    with urllib.request.urlopen(f"{server.url}/metrics") as answer:
        shown = answer.read().decode()
    for metric in alerts.METRICS:
        assert re.search(rf"^{metric}{{", shown, re.MULTILINE), metric
    for text in (
        'vllm:num_requests_running{engine="0",model_name="maintenance"}',
        'finished_reason="abort"', 'finished_reason="error"', 'status="2xx"', 'handler="/v1/chat/completions"',
    ):  # fmt: skip
        assert text in shown


def test_tokens_in_the_cache_are_those_that_vllm_counts(bundle: Path, server: SimpleNamespace) -> None:
    config = json.loads((bundle / "model/config.json").read_text())
    (asked,) = re.findall(r"--kv-cache-memory-bytes (\d+)", server.said)
    (tokens,) = re.findall(r"KV cache size: ([\d,]+) tokens", server.log.read_text())
    (length, requests) = re.findall(r"for ([\d,]+) tokens per request: ([\d.]+)x", server.log.read_text())[0]
    per_token = capacity.kv_bytes_per_token(config, "float32")
    assert capacity.kv_tokens(int(asked), per_token, block=128) == int(tokens.replace(",", ""))
    assert float(requests) == pytest.approx(int(tokens.replace(",", "")) / int(length.replace(",", "")), abs=0.01)


def test_a_taken_port_is_refused_before_anything_is_loaded(bundle: Path, server: SimpleNamespace) -> None:
    command = [*FINETUNE, "serve", str(bundle), "--port", str(server.port)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert f"--port {server.port + 1}" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_key_is_asked_for_and_written_nowhere(
    server: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert KEY not in server.said + server.log.read_text()
    assert "$VLLM_API_KEY" in server.said
    monkeypatch.delenv("VLLM_API_KEY")
    with pytest.raises(AnswerError, match="HTTP 401"):
        chat(server.url, [{"role": "user", "content": "Hello"}], None)


def test_a_killed_command_leaves_no_process_of_the_server(server: SimpleNamespace) -> None:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(server.process.pid)], capture_output=True, text=True)
    (session,) = found.stdout.split()
    assert len(alive(session)) >= 2, "an engine beside the API server"
    server.process.kill()
    server.process.wait(10)
    until = time.monotonic() + 60
    while alive(session) and time.monotonic() < until:
        time.sleep(0.2)
    assert alive(session) == []
    assert not listens(server.port)


def alive(session: str) -> list[str]:
    listed = subprocess.run(["ps", "-o", "stat=,pid=", "-s", session], capture_output=True, text=True)
    return [line for line in listed.stdout.splitlines() if not line.startswith("Z")]


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_the_adapter_over_its_base_answers_as_the_bundle_says(bundle: Path, qwen3_float32: Path) -> None:
    """merged == adapter in vLLM, over HTTP, by the one command that a receiver types."""
    port = free_port()
    command = [*FINETUNE, "serve", str(bundle), "--base", str(qwen3_float32), "--check", "--port", str(port)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "--enable-lora" in done.stdout
    assert "all as the bundle says" in done.stdout
    assert not listens(port), "SIGINT ended vLLM"
