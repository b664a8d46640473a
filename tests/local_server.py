"""A real OpenAI-compatible HTTP server of a few lines, with faults on order: nothing of the client is replaced."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any

NO_ANSWERS: dict[str, dict[str, Any]] = {
    "shape": {"choices": []},
    "aborted": {
        "choices": [{"text": "half an ans", "message": {"content": "half an ans"}, "finish_reason": "abort"}],
    },
    "open end": {"choices": [{"text": "half an ans", "finish_reason": None}]},
    "no text": {"choices": [{"text": None, "finish_reason": "stop"}]},
    "half a pair": {"choices": [{"text": "\ud800", "finish_reason": "stop"}]},
    "odd usage": {"choices": [{"text": "words", "finish_reason": "stop"}], "usage": [7]},
}
"""What a server that is stopped, overloaded or broken sends in good JSON."""


class Local(ThreadingHTTPServer):
    """Answers `answer N`, N being the number of prompt tokens that it read."""

    daemon_threads = True

    def __init__(self, takes: Sequence[str], chat: Any, extra_tokens: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.takes, self.chat, self.extra_tokens = takes, chat, extra_tokens
        self.faults: list[str] = []
        """Each is what happens to one request, in their order; without one it is answered."""
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.keys: set[str | None] = set()
        self.lock = Lock()
        self.pause = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def prompts(self) -> list[Any]:
        return [body.get("prompt", body.get("messages")) for _, body in self.asked]

    def next_fault(self) -> str:
        with self.lock:
            return self.faults.pop(0) if self.faults else ""

    def handle_error(self, *_: Any) -> None:
        """A client that gave up is part of a test."""


class Handler(BaseHTTPRequestHandler):
    server: Local

    def do_GET(self) -> None:
        if self.path == "/version":
            self.send({"version": "0.test"})
        else:
            self.send({"data": [{"id": "tuned", "root": "model", "created": time.time()}]})

    retry_after = "7"

    def asked(self) -> dict[str, Any]:
        """The request's body, noted."""
        body: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked.append((self.path, body))
            self.server.keys.add(self.headers["Authorization"])
        return body

    def failed(self, fault: str) -> bool:
        """Whether the fault was all the answer."""
        if fault == "429":
            self.send({"error": "too many"}, 429, {"Retry-After": self.retry_after})
        elif fault == "500":
            self.send({"error": "out of memory"}, 500)
        elif fault == "garbage":
            self.raw(b"<html>the gateway is tired</html>")
        elif fault == "deep garbage":
            self.raw(b"[" * 100_000)
        elif fault in NO_ANSWERS:
            self.send(NO_ANSWERS[fault])
        elif fault == "cut":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"choices": [')
            self.connection.close()
        elif fault == "denied":
            self.send({"error": "no key"}, 401)
        else:
            return False
        return True

    def do_POST(self) -> None:
        body, fault = self.asked(), self.server.next_fault()
        if self.failed(fault):
            return None
        if fault == "slow":
            time.sleep(1.5)
        kind = "messages" if "messages" in body else "token ids" if isinstance(body["prompt"], list) else "text"
        if kind not in self.server.takes:
            return self.send({"error": f"no {kind} here"}, 400)
        if "return_token_ids" in body and "extras" not in self.server.takes:
            return self.send({"error": "unknown key"}, 400)
        return self.stream(body, fault) if body.get("stream") else self.answer(kind, body)

    def count(self, body: dict[str, Any]) -> int:
        if "messages" in body:
            text = self.server.chat.prompt_text(body["messages"], "plain")
            return len(self.server.chat.encode(text)) + self.server.extra_tokens
        prompt = body["prompt"]
        return len(prompt) if isinstance(prompt, list) else len(self.server.chat.encode(prompt)) + (
            self.server.extra_tokens)  # fmt: skip

    def answer(self, kind: str, body: dict[str, Any]) -> None:
        time.sleep(self.server.pause)
        read = self.count(body)
        text = f"answer {read}"
        said: dict[str, Any] = {"message": {"content": text}} if kind == "messages" else {"text": text}
        usage = {"prompt_tokens": read, "completion_tokens": 3}
        ids = {"token_ids": [1, 2, 3]} if "return_token_ids" in body else {}
        if "prompt_logprobs" in body:  # as vLLM: nothing is known of the first token
            said["prompt_logprobs"] = [None, *({str(token): {"logprob": -1.0}} for token in body["prompt"][1:])]
        self.send({"choices": [{**said, **ids, "finish_reason": "stop"}], "usage": usage})

    def stream(self, body: dict[str, Any], fault: str) -> None:
        self.send_response(200)
        self.end_headers()
        for number in range(4):
            time.sleep(self.server.pause)
            self.event({"choices": [{"text": f"w{number} ", "finish_reason": None}]})
            if fault == "cut stream" and number == 1:
                return
        if fault == "aborted stream":
            self.event({"choices": [{"text": "", "finish_reason": "abort"}]})
        self.event({"choices": [], "usage": {"prompt_tokens": self.count(body), "completion_tokens": 4}})
        self.wfile.write(b"data: [DONE]\n\n")

    def event(self, value: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(value).encode() + b"\n\n")
        self.wfile.flush()

    def send(self, value: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.raw(json.dumps(value).encode(), status, headers)

    def raw(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Nobody reads it."""


@contextmanager
def serving(chat: Any, *, takes: Sequence[str] = ("token ids", "extras"), extra_tokens: int = 0) -> Iterator[Local]:
    server = Local(takes, chat, extra_tokens)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
