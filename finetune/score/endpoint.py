"""An OpenAI-compatible server as an `Answerer`: our prompts token for token where it takes them."""

import json
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from finetune.chat import ChatFormat
from finetune.errors import RecipeError
from finetune.score.answers import Answer, Asked, Book, Say
from finetune.score.prompts import after_thoughts
from finetune.serve.ask import as_openai
from finetune.wire import ServerError, Wire, finish_reason

_COMPLETIONS, _CHAT = "/v1/completions", "/v1/chat/completions"
_REFUSED = frozenset({400, 404, 405, 415, 422, 501})
"""What a server says that does not know a path or a key of a request."""
_SHOWN_EVERY = 32
_CUT_OFF = frozenset({"length", "content_filter"})


class Way(NamedTuple):
    """How a prompt is put to a server."""

    path: str
    prompt: str
    """`token ids`, `text` or `messages`."""
    extras: bool
    """vLLM's keys beside OpenAI's: token ids back, and nothing of the sampling defaults that a model directory sets."""


WAYS = (
    Way(_COMPLETIONS, "token ids", True), Way(_COMPLETIONS, "token ids", False), Way(_COMPLETIONS, "text", False),
    Way(_CHAT, "messages", True), Way(_CHAT, "messages", False),
)  # fmt: skip
"""Tried in this order, until the server takes one and counts as many prompt tokens as we do; chat may count others."""


