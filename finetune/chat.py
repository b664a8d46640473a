"""Rendering and loss masks per mode: the prompt that is trained on is, token for token, the prompt that is served.

Only tokenizers and jinja2. The prompt comes from the chat template of the model directory with the generation prompt
added, as a server renders it (transformers' apply_chat_template; vLLM calls the same). The answer is what the template
appends to that very prompt, up to and including the end-of-turn token. The two are tokenised apart, because a server
sends the prompt's ids before the model has written anything: no token may reach across the boundary.

Modes: `plain` renders with enable_thinking=False, so that Qwen3's empty think block belongs to the prompt; `think`
renders with enable_thinking=True, so that the reasoning is part of what the model must emit. Absent means True in
Qwen3's template, which is why the flag is always passed.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
from tokenizers import Tokenizer

from finetune.checkpoint import bake_mode
from finetune.corpus.records import Message, Mode, mode_of
from finetune.errors import RecipeError
from finetune.template import environment, read_template

IGNORED = -100
"""The label of a token that is not trained on (torch's cross entropy skips it)."""

_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class Supervised:
    """One training example: `labels[i]` is `input_ids[i]` where the model must emit it, else -100. Equal lengths."""

    input_ids: list[int]
    labels: list[int]
    mode: Mode = "plain"

    @property
    def supervised_tokens(self) -> int:
        return sum(label != IGNORED for label in self.labels)


@dataclass(frozen=True)
class ChatFormat:
    """The chat template and tokenizer of one model directory."""

    directory: Path
    tokenizer: Any
    template: str
    special: Mapping[str, str]
    """`bos_token`, `eos_token`, ... as the template sees them."""
    stop_ids: tuple[int, ...]
    """Ids at which a server stops: tokenizer eos and generation_config's eos_token_id."""

    @classmethod
    def read(cls, directory: Path) -> "ChatFormat":
        """Read tokenizer.json, tokenizer_config.json, chat_template.jinja and generation_config.json.

        Raises RecipeError when one of them is missing, when pad is missing or equals eos, and when the template's end
        of turn is not a token at which a server stops.
        """
        for name in ("tokenizer.json", "tokenizer_config.json"):
            if not (directory / name).is_file():
                raise RecipeError.one(
                    "model.path",
                    str(directory),
                    f"a model directory holds {name}, this one does not",
                    "point model.path at a complete Hugging Face model directory",
                )
        settings = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        special = {name: _token_text(settings[name]) for name in _SPECIAL if settings.get(name)}
        stops: list[Any] = [tokenizer.token_to_id(special["eos_token"])] if "eos_token" in special else []
        generation = directory / "generation_config.json"
        if generation.is_file():
            more = json.loads(generation.read_text(encoding="utf-8")).get("eos_token_id") or []
            stops += [more] if isinstance(more, int) else more
        chat = cls(directory, tokenizer, read_template(directory, settings), special, tuple(dict.fromkeys(stops)))
        chat._check()
        return chat

    @cached_property
    def eos_id(self) -> int:
        """The end-of-turn id: the last token of every supervised answer."""
        return int(self.tokenizer.token_to_id(self.end_of_turn))

    @cached_property
    def pad_id(self) -> int:
        return int(self.tokenizer.token_to_id(self.special["pad_token"]))

    @cached_property
    def end_of_turn(self) -> str:
        """The special token the template puts after an assistant's answer, found by rendering a probe."""
        probe = [{"role": "user", "content": "ping"}, {"role": "assistant", "content": "pong"}]
        tail = self._render(probe, "plain", (), generate=False).rpartition("pong")[2].strip()
        if tail not in self.control_tokens:
            raise RecipeError.one(
                "model.path",
                str(self.directory),
                f"the chat template must close an answer with one special token, it writes {tail!r}",
                "use an instruction-tuned model, or give its directory a chat_template.jinja that closes the turn",
            )
        return tail

    @cached_property
    def control_tokens(self) -> frozenset[str]:
        """Every added token (`<|im_end|>`, `<think>`, ...): in running text it would be read as markup."""
        return frozenset(token.content for token in self.tokenizer.get_added_tokens_decoder().values())

    def find_control_token(self, text: str) -> str | None:
        """The first control token that stands in `text`, or None."""
        found = self._control_pattern.search(text)
        return found.group() if found else None

    @cached_property
    def _control_pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self.control_tokens, key=lambda token: (-len(token), token))
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def prompt_text(self, messages: Sequence[Message], mode: Mode | None = "plain", tools: Sequence[Any] = ()) -> str:
        """What a server feeds the model for these messages, as text: ends with the generation prompt.

        `mode` None is a request that names none: the template decides.
        """
        return self._render(messages, mode, tools, generate=True)

    def prompt_ids(
        self, messages: Sequence[Message], mode: Mode | None = "plain", tools: Sequence[Any] = ()
    ) -> list[int]:
        """What a server feeds the model for these messages, as token ids."""
        return self.encode(self.prompt_text(messages, mode, tools))

    def answer_text(self, messages: Sequence[Message], mode: Mode = "plain", tools: Sequence[Any] = ()) -> str:
        """What the model must emit for the last message: reasoning in think mode, content, calls, the end of turn.

        Raises RecipeError where the template cannot be proven to continue the served prompt with the last message.
        """
        return self._answer_text(messages, mode, tools, self.prompt_text(messages[:-1], mode, tools))

    def _answer_text(self, messages: Sequence[Message], mode: Mode, tools: Sequence[Any], prompt: str) -> str:
        last = messages[-1]
        assert last["role"] == "assistant", "the last message must be the assistant's"
        self._check_mode(last, mode)
        whole = self._render(messages, mode, tools, generate=False)
        if not whole.startswith(prompt):
            raise self._unproven(prompt, whole)
        answer, end, rest = whole[len(prompt) :].rpartition(self.end_of_turn)
        if not end or rest.strip() or self.end_of_turn in answer:
            raise self._unproven(prompt + str(last.get("content") or "") + self.end_of_turn, whole)
        for part in ("reasoning_content", "content"):
            if str(last.get(part) or "").strip() not in answer:
                raise self._not_written(f"messages[-1].{part}", str(last[part]))
        for name in _called(last):
            if name not in answer:
                raise self._not_written("messages[-1].tool_calls", name)
        return answer + end

    def supervise(self, messages: Sequence[Message], mode: Mode = "plain", tools: Sequence[Any] = ()) -> Supervised:
        """The last assistant turn as a training example: prompt ids masked, answer ids trained, nothing after them.

        Raises RecipeError for what the template would drop in silence: tools, calls, results, reasoning, any text.
        """
        text = self.prompt_text(messages[:-1], mode, tools)
        self._check_written(messages[:-1], mode, tools, text)
        prompt = self.encode(text)
        answer = self.encode(self._answer_text(messages, mode, tools, text))
        assert answer[-1] == self.eos_id, "an answer ends with the end of turn"
        return Supervised(prompt + answer, [IGNORED] * len(prompt) + answer, mode)

    def supervise_turns(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> Iterator[Supervised]:
        """One example for each assistant turn, its history rendered as a server would have sent it at that moment.

        A turn with reasoning trains thinking mode, one without trains plain mode. One row with several trained turns
        would be wrong for Qwen3: serving strips reasoning from history and writes no empty block there.
        """
        for index, message in enumerate(messages):
            if message["role"] == "assistant":
                yield self.supervise(messages[: index + 1], mode_of(message), tools)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; control tokens in it are read as such, nothing is added."""
        # The same ids as `encode` gives in two thirds of its time: places in the text are not asked for.
        ids: list[int] = self.tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return ids

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=skip_special)
        return text

    def prove(self, mode: Mode = "plain", *, tools: bool = False) -> None:
        """Raise RecipeError unless, for probe conversations, prompt + answer ids equal the whole rendering's ids.

        Probes: with and without system turn and history; with `tools` also offered tools, calls and their results.
        """
        for messages, offered in _probes(mode, tools):
            apart = self.supervise(messages, mode, offered).input_ids
            whole = self.encode(self._render(messages, mode, offered, generate=False))[: len(apart)]
            if apart != whole:
                raise self._differing(apart, whole)

    def prove_modes(self, modes: Sequence[Mode], default: Mode) -> None:
        """Raise RecipeError unless each mode has a prompt of its own, and the exported template, asked for none, gives
        the default's (enable_thinking absent means thinking in Qwen3's template, so the default is written into it)."""
        if "strftime_now" in self.template:
            raise RecipeError.one(
                "model.path",
                str(self.directory),
                "its chat template writes today's date, so that no later prompt is the one that was trained",
                "give the directory a chat_template.jinja with a fixed date; it is exported with the model",
            )
        exported = replace(self, template=bake_mode(self.template, default))
        for messages, offered in _probes("plain", tools=False):
            prompts = {mode: self.prompt_text(messages[:-1], mode, offered) for mode in modes}
            if len(set(prompts.values())) < len(modes):
                raise RecipeError.one(
                    "model.modes",
                    list(modes),
                    f"the chat template of {self.directory.name} gives one prompt for both (no enable_thinking)",
                    f"model.modes=[{default}]",
                )
            served = exported._render(messages[:-1], None, offered, generate=True)
            if served != prompts[default]:
                raise self._unproven(prompts[default], served)

    def _render(self, messages: Sequence[Message], mode: Mode | None, tools: Sequence[Any], *, generate: bool) -> str:
        """`mode` None leaves enable_thinking out, as a request does that names no mode."""
        switch = {} if mode is None else {"enable_thinking": mode == "think"}
        try:
            return self._compiled.render(
                messages=[dict(message) for message in messages],
                tools=list(tools) or None,
                documents=None,
                add_generation_prompt=generate,
                **switch,
                **self.special,
            )
        except jinja2.TemplateError as error:
            raise RecipeError.one(
                "model.path",
                str(self.directory),
                f"its chat template refuses this conversation ({error})",
                "change the order or the roles of the messages, or choose another model",
            ) from error

    @cached_property
    def _compiled(self) -> jinja2.Template:
        return environment().from_string(self.template)

    def _check(self) -> None:
        pad = self.special.get("pad_token")
        if pad is None or self.tokenizer.token_to_id(pad) is None:
            raise RecipeError.one(
                "model.path",
                str(self.directory),
                "its tokenizer names no pad token",
                'set "pad_token" in tokenizer_config.json to an unused special token, never to the end of turn',
            )
        if self.pad_id == self.eos_id:
            raise RecipeError.one(
                "model.path",
                str(self.directory),
                f"pad and end of turn are the same token {pad!r}: masking the padding would mask the stop sign, "
                "and the model would never learn to stop",
                'set "pad_token" in tokenizer_config.json to another special token, like "<|endoftext|>"',
            )
        if self.eos_id not in self.stop_ids:
            raise RecipeError.one(
                "model.path",
                str(self.directory),
                f"the template ends a turn with {self.end_of_turn!r} ({self.eos_id}), but serving stops only at "
                f"{list(self.stop_ids)}",
                "add that id to eos_token_id in generation_config.json",
            )

    def _check_written(self, messages: Sequence[Message], mode: Mode, tools: Sequence[Any], prompt: str) -> None:
        if tools and prompt == self.prompt_text(messages, mode):
            raise self._not_written("tools", None)
        for index, message in enumerate(messages):
            content = str(message.get("content") or "").strip()
            quoted = json.dumps(content, ensure_ascii=False)[1:-1]  # some templates write a tool's result as JSON
            if content not in prompt and quoted not in prompt:
                raise self._not_written(f"messages[{index}].content", str(message["content"]))
            for name in _called(message):
                if name not in prompt:
                    raise self._not_written(f"messages[{index}].tool_calls", name)

    def _not_written(self, part: str, value: str | None) -> RecipeError:
        return RecipeError.one(
            part,
            value,
            f"the chat template of {self.directory.name} does not write it, so it cannot be trained",
            "choose a model whose template does, or leave this part out of the task",
        )

    def _check_mode(self, last: Message, mode: Mode) -> None:
        reasoning = str(last.get("reasoning_content") or "").strip()
        if mode == "think" and not reasoning:
            raise RecipeError.one(
                "messages[-1].reasoning_content",
                None,
                "a row of mode think carries the reasoning to be learnt",
                "give the task a `reasoning` template, or train it in mode plain",
            )
        if mode == "plain" and reasoning:
            raise RecipeError.one(
                "messages[-1].reasoning_content",
                reasoning,
                "a row of mode plain must not carry reasoning",
                "remove the reasoning, or train the row in mode think",
            )

    def _unproven(self, expected: str, whole: str) -> RecipeError:
        return self._differing(self.encode(expected), self.encode(whole))

    def _differing(self, ours: Sequence[int], theirs: Sequence[int]) -> RecipeError:
        pairs = enumerate(zip(ours, theirs, strict=False))
        at = next((i for i, (a, b) in pairs if a != b), min(len(ours), len(theirs)))
        served, rendered = (self._show(ids, at) for ids in (ours, theirs))
        return RecipeError.one(
            "model.path",
            str(self.directory),
            f"its chat template renders a finished conversation unlike what serving sends, from token {at} on: "
            f"served {served}, rendered {rendered}",
            "use the chat_template.jinja that the model was published with, or one that only appends",
        )

    def _show(self, ids: Sequence[int], at: int) -> str:
        window = ids[max(0, at - 2) : at + 4]
        return "[" + " ".join(f"{i}:{self.decode([i], skip_special=False)!r}" for i in window) + "]"


def _called(message: Message) -> Iterator[str]:
    """Names of the functions that an assistant's message calls, and of their arguments."""
    for call in message.get("tool_calls") or ():
        yield call["function"]["name"]
        yield from call["function"]["arguments"]


