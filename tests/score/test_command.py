"""`finetune score` on an endpoint and on a model directory: alone, kept, and asked for only once."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from local_server import serving

from finetune import cli, handoff
from finetune.chat import ChatFormat
from finetune.config import load
from finetune.errors import RecipeError
from finetune.score import latency, stage
from finetune.score.endpoint import Endpoint
from finetune.train import identity
from finetune.wire import ServerError, Wire

WORDS = [
    "recipe=maintenance", "model=tiny_qwen3", "machine=cpu", "machine.threads=1", "tasks.fields.train_rows=24",
    "tasks.fields.valid_rows=4", "tasks.fields.test_rows=6", "tasks.place.train_rows=8", "tasks.place.valid_rows=2",
    "tasks.place.test_rows=3", "tasks.fields.max_new_tokens=3", "tasks.place.max_new_tokens=3", "sft.max_length=512",
]


@pytest.fixture(scope="module")
def chat(tiny_qwen3: Path) -> ChatFormat:
    return ChatFormat.read(tiny_qwen3)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Path) -> Path:
    folder = tmp_path_factory.mktemp("scoring") / "work"
    assert cli.main(["prepare", *WORDS, f"work={folder}"]) == 0
    return folder


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "scores.json").read_text(encoding="utf-8"))


def test_an_endpoint_is_scored_alone_and_goes_on_after_a_fault(chat, work, tmp_path, capsys) -> None:
    with serving(chat) as server:
        words = ["score", f"{server.url}#tuned", *WORDS, f"work={work}", "--out", str(tmp_path), "--tries", "1"]
        server.faults = ["", "", "", "", "500"]
        assert cli.main([*words, "--concurrency", "1"]) == 2
        assert "4 answers are kept" in capsys.readouterr().err
        assert not (tmp_path / "scores.json").exists()
        server.asked = []
        assert cli.main(words) == 0
        rows = sum(task["n"] for task in read(tmp_path)["tasks"])
        assert len(server.asked) == rows - 4, "what was kept is not asked again"
        first, lines = read(tmp_path), (tmp_path / "answers.jsonl").read_bytes()
        printed = capsys.readouterr().out
        assert f"kept:   {rows} answers of this model in {work / 'answers'}" in printed
        assert all(f" {task['n']} " in printed and task["metric"] in printed for task in first["tasks"])
        assert "4 of them are from earlier calls" in printed, "nobody knows whether the same weights are served"
        assert cli.main(words) == 0
        assert len(server.asked) == rows - 4, "a second report costs nothing"
    assert read(tmp_path) == first
    assert (tmp_path / "answers.jsonl").read_bytes() == lines
    assert first["asked_through"]["prompt_tokens"] == {"equal": rows, "differ": 0, "unknown": 0}
    answered = [json.loads(line) for line in lines.splitlines()]
    for task in first["tasks"]:
        own = [line["score"] for line in answered if (line["task"], line["system"]) == (task["name"], "model")]
        assert task["model"] == pytest.approx(sum(own) / task["n"])
        assert task["ci95"][0] <= task["model"] <= task["ci95"][1]


def test_a_task_that_is_scored_by_likelihood_is_asked_of_a_server_too(chat, tmp_path) -> None:
    """Its prompts get no written answer, so that nothing is told of how these were put."""
    words = [*WORDS, "tasks.place.metric=multiple_choice", "tasks.place.choices=['{functional_location}','the moon']"]
    with serving(chat) as server:
        target = ["score", server.url, *words, f"work={tmp_path / 'work'}", "--out", str(tmp_path)]
        assert cli.main(target) == 0
        alone = Endpoint(Wire(server.url, timeout=5, tries=1), None, chat, tmp_path, concurrency=1, say=print)
        assert alone.transport([])["prompt_tokens"] == {"equal": 0, "differ": 0, "unknown": 0}
    found = read(tmp_path)
    tasks = {task["name"]: task for task in found["tasks"]}
    assert found["asked_through"]["prompt_tokens"]["equal"] == tasks["fields"]["n"] == 6
    asked = [body for _, body in server.asked if "prompt_logprobs" in body]
    assert len(asked) == 2 * tasks["place"]["n"] == 6
    lines = map(json.loads, (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines())
    scored = [line for line in lines if (line["task"], line["system"]) == ("place", "model")]
    assert all(
        line["log_probs"] == [-1.0 * len(chat.encode(option)) for option in (line["gold"], "the moon")]
        for line in scored
    )


@pytest.mark.slow
def test_a_model_directory_gives_the_answers_that_a_served_one_would_be_asked_for(
    chat, work, tmp_path, tiny_qwen3
) -> None:
    words = ["score", str(tiny_qwen3), *WORDS, f"work={work}", "--out", str(tmp_path)]
    assert cli.main(words) == 0
    first = read(tmp_path)
    assert first["asked_through"] == {"api": "in process", "prompt": "token ids"}
    assert all(task["tokens_mean"] <= 3 for task in first["tasks"])
    assert cli.main(words) == 0
    assert read(tmp_path) == first


def test_what_cannot_be_scored_is_told(work, tmp_path, tiny_qwen3, capsys) -> None:
    torn = shutil.copytree(tiny_qwen3, tmp_path / "torn")
    (torn / "model.safetensors").write_bytes((tiny_qwen3 / "model.safetensors").read_bytes()[:1000])
    for words, said in (
        ([str(torn)], "model.safetensors"),
        ([str(tmp_path)], "no model directory, no bundle and no address"),
        (["http://127.0.0.1:9", "--timeout", "0"], "--timeout=0.0: must be more than 0"),
        (["http://"], "no http address"),
    ):
        assert cli.main(["score", *words, *WORDS, f"work={work}"]) == 2
        assert said in capsys.readouterr().err


def test_latency_is_of_streamed_answers_and_counts_what_was_lost(chat, work, tmp_path, capsys) -> None:
    with serving(chat) as server:
        server.pause = 0.05  # each of four pieces
        words = ["score", server.url, *WORDS, f"work={work}", "--latency", "--requests", "20", "--concurrency", "2"]
        assert cli.main([*words, "--out", str(tmp_path)]) == 0
        found = json.loads((tmp_path / "latency.json").read_text(encoding="utf-8"))
        assert (found["requests"], found["concurrency"], found["failed"]) == (20, 2, 0)
        for key, least in (("ttft_s", 0.05), ("token_s", 0.05), ("answer_s", 0.2)):
            assert least <= found[key]["p50"] <= found[key]["p95"] < least + 0.3
        assert found["server"] == "vllm 0.test"
        assert found["tokens"]["answer_mean"] == 4
        timed = [body for _, body in server.asked if body.get("stream")]
        assert len(timed) == 20 + 2 * 2
        warm = {tuple(body["prompt"]) for body in timed[:4]}
        assert not warm & {tuple(body["prompt"]) for body in timed[4:]}, "what warms up is not what is timed"
        recipe = load([*WORDS, f"score.latency_file={tmp_path / 'latency.json'}"])
        assert found["weights"] is None, "nobody knows what an address serves"
        assert identity(recipe, handoff.Config)["latency"] == found
        assert identity(recipe, stage.Config) == identity(load(WORDS), stage.Config), "it scores nothing anew"
        with pytest.raises(RecipeError, match=r"no latency\.json can be read"):
            load([*WORDS, "score.latency_file=nowhere.json"]).latency  # noqa: B018
        server.faults = [""] * 5 + ["cut stream"] * 2  # after the one that finds the way and four that warm up
        assert cli.main([*words, "--out", str(tmp_path / "lossy")]) == 0
        lossy = json.loads((tmp_path / "lossy" / "latency.json").read_text(encoding="utf-8"))
        assert lossy["failed"] == 2
        assert lossy["ttft_s"]["p95"] < 1
        assert lossy["answer_s"]["p95"] is None, "a tenth never ended"
        assert load([*WORDS, f"score.latency_file={tmp_path / 'lossy' / 'latency.json'}"]).latency == lossy
        server.faults = ["cut stream"] * 25
        assert cli.main([*words, "--out", str(tmp_path / "none")]) == 2
        assert "20 of 20 requests failed" in capsys.readouterr().err
        assert not (tmp_path / "none" / "latency.json").exists()


def test_a_cut_stream_is_no_answer(chat, work, tmp_path) -> None:
    from finetune.score.answers import Asked

    asked = Asked.render(chat, [{"role": "user", "content": "What broke?"}], "plain", max_new_tokens=8)
    with serving(chat) as server:
        endpoint = Endpoint(Wire(server.url, timeout=5, tries=1), None, chat, tmp_path, concurrency=1, say=print)
        endpoint.answer([asked])
        timed = latency.stream_once(endpoint, asked)
        assert timed.tokens == 4
        assert 0 < timed.first <= timed.whole
        server.faults = ["cut stream", "aborted stream"]
        with pytest.raises(ServerError, match=r"ended before its \[DONE\]"):
            latency.stream_once(endpoint, asked)
        with pytest.raises(ServerError, match="did not finish"):
            latency.stream_once(endpoint, asked)


def test_percentiles_are_numpys() -> None:
    import numpy as np

    values = [math.sin(number) ** 2 for number in range(37)]
    ours = latency._percentiles(values)
    assert ours is not None
    assert ours["p50"] == pytest.approx(np.percentile(values, 50), abs=1e-4)
    assert ours["p95"] == pytest.approx(np.percentile(values, 95), abs=1e-4)


def test_a_request_that_never_ends_is_among_the_slowest() -> None:
    """6 of 64 timed out, and 95 of 100 were told to be fast."""
    for lost, finite in ((0, True), (3, True), (4, False), (6, False)):
        found = latency._percentiles([*[0.5] * (64 - lost), *[math.inf] * lost])
        assert found == {"p50": 0.5, "p95": 0.5 if finite else None}
    assert latency._percentiles([0.1, math.inf, math.inf]) == {"p50": None, "p95": None}
