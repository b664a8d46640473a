"""An endpoint as an answerer, against a real HTTP server: faults, what is kept, and that prompts are ours."""

import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from handmade import chats
from local_server import NO_ANSWERS, serving

from finetune.chat import ChatFormat
from finetune.errors import RecipeError
from finetune.score.answers import Asked, Book
from finetune.score.endpoint import Endpoint
from finetune.wire import Wire


@pytest.fixture(scope="module")
def chat(tiny_qwen3: Path) -> ChatFormat:
    return ChatFormat.read(tiny_qwen3)


@pytest.fixture(scope="module")
def prompts(chat: ChatFormat) -> list[Asked]:
    rows = chats("test", 5)
    return [Asked.render(chat, row.prompt, row.mode, row.tools, max_new_tokens=8) for row in rows]


def connect(url: str, chat: ChatFormat, books: Path, pauses: list[float] | None = None, **changes: Any) -> Endpoint:
    wait = (lambda _: None) if pauses is None else pauses.append
    wire = Wire(url, timeout=changes.pop("timeout", 5.0), tries=changes.pop("tries", 3), wait=wait)
    return Endpoint(wire, None, chat, books, concurrency=changes.pop("concurrency", 1), say=lambda _: None)


def test_prompts_are_ours_token_for_token_and_answers_are_asked_once(chat, prompts, tmp_path) -> None:
    with serving(chat) as server:
        first = connect(server.url, chat, tmp_path, concurrency=3)
        answers = first.answer(prompts)
        assert sorted(map(tuple, server.prompts)) == sorted(asked.ids for asked in prompts)
        assert [answer.text for answer in answers] == [f"answer {len(asked.ids)}" for asked in prompts]
        assert all(answer.ids == (1, 2, 3) and answer.finished and answer.tokens == 3 for answer in answers)
        again = connect(server.url, chat, tmp_path)
        assert again.answer(prompts) == answers
        assert len(server.asked) == len(prompts), "a second report costs nothing"
        again.answer(prompts[:2], repeat=1)
        assert len(server.asked) == len(prompts) + 2, "a repeat is asked anew"
        told = again.transport(prompts)
        assert told["prompt"] == {"token ids": len(prompts)}
        assert told["prompt_tokens"] == {"equal": len(prompts), "differ": 0, "unknown": 0}


@pytest.mark.parametrize(
    ("takes", "extra", "prompt", "api", "equal"),
    [
        (("token ids",), 0, "token ids", "/v1/completions", True),
        (("text",), 0, "text", "/v1/completions", True),
        (("text", "messages"), 1, "messages", "/v1/chat/completions", False),
        (("messages", "extras"), 0, "messages", "/v1/chat/completions", True),
    ],
)  # fmt: skip
def test_the_way_that_the_server_takes_is_found_and_told(
    takes, extra, prompt, api, equal, chat, prompts, tmp_path
) -> None:
    with serving(chat, takes=takes, extra_tokens=extra) as server:
        endpoint = connect(server.url, chat, tmp_path)
        endpoint.answer(prompts)
        told = endpoint.transport(prompts)
    assert (told["api"], told["prompt"]) == ({api: len(prompts)}, {prompt: len(prompts)})
    assert told["prompt_tokens"]["equal" if equal else "differ"] == len(prompts)


