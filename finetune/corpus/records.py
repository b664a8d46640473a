"""Records: one item of data. `Text` for continued pre-training, `Chat` for SFT and evaluation, `Preference` for DPO."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Mode = Literal["plain", "think"]
Message = dict[str, Any]
_LINE_ENDS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}


def mode_of(message: Message) -> Mode:
    """The mode that an assistant's message trains: `think` where it carries reasoning, else `plain`."""
    return "think" if str(message.get("reasoning_content") or "").strip() else "plain"


@dataclass(frozen=True)
class Text:
    """A piece of running text: `group` is what a split must not cut through (document, patient, machine)."""

    id: str
    text: str
    source: str
    line: int
    group: str
    kind: str = "domain"

    def to_json(self) -> str:
        return _line(self)


@dataclass(frozen=True)
class Chat:
    """A conversation in OpenAI message form whose last message is the assistant's gold answer.

    `mode` is `think` when the supervised turns carry `reasoning_content`, else `plain`. `source` and `line` say which
    file and which line (or part) the record came from.
    """

    id: str
    task: str
    messages: tuple[Message, ...]
    source: str
    line: int
    group: str
    mode: Mode = "plain"
    tools: tuple[dict[str, Any], ...] = field(default=())
    choices: tuple[str, ...] = ()
    """The options, where the answer is one of several; they are asked for by likelihood (`score.likelihood`)."""
    passages: dict[str, str] = field(default_factory=dict)
    """Name -> text of what the answer may quote."""
    builder: str = ""
    """Who built this row out of documents: a builder, or `teacher:MODEL`."""
    span: str = ""
    """Where its quote stands: `file:line column[start:end]`."""

    @property
    def prompt(self) -> list[Message]:
        return list(self.messages[:-1])

    @property
    def answer(self) -> str:
        """What a user of the served model should get; tool calls as Qwen3's template (and Hermes') writes them."""
        calls = (call["function"] for call in self.messages[-1].get("tool_calls") or ())
        texts = [f"<tool_call>\n{json.dumps(_ordered(call), ensure_ascii=False)}\n</tool_call>" for call in calls]
        return "\n".join([*filter(None, [str(self.messages[-1]["content"])]), *texts])

    def to_json(self) -> str:
        # What few tasks have is left out where there is none.
        raw = vars(self)
        few = ("choices", "passages", "builder", "span")
        return write_line({key: raw[key] for key in raw if raw[key] or key not in few})

    @classmethod
    def from_json(cls, line: str) -> "Chat":
        raw = json.loads(line)
        several = {key: tuple(raw.get(key, ())) for key in ("messages", "tools", "choices")}
        return cls(**{**raw, **several})


@dataclass(frozen=True)
class Preference:
    """A prompt with a better and a worse answer, each the assistant's next message with all that belongs to it.

    `origin` says where the worse one came from; `held_out` pairs are measured on and never trained. `mode` and `tools`
    are those of the conversation, as in `Chat`.
    """

    id: str
    task: str
    messages: tuple[Message, ...]
    chosen: Message
    rejected: Message
    origin: Literal["ready", "on_policy", "corrupted"]
    group: str
    held_out: bool = False
    mode: Mode = "plain"
    tools: tuple[dict[str, Any], ...] = field(default=())
    score_chosen: float | None = None
    score_rejected: float | None = None

    def to_json(self) -> str:
        return _line(self)

    @classmethod
    def from_json(cls, line: str) -> "Preference":
        raw = json.loads(line)
        return cls(**{**raw, "messages": tuple(raw["messages"]), "tools": tuple(raw.get("tools", ()))})


def _ordered(call: dict[str, Any]) -> dict[str, Any]:
    return {"name": call["name"], "arguments": call["arguments"]}


def _line(record: Any) -> str:
    # Keys keep their order: a template writes tools and arguments in it, and read back they must give the same tokens.
    return write_line(asdict(record))


def write_line(value: Any) -> str:
    """One line of a .jsonl file, for readers that split at every line end that Unicode knows (str.splitlines)."""
    return json.dumps(value, ensure_ascii=False).translate(_LINE_ENDS)