class Endpoint:
    """A model behind `wire`. What it is asked with is the chat format of a model directory of ours."""

    def __init__(
        self, wire: Wire, name: str | None, chat: ChatFormat, books: Path, *, concurrency: int, say: Say,
        about: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """name: of the served model, None where there is only one. about: what is known of it, such as the digest of
        the bundle that we serve ourselves; else it is known by its address and by what /v1/models says of it.

        Raises RecipeError when the server cannot be reached or has no such model.
        """
        self.wire, self._chat, self._concurrency, self._say = wire, chat, concurrency, say
        self.name, served = _choose(wire, name)
        self.book = Book(books, about or {"endpoint": wire.url, **served})
        self.model = self.book.model
        self._way: Way | None = None

    def answer(self, prompts: Sequence[Asked], *, repeat: int = 0) -> list[Answer]:
        """As `Answerer` says. Each answer is kept when it comes; after a failure the message says how many are."""
        missing = {asked.sha256: asked for asked in prompts if self.book.find(asked, repeat) is None}
        if missing:
            self._ask_all(list(missing.values()), repeat)
        found = [self.book.find(asked, repeat) for asked in prompts]
        return [one for one in found if one is not None]

    def likelihoods(self, prompts: Sequence[Asked], choices: Sequence[Sequence[str]]) -> list[list[float]]:
        """Only of a server that tells the log-probs of a prompt's tokens (vLLM). Raises RecipeError of any other."""
        found = []
        for asked, own in zip(prompts, choices, strict=True):
            for choice in own:
                what = f"likelihood of {choice}"
                if self.book.find_value(asked, what) is None:
                    self.book.add_values([(asked, what, self._likelihood(asked, choice))])
            found.append([self.book.find_value(asked, f"likelihood of {choice}") for choice in own])
        return found

    def transport(self, prompts: Sequence[Asked]) -> dict[str, Any]:
        """How these prompts, all answered, were put: {api, prompt: {"token ids": n, ...}, prompt_tokens: {equal,
        differ, unknown}}."""
        noted = [(asked, self.book.noted(asked)) for asked in prompts]
        counts = Counter(
            "unknown" if note.get("prompt_tokens") is None
            else "equal" if note["prompt_tokens"] == len(asked.ids) else "differ"
            for asked, note in noted
        )  # fmt: skip
        return {
            "api": dict(Counter(note["api"] for _, note in noted)),
            "prompt": dict(Counter(note["prompt_as"] for _, note in noted)),
            "prompt_tokens": {kind: counts[kind] for kind in ("equal", "differ", "unknown")},
        }

    def _ask_all(self, missing: list[Asked], repeat: int) -> None:
        """Ask and keep. Raises RecipeError: what was kept, and how to go on."""
        began, kept = time.monotonic(), 0
        try:
            if self._way is None:
                self._try_ways(missing[0], repeat)
                kept += 1
            for _ in self._together(missing[kept:], repeat):
                kept += 1
                if kept % _SHOWN_EVERY == 0 or kept == len(missing):
                    self._say(f"{kept}/{len(missing)} answers, {kept / (time.monotonic() - began):.1f} a second")
        except ServerError as error:
            asked = {asked.sha256 for asked in missing}
            left = sum(self.book.find(asked, repeat) is None for asked in missing)
            raise RecipeError.one(
                self.wire.url, self.name,
                f"{error}; {len(self.book)} answers are kept in {self.book.file}, {left} of {len(asked)} are missing",
                _mend(error),
            ) from error

    def find_way(self, asked: Asked) -> Way:
        """How this server takes prompts; where that is not known yet, `asked` is put to it."""
        if self._way is None:
            try:
                self._try_ways(asked, 0)
            except ServerError as error:
                raise RecipeError.one(self.wire.url, self.name, str(error), _mend(error)) from error
        assert self._way is not None
        return self._way

    def version(self) -> str:
        """What the server calls itself, as vLLM does; else its address."""
        try:
            return f"vllm {self.wire.get('/version')['version']}"
        except (ServerError, KeyError):
            return self.wire.url

    def _try_ways(self, asked: Asked, repeat: int) -> None:
        """The first way that the server takes and by which it reads as many tokens as we meant; `asked` is then kept.

        A server whose chat template is not ours counts others through chat: that is told in the result, not refused.
        """
        refused: ServerError | None = None
        for way in WAYS:
            try:
                answer, counted = self._post(way, asked)
            except ServerError as error:
                if error.status not in _REFUSED:
                    raise
                refused = error
                continue
            if way.path == _COMPLETIONS and counted not in (None, len(asked.ids)):
                self._say(f"given {way.prompt}, it read {counted} prompt tokens in place of {len(asked.ids)}")
                continue
            self._way = way
            self._keep(way, asked, answer, counted, repeat)
            told = "their count is not told" if counted is None else f"{counted} read, {len(asked.ids)} ours"
            self._say(f"{self.name} at {self.wire.url}{way.path}, prompts as {way.prompt} ({told})")
            return
        raise refused or ServerError("it reads other prompts than ours in every way that it takes")

    def _together(self, prompts: Sequence[Asked], repeat: int) -> Iterator[None]:
        """One more answer is kept at each step. After a failure what is under way is waited for and kept as well."""
        assert self._way is not None
        way, failed, rest = self._way, None, iter(prompts)
        with ThreadPoolExecutor(self._concurrency) as pool:
            running: dict[Future[tuple[Answer, int | None]], Asked] = {}
            while True:
                while failed is None and len(running) < self._concurrency and (asked := next(rest, None)) is not None:
                    running[pool.submit(self._post, way, asked)] = asked
                if not running:
                    break
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    asked = running.pop(future)
                    try:
                        answer, counted = future.result()
                    except ServerError as error:
                        failed = failed or error
                        continue
                    self._keep(way, asked, answer, counted, repeat)
                    yield
        if failed is not None:
            raise failed

    def _keep(self, way: Way, asked: Asked, answer: Answer, counted: int | None, repeat: int) -> None:
        noted = {"api": way.path, "prompt_as": way.prompt, "prompt_tokens": counted}
        self.book.add([(asked, answer)], repeat, noted)

    def _post(self, way: Way, asked: Asked) -> tuple[Answer, int | None]:
        """The answer, and how many prompt tokens the server counted (None where it does not say)."""
        began = time.monotonic()
        found, counted = self.wire.post(way.path, self.body(way, asked), lambda reply: self._read(way, asked, reply))
        return replace(found, seconds=time.monotonic() - began), counted

    def body(self, way: Way, asked: Asked) -> dict[str, Any]:
        """A request for a greedy answer."""
        body: dict[str, Any] = {"model": self.name, "temperature": 0, "max_tokens": asked.max_new_tokens}
        if way.prompt == "messages":
            body["messages"] = [as_openai(message) for message in asked.messages]
            body |= {"tools": list(asked.tools)} if asked.tools else {}
            body |= {"chat_template_kwargs": {"enable_thinking": asked.mode == "think"}} if way.extras else {}
        else:
            body["prompt"] = list(asked.ids) if way.prompt == "token ids" else asked.text
            body |= {"stop": [self._chat.end_of_turn]} if not way.extras else {}
        if way.extras:
            body |= {
                "return_token_ids": True, "stop_token_ids": list(self._chat.stop_ids),
                "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
            }  # fmt: skip
        return body

    def _read(self, way: Way, asked: Asked, reply: Mapping[str, Any]) -> tuple[Answer, int | None]:
        (choice,) = reply["choices"]
        raw = _message_text(choice["message"], asked.mode) if way.prompt == "messages" else choice["text"]
        raw.encode()  # half a character pair of JSON is no text
        ended = finish_reason(choice)
        given = choice.get("token_ids")
        ids = None if given is None else tuple(int(token) for token in given)
        usage = reply.get("usage") or {}
        counted = usage.get("prompt_tokens")
        tokens = len(ids) if ids is not None else usage.get("completion_tokens")
        tokens = len(self._chat.encode(raw)) if tokens is None else int(tokens)
        answer = Answer(raw, after_thoughts(raw, asked.mode), ids, ended not in _CUT_OFF, tokens, 0.0)
        return answer, None if counted is None else int(counted)

    def _likelihood(self, asked: Asked, choice: str) -> float:
        ids = self._chat.encode(choice)
        body = {
            "model": self.name, "prompt": [*asked.ids, *ids], "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0
        }  # fmt: skip

        def read(reply: dict[str, Any]) -> float:
            (one,) = reply["choices"]
            told = one["prompt_logprobs"][len(asked.ids) :]
            return math.fsum(float(position[str(token)]["logprob"]) for position, token in zip(told, ids, strict=True))

        try:
            return float(self.wire.post(_COMPLETIONS, body, read))
        except ServerError as error:
            raise RecipeError.one(
                self.wire.url, self.name, f"it does not tell the log-probs of prompt tokens ({error})",
                "vLLM does; leave the tasks that are scored by likelihood out, or score the checkpoint itself",
            ) from error  # fmt: skip


def _choose(wire: Wire, name: str | None) -> tuple[str, dict[str, Any]]:
    """The served model's name and what the server says of it that stays the same when it is started again."""
    try:
        served = {str(one["id"]): one for one in wire.get("/v1/models")["data"]}
    except (ServerError, KeyError, TypeError) as error:
        status = error.status if isinstance(error, ServerError) else None
        if status in _REFUSED and name is not None:
            return name, {"model": name}  # a gateway without a list
        raise RecipeError.one(
            wire.url, name, f"its models cannot be listed ({error})", _mend(error) if isinstance(error, ServerError)
            else "give the address of an OpenAI-compatible server, http://HOST:PORT#MODEL",
        ) from error  # fmt: skip
    if name is None and len(served) == 1:
        name = next(iter(served))
    if name is None or name not in served:
        raise RecipeError.one(
            "endpoint", name, f"{wire.url} serves {', '.join(sorted(served)) or 'nothing'}",
            f"{wire.url}#{next(iter(sorted(served)), 'MODEL')}",
        )  # fmt: skip
    return name, {"model": name} | {key: served[name].get(key) for key in ("root", "parent", "max_model_len")}


def _message_text(message: Mapping[str, Any], mode: str) -> str:
    """A chat message as the model wrote it: its thoughts, its content, its calls as Qwen3's template has them."""
    thoughts = message.get("reasoning_content") or message.get("reasoning")
    content = message.get("content") or ""
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    texts = [
        "<tool_call>\n" + json.dumps(
            {"name": call["name"], "arguments": json.loads(call["arguments"])}, ensure_ascii=False
        ) + "\n</tool_call>"
        for call in calls
    ]  # fmt: skip
    said = "\n".join([*([content] if content else []), *texts])
    # A server that takes the thoughts out of the content says so by giving them apart.
    return f"{thoughts}</think>{said}" if thoughts and mode == "think" and said else f"{thoughts or ''}{said}"


def _mend(error: ServerError) -> str:
    if error.status in (401, 403):
        return "export VLLM_API_KEY=...; the same command goes on"
    return "see to the server; the same command goes on and asks only for what is missing"
