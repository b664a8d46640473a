"""The golden prompts of a bundle, asked through /v1/chat/completions and compared token by token."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.errors import RecipeError
from finetune.parity import may_swap
from finetune.serve.server import AnswerError, fetch


@dataclass(frozen=True)
class Compared:
    """What one prompt showed. `problem` is empty where all is as the bundle says."""

    prompt_tokens: int
    answer_tokens: int
    compared: int
    """Answer tokens up to the first flip at a near-tie; behind it the texts go different ways."""
    largest: float
    """Largest difference of a log-prob, nats."""
    problem: str

    def __str__(self) -> str:
        if self.problem:
            return f"WRONG: {self.problem}"
        tie = "" if self.compared == self.answer_tokens else f", then a near-tie: {self.compared} compared"
        return (
            f"{self.prompt_tokens} prompt ids equal, {self.answer_tokens} answer ids{tie}, "
            f"log-probs within {self.largest:.2g}"
        )


def read_golden(bundle: Path) -> list[dict[str, Any]]:
    file = bundle / "golden.jsonl"
    if not file.is_file():
        raise RecipeError.one(str(file), None, "there are no golden prompts to ask", "leave --check out")
    found = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    if not found:
        raise RecipeError.one(str(file), None, "no golden prompt stands in it", "leave --check out")
    return found


def chat(url: str, model: str, line: Mapping[str, Any], dtype: str) -> dict[str, Any] | str:
    """`{prompt_token_ids, token_ids, logprobs}` of a greedy answer, or what came instead of one."""
    body: dict[str, Any] = {
        "model": model, "messages": [as_openai(message) for message in line["messages"]], "temperature": 0.0,
        "max_tokens": len(line["expected"][dtype]["token_ids"]), "logprobs": True, "return_token_ids": True,
    }  # fmt: skip
    if line["tools"]:
        body["tools"] = line["tools"]
    if line["mode"] is not None:
        body["chat_template_kwargs"] = {"enable_thinking": line["mode"] == "think"}
    try:
        answer = fetch(f"{url}/v1/chat/completions", body)
    except AnswerError as error:
        return str(error)
    try:
        (choice,) = answer["choices"]
        prompt = [int(token) for token in answer["prompt_token_ids"]]
        tokens = [int(token) for token in choice["token_ids"]]
        logprobs = [float(token["logprob"]) for token in choice["logprobs"]["content"]]
    except (KeyError, TypeError, ValueError) as error:
        return f"the answer holds no token ids with log-probs ({error!r}): a server or gateway that drops them?"
    if len(logprobs) != len(tokens) or not all(map(math.isfinite, logprobs)):
        return f"{len(tokens)} answer ids came with {len(logprobs)} log-probs: {logprobs[:4]}"
    return {"prompt_token_ids": prompt, "token_ids": tokens, "logprobs": logprobs}


def compare(line: Mapping[str, Any], answer: Mapping[str, Any] | str, dtype: str, tolerance: float) -> Compared:
    """Prompt ids exactly; answer ids exactly but for flips that rounding decides; log-probs within `tolerance`."""
    expected = line["expected"][dtype]
    wanted, prompt = expected["token_ids"], line["prompt_token_ids"]
    if isinstance(answer, str):
        return Compared(len(prompt), len(wanted), 0, 0.0, answer)
    if answer["prompt_token_ids"] != prompt:
        return Compared(len(prompt), len(wanted), 0, 0.0, _differing("prompt", prompt, answer["prompt_token_ids"]))
    got = answer["token_ids"]
    pairs = enumerate(zip(wanted, got, strict=False))
    same = next((at for at, (ours, theirs) in pairs if ours != theirs), min(len(wanted), len(got)))
    gaps = [abs(a - b) for a, b in zip(expected["logprobs"][:same], answer["logprobs"][:same], strict=True)]
    largest = max(gaps, default=0.0)
    problem = ""
    if largest > tolerance:
        problem = f"the log-prob of token {gaps.index(largest)} is off by {largest:.3g} nats"
    elif (same < len(wanted) or same < len(got)) and not _near_tie(expected, same, tolerance):
        problem = _differing("answer", wanted, got)
    return Compared(len(prompt), len(wanted), same, largest, problem)


def _near_tie(expected: Mapping[str, Any], at: int, tolerance: float) -> bool:
    """Where HANDOFF saw one, or where `tolerance` makes one: an adapter beside its base has a wider one."""
    margins = expected["margins"]
    return at < len(margins) and (at in expected["near_ties"] or may_swap(margins[at], tolerance))


def _differing(what: str, ours: list[int], theirs: list[int]) -> str:
    pairs = enumerate(zip(ours, theirs, strict=False))
    at = next((at for at, (a, b) in pairs if a != b), min(len(ours), len(theirs)))
    return f"{what} ids differ from {at} on: {ours[at : at + 4]} expected, {theirs[at : at + 4]} served"


def as_openai(message: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a called function are an object in our records and a string in this API."""
    if not message.get("tool_calls"):
        return dict(message)
    calls = [
        {
            "id": f"call_{number}", "type": "function",
            "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])},
        }
        for number, call in enumerate(message["tool_calls"])
    ]  # fmt: skip
    return {**message, "tool_calls": calls}
