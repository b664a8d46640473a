"""HTTP to an OpenAI-compatible server: limited retries with growing pauses, and one message when nothing helps."""

import email.utils
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Self

import httpx2

from finetune.errors import RecipeError

_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses that may pass."""
UNFINISHED = frozenset({"abort", "error", "cancelled"})
"""finish_reason of what a server that is stopped or broken lets go of: no answer, and never kept as one."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 60.0
_CONNECT_SECONDS = 10.0
_SHOWN = 200


class ServerError(Exception):
    """No answer could be had. `status`: what the server said last; None where it said nothing that is HTTP."""

    def __init__(self, words: str, status: int | None = None, *, passing: bool = False, pause: float = 0.0) -> None:
        super().__init__(words)
        self.status, self.passing, self.pause = status, passing, pause


class Wire:
    """A connection to `url`. Safe to use from several threads at once."""

    def __init__(
        self, url: str, *, timeout: float, tries: int, wait: Callable[[float], None] = time.sleep,
        key: str = "VLLM_API_KEY",
    ) -> None:  # fmt: skip
        """timeout: seconds without a byte until a request counts as lost; tries: of each request, the first included.
        key: the environment variable whose value is sent as the key where it is set.

        Raises RecipeError for what is no http address, and for one that carries a password.
        """
        self.url, self._tries, self._wait = url.rstrip("/").removesuffix("/v1"), tries, wait
        try:
            parsed = httpx2.URL(self.url)
        except httpx2.InvalidURL as error:
            raise RecipeError.one("endpoint", url, f"no address ({error})", "http://HOST:PORT#MODEL") from error
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise RecipeError.one("endpoint", url, "no http address", "http://HOST:PORT#MODEL")
        if parsed.userinfo:
            raise RecipeError.one(
                "endpoint", f"{parsed.scheme}://...@{parsed.host}", "a password in an address ends in logs and reports",
                f"leave it out and export {key}=...",
            )  # fmt: skip
        secret = os.environ.get(key)
        own = parsed.host in ("localhost", "127.0.0.1", "::1")
        self._client = httpx2.Client(
            timeout=httpx2.Timeout(timeout, connect=min(timeout, _CONNECT_SECONDS), pool=None),
            headers={"Authorization": f"Bearer {secret}"} if secret else {},
            limits=httpx2.Limits(max_connections=None),
            trust_env=not own,  # a proxy knows nothing of this machine's own addresses
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def get(self, path: str) -> dict[str, Any]:
        return self._persist(lambda: self._json(self._client.build_request("GET", self.url + path)))

    def post(self, path: str, body: Mapping[str, Any], read: Callable[[dict[str, Any]], Any]) -> Any:
        """`read` of the JSON object that came; a body that `read` cannot use (KeyError ...) is asked for again.

        Raises ServerError when all tries failed, at once for a status that will not pass.
        """

        def once() -> Any:
            found = self._json(self._client.build_request("POST", self.url + path, json=dict(body)))
            try:
                return read(found)
            except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
                shown = json.dumps(found)[:_SHOWN]
                raise ServerError(f"no answer of this kind ({error!r}): {shown}", passing=True) from error

        return self._persist(once)

    @contextmanager
    def stream(self, path: str, body: Mapping[str, Any]) -> Iterator[Iterator[dict[str, Any]]]:
        """Server-sent events as JSON objects, up to [DONE]. Not tried again here. Raises ServerError, also for a stream
        that ends without [DONE]."""
        request = self._client.build_request("POST", self.url + path, json={**body, "stream": True})
        try:
            answer = self._client.send(request, stream=True)
            try:
                if answer.status_code != 200:
                    answer.read()
                    raise _refused(answer)
                yield _events(answer)
            finally:
                answer.close()
        except (httpx2.HTTPError, httpx2.StreamError) as error:
            raise ServerError(_said(error), passing=True) from error

    def _json(self, request: httpx2.Request) -> dict[str, Any]:
        try:
            answer = self._client.send(request)
        except httpx2.HTTPError as error:
            raise ServerError(_said(error), passing=True) from error
        if answer.status_code != 200:
            raise _refused(answer)
        try:
            found = json.loads(answer.content)
        except (ValueError, RecursionError) as error:
            shown = answer.content[:_SHOWN].decode("utf-8", "replace")
            raise ServerError(f"what came is no JSON: {shown!r}", 200, passing=True) from error
        if not isinstance(found, dict):
            raise ServerError(f"what came is no JSON object: {answer.text[:_SHOWN]!r}", 200, passing=True)
        return found

    def _persist(self, once: Callable[[], Any]) -> Any:
        for number in range(1, self._tries + 1):
            try:
                return once()
            except ServerError as error:
                pause = max(error.pause, min(_FIRST_PAUSE * 2 ** (number - 1), _LONGEST_PAUSE))
                if not error.passing or number == self._tries:
                    raise
                if error.pause > _LONGEST_PAUSE:
                    words = f"{error}; it asks for a pause of {error.pause:.0f} s"
                    raise ServerError(words, error.status) from error
                self._wait(pause)
        raise AssertionError("at least one try")


def finish_reason(choice: Mapping[str, Any]) -> str:
    """Why an answer ended. Raises KeyError or ValueError where the server did not finish it."""
    ended = choice["finish_reason"]
    if ended is None or ended in UNFINISHED:
        raise ValueError(f"finish_reason {ended!r}: the server did not finish this answer")
    return str(ended)


def _events(answer: httpx2.Response) -> Iterator[dict[str, Any]]:
    for line in answer.iter_lines():
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        try:
            event = json.loads(data)
        except ValueError as error:
            raise ServerError(f"an event that is no JSON: {data[:_SHOWN]!r}", 200, passing=True) from error
        if not isinstance(event, dict) or "error" in event:
            raise ServerError(f"an event that is no answer: {data[:_SHOWN]}", 200, passing=True)
        yield event
    raise ServerError("the stream ended before its [DONE]", 200, passing=True)


def _refused(answer: httpx2.Response) -> ServerError:
    words = f"HTTP {answer.status_code}: {answer.text[:_SHOWN].strip()}"
    pause = _pause(answer.headers.get("Retry-After"))
    return ServerError(words, answer.status_code, passing=answer.status_code in _AGAIN, pause=pause)


def _pause(header: str | None) -> float:
    """Retry-After in seconds: a number or a date (RFC 9110, 10.2.3); 0 where it is neither."""
    if header is None:
        return 0.0
    if header.strip().isdigit():
        return float(header)
    try:
        when = email.utils.parsedate_to_datetime(header)
    except ValueError:
        return 0.0
    return max(0.0, (when.astimezone(UTC) - datetime.now(UTC)).total_seconds())


def _said(error: Exception) -> str:
    what = "no answer within the time limit" if isinstance(error, httpx2.TimeoutException) else "no answer"
    return f"{what} ({type(error).__name__}: {error})"