@pytest.mark.parametrize("fault", ["slow", "429", "500", "garbage", "deep garbage", "cut", *NO_ANSWERS])
def test_a_fault_that_passes_is_asked_again_and_one_that_stays_ends_with_what_was_kept(
    fault, chat, prompts, tmp_path
) -> None:
    """Half an answer of a server that was being stopped was kept for good, and a text that was null as "None"."""
    with serving(chat) as server:
        pauses: list[float] = []
        endpoint = connect(server.url, chat, tmp_path, pauses, timeout=0.4)
        server.faults = ["", "", fault]
        assert len(endpoint.answer(prompts[:4])) == 4
        assert len(server.asked) == 5, "one more than there are prompts"
        assert pauses == ([7.0] if fault == "429" else [0.5]), "Retry-After is honoured"
        server.faults, server.asked = ["", fault, fault, fault], []
        with pytest.raises(RecipeError) as caught:
            endpoint.answer(prompts)
        kept = len(Book(tmp_path, endpoint.book.about))
        message = str(caught.value)
        assert len(server.asked) == 1 + 3, "no prompt is asked more often than it may be"
        assert kept == 5
        assert f"{kept} answers are kept in {endpoint.book.file}, 5 of 6 are missing" in message
        assert "the same command goes on" in message
        server.faults, server.asked = [], []
        assert len(connect(server.url, chat, tmp_path).answer(prompts)) == len(prompts)
        assert len(server.asked) == len(prompts) - kept, "only what is missing is asked"


def test_a_refused_connection_and_a_wrong_name_are_told(chat, prompts, tmp_path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{probe.getsockname()[1]}"
    pauses: list[float] = []
    with pytest.raises(RecipeError, match=r"cannot be listed \(no answer .*goes on and asks only for what is missing"):
        connect(nobody, chat, tmp_path, pauses)
    assert pauses == [0.5, 1.0]
    with serving(chat) as server:
        wire = Wire(server.url + "/v1", timeout=5, tries=1)
        with pytest.raises(RecipeError, match=r"serves tuned.*#tuned"):
            Endpoint(wire, "other", chat, tmp_path, concurrency=1, say=print)
        server.faults = ["denied"]
        with pytest.raises(RecipeError, match="VLLM_API_KEY"):
            connect(server.url, chat, tmp_path).answer(prompts)
        assert len(server.asked) == 1, "what will not pass is not asked again"
    with pytest.raises(RecipeError) as caught:
        Wire("http://me:secret@127.0.0.1:1", timeout=1, tries=1)
    assert "secret" not in str(caught.value)


def test_a_pause_of_hours_is_not_waited_for(chat, prompts, tmp_path) -> None:
    from finetune.wire import _pause

    assert _pause("120") == 120.0
    assert _pause("soon") == 0.0
    in_a_minute = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 60))
    assert 50 < _pause(in_a_minute) <= 60


def test_answers_that_were_under_way_when_one_failed_are_kept(chat, prompts, tmp_path) -> None:
    with serving(chat) as server:
        endpoint = connect(server.url, chat, tmp_path, concurrency=3, tries=1)
        server.faults, server.pause = ["", "500"], 0.2
        with pytest.raises(RecipeError, match="HTTP 500"):
            endpoint.answer(prompts)
        assert len(Book(tmp_path, endpoint.book.about)) == len(server.asked) - 1


def test_a_key_is_sent_to_the_server_and_stands_nowhere_on_disk(chat, prompts, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "s3cret-key")
    with serving(chat) as server:
        connect(server.url, chat, tmp_path).answer(prompts[:1])
        assert server.keys == {"Bearer s3cret-key"}
    assert all(b"s3cret" not in file.read_bytes() for file in tmp_path.iterdir())


def test_a_torn_line_is_asked_again_and_never_joined_with_the_next(chat, prompts, tmp_path) -> None:
    with serving(chat) as server:
        endpoint = connect(server.url, chat, tmp_path)
        endpoint.answer(prompts[:3])
        content = endpoint.book.file.read_bytes()
        endpoint.book.file.write_bytes(content[:-20])
        server.asked = []
        assert len(connect(server.url, chat, tmp_path).answer(prompts[:4])) == 4
        assert len(server.asked) == 2
    torn = 0
    for line in endpoint.book.file.read_bytes().split(b"\n")[:-1]:
        try:
            json.loads(line)
        except ValueError:
            torn += 1
    assert torn == 1
    assert len(Book(tmp_path, endpoint.book.about)) == 4
