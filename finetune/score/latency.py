"""How fast a server answers: time to first token, time per further token, whole answers, at a stated concurrency."""

import math
import platform
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from typing import Any

from finetune.errors import RecipeError
from finetune.memory import here
from finetune.score.answers import Asked, Say
from finetune.score.endpoint import Endpoint
from finetune.score.questions import Questions
from finetune.wire import UNFINISHED, ServerError

_WARM = 2
"""Requests of each place that are not timed: the first ones of a server wait for what it prepares."""


@dataclass(frozen=True)
class Timed:
    """Seconds of one answer: to its first token, and to its end; how many tokens it had."""

    first: float
    whole: float
    tokens: int


def measure(
    endpoint: Endpoint, questions: Questions, *, requests: int, concurrency: int, say: Say
) -> dict[str, Any]:
    """latency.json: {concurrency, requests, failed, ttft_s, token_s, answer_s: {p50, p95}, server, machine, ...}.

    Test prompts of all tasks in turn, each with its task's max_new_tokens; after the last one it begins anew. The
    prompts that warm the server up are the last ones, so that it has not cached those that are timed. A request that
    failed never ended: answer_s counts it as infinitely slow, and a percentile that falls on such ones is None. Raises
    RecipeError when the server cannot be asked, or when more than a tenth of the requests fail.
    """
    prompts = _in_turn(questions)
    warm, timed = _choose(prompts, concurrency * _WARM, requests)
    way = endpoint.find_way(prompts[0])
    say(f"latency: {len(warm)} requests to warm up, then {requests}, {concurrency} at a time")
    _together(endpoint, warm, concurrency)
    began = time.monotonic()
    found = _together(endpoint, timed, concurrency)
    seconds = time.monotonic() - began
    good = [one for one in found if isinstance(one, Timed)]
    lost = [one for one in found if isinstance(one, ServerError)]
    if len(lost) > requests / 10 or not good:
        raise RecipeError.one(
            "--latency", endpoint.name, f"{len(lost)} of {requests} requests failed, the first with: {lost[0]}",
            "see to the server, or ask for a lower --concurrency; nothing was written",
        )  # fmt: skip
    return {
        "schema_version": "1",
        "concurrency": concurrency,
        "requests": requests,
        "failed": len(lost),
        "ttft_s": _percentiles([one.first for one in good]),
        "token_s": _percentiles([(one.whole - one.first) / (one.tokens - 1) for one in good if one.tokens > 1]),
        "answer_s": _percentiles([*(one.whole for one in good), *(math.inf for _ in lost)]),
        "tokens": {"prompt_mean": _mean([len(asked.ids) for asked in timed]), "answer_mean": _mean(
            [one.tokens for one in good]), "per_second": round(sum(one.tokens for one in good) / seconds, 2)},
        "server": endpoint.version(),
        "model": endpoint.name,
        "model_digest": endpoint.model,
        "api": way.path,
        "machine": machine(),
        "date": datetime.now(UTC).date().isoformat(),
    }  # fmt: skip


def stream_once(endpoint: Endpoint, asked: Asked, clock: Callable[[], float] = time.monotonic) -> Timed:
    """One streamed answer. Raises ServerError, also for a stream that was cut or brought no token."""
    way = endpoint.find_way(asked)
    body = {**endpoint.body(way, asked), "stream_options": {"include_usage": True}}
    began, first, last, pieces, counted = clock(), math.nan, math.nan, 0, None
    with endpoint.wire.stream(way.path, body) as events:
        for event in events:
            counted = (event.get("usage") or {}).get("completion_tokens", counted)
            if any(choice.get("finish_reason") in UNFINISHED for choice in event.get("choices") or ()):
                raise ServerError("the server did not finish this answer")
            if not any(_brings(choice) for choice in event.get("choices") or ()):
                continue
            last, pieces = clock(), pieces + 1
            first = last if math.isnan(first) else first
    if not pieces:
        raise ServerError("the stream ended without a token")
    return Timed(first - began, last - began, int(counted or pieces))


def machine() -> str:
    """Where the measurement ran: of a remote server its own machine is not known here."""
    found = here()
    gpus = f"{len(found.gpus)} x {found.gpus[0].name}, " if found.gpus else ""
    return f"{gpus}{found.cores} CPU cores ({_processor()})"


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _brings(choice: dict[str, Any]) -> bool:
    delta = choice.get("delta") or {}
    return bool(choice.get("text") or choice.get("token_ids") or any(
        delta.get(key) for key in ("content", "reasoning", "reasoning_content", "tool_calls")
    ))  # fmt: skip


def _in_turn(questions: Questions) -> list[Asked]:
    turns = zip_longest(*(questions.asked(task) for task in questions.rows))
    return [asked for turn in turns for asked in turn if asked is not None]


def _choose(prompts: Sequence[Asked], warm: int, requests: int) -> tuple[list[Asked], list[Asked]]:
    held = min(warm, max(1, len(prompts) // 4))
    others = prompts[: len(prompts) - held] or prompts
    return (
        [prompts[len(prompts) - 1 - number % held] for number in range(warm)],
        [others[number % len(others)] for number in range(requests)],
    )


def _together(endpoint: Endpoint, prompts: Sequence[Asked], concurrency: int) -> list[Timed | ServerError]:
    def one(asked: Asked) -> Timed | ServerError:
        try:
            return stream_once(endpoint, asked)
        except ServerError as error:  # not tried again: a lost request is part of what is measured
            return error

    with ThreadPoolExecutor(concurrency) as pool:
        return list(pool.map(one, prompts))


def _percentiles(values: Sequence[float]) -> dict[str, float | None] | None:
    if not values:
        return None
    ordered = sorted(values)
    found = {f"p{share}": _quantile(ordered, share / 100) for share in (50, 95)}
    return {name: round(value, 4) if math.isfinite(value) else None for name, value in found.items()}


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Linear between the two nearest, as numpy's default."""
    place = share * (len(ordered) - 1)
    low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
    return low if low == high or place == math.floor(place) else low + (high - low) * (place - math.floor(place))


def _mean(values: Sequence[float]) -> float:
    return round(math.fsum(values) / len(values), 1)