_TOOL = {
    "type": "function",
    "function": {
        "name": "find_unit",
        "description": "Find a unit by its number.",
        "parameters": {"type": "object", "properties": {"number": {"type": "integer"}}, "required": ["number"]},
    },
}


def _probes(mode: Mode, tools: bool) -> Iterator[tuple[list[Message], list[Any]]]:
    """(conversation whose last turn is trained, tools offered)."""
    thought = {"reasoning_content": "The tooth broke. It is on the left."} if mode == "think" else {}
    final: Message = {"role": "assistant", "content": "Replaced the left bucket tooth.", **thought}
    question: Message = {"role": "user", "content": "What was done?\n\nLH tooth broken, 12 h."}
    history = [question, {"role": "assistant", "content": "Which unit?"}, {"role": "user", "content": "Unit 7."}]
    system: Message = {"role": "system", "content": "Answer briefly."}
    for before in ([question], history, [system, *history]):
        yield [*before, final], []
    if tools:
        call: Message = {"type": "function", "function": {"name": "find_unit", "arguments": {"number": 7}}}
        calling: Message = {"role": "assistant", "content": "", "tool_calls": [call], **thought}
        result: Message = {"role": "tool", "content": '{"unit": "pump"}'}
        for before in ([question], [system, *history]):
            yield [*before, calling], [_TOOL]
            yield [*before, calling, result, final], [_TOOL]


def _token_text(token: Any) -> str:
    """A token in tokenizer_config.json is a string or the dict form of an AddedToken."""
    return str(token["content"]) if isinstance(token, dict) else str(token)
