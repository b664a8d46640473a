"""What is trained is what is served, token for token, against the exported directory as transformers reads it.

The grid is {think, plain} x {tools or none} x {one turn, several} x {system turn or none}, for Qwen3's real tokenizer
and template and for SmolLM2's; then every row of two real recipes. The exported directory is what MERGE writes.
"""

import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from finetune.base import find_base
from finetune.chat import IGNORED, ChatFormat
from finetune.checkpoint import write_small_files
from finetune.config import load
from finetune.corpus.records import Chat, mode_of
from finetune.errors import RecipeError
from finetune.show import find_prepared

TOOLS = [
    {"type": "function", "function": {
        "name": name, "description": "Finds a <part> & its “number”; 查找.",
        "parameters": {"type": "object", "properties": {"zone": {"type": "string"}, "axis": {"type": "integer"}}},
    }}
    for name in ("find_part", "order_part")
]  # fmt: skip
ASK = {"role": "user", "content": "Which part?\n\n 12 < 13 & “so on” — 第十二条 🙂"}
MORE = {"role": "user", "content": "And the one beside it?"}
SYSTEM = {"role": "system", "content": "You mend machines.\nAnswer briefly."}
RESULT = {"role": "tool", "content": '{"part": "hose", "left": 3}'}
GRID = list(itertools.product(("plain", "think"), ("no_tools", "tools"), ("one_turn", "turns"), ("bare", "system")))


def turn(mode: str, content: str, *calls: str) -> dict[str, Any]:
    made: dict[str, Any] = {"role": "assistant", "content": content}
    if mode == "think":
        made["reasoning_content"] = f"The user wants {content or 'a call'}.\n\nSo be it."
    if calls:
        arguments = {"zone": "left “7”", "axis": 2}
        made["tool_calls"] = [{"type": "function", "function": {"name": n, "arguments": arguments}} for n in calls]
    return made


def conversation(mode: str, tools: str, turns: str, system: str) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = [SYSTEM] if system == "system" else []
    if turns == "turns":
        messages += [ASK, turn(mode, "The hose."), MORE, turn(mode, "The clamp."), MORE]
    else:
        messages += [ASK]
    if tools == "tools":
        messages += [turn(mode, "Let me look.", "find_part", "order_part"), RESULT, RESULT, turn(mode, "", "find_part"),
                     RESULT]  # fmt: skip
    return [*messages, turn(mode, "The pump, and 3 seals.")]


def must_emit(message: dict[str, Any]) -> str:
    """What the model has to write for this message, spelt out here by hand for Qwen3."""
    calls = [
        f'<tool_call>\n{{"name": "{call["function"]["name"]}", "arguments": {{"zone": "left “7”", "axis": 2}}}}'
        "\n</tool_call>"
        for call in message.get("tool_calls", ())
    ]
    thought = f"<think>\n{message['reasoning_content']}\n</think>\n\n" if "reasoning_content" in message else ""
    return thought + "\n".join([*filter(None, [message["content"]]), *calls]) + "<|im_end|>"


@dataclass(frozen=True)
class Exported:
    """A model as it is trained (`chat`), and its exported directory as transformers reads it."""

    chat: ChatFormat
    tokenizer: Any
    directory: Path
    default: str

    def served(self, messages: Any, mode: str | None, tools: Any) -> list[int]:
        """Prompt ids at serving time; mode None is a request that does not say."""
        switch = {} if mode is None else {"enable_thinking": mode == "think"}
        made = self.tokenizer.apply_chat_template(
            [dict(message) for message in messages], tools=list(tools) or None, add_generation_prompt=True, **switch
        )
        ids: list[int] = made["input_ids"]
        return ids

    def check(self, ids: list[int], labels: list[int], messages: Any, mode: str, tools: Any) -> str:
        """Hold one example against its served prompt in both ways of asking; returns the trained text."""
        prompt = self.served(messages, mode, tools)
        assert ids[: len(prompt)] == prompt
        assert labels[: len(prompt)] == [IGNORED] * len(prompt)
        assert labels[len(prompt) :] == ids[len(prompt) :]
        if mode == self.default:
            assert self.served(messages, None, tools) == prompt
        elif self.default == "plain":
            assert self.served(messages, None, tools) != prompt, "a think row is served only when asked for"
        return self.chat.decode(ids[len(prompt) :], skip_special=False)


def export(base: Path, directory: Path, default: str) -> Exported:
    directory.mkdir(parents=True)
    write_small_files(base, directory, dtypes={"BF16"}, default_mode=default)
    return Exported(ChatFormat.read(base), AutoTokenizer.from_pretrained(directory), directory, default)


@pytest.fixture(scope="module", params=["plain", "think"])
def qwen3(request: pytest.FixtureRequest, tiny_qwen3: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(tiny_qwen3, tmp_path_factory.mktemp("qwen3") / "model", request.param)


@pytest.fixture(scope="module")
def smollm(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(smollm2, tmp_path_factory.mktemp("smollm") / "model", "plain")


@pytest.mark.parametrize("case", GRID, ids="-".join)
def test_qwen3_is_trained_on_what_it_is_served(qwen3: Exported, case: tuple[str, str, str, str]) -> None:
    """LF#10773, axolotl#1832, Qwen3#1522, slime#330: prompts, masks and reasoning from the one served template."""
    messages, tools = conversation(*case), TOOLS if case[1] == "tools" else []
    places = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    rows = list(qwen3.chat.supervise_turns(messages, tools))
    assert len(rows) == len(places)
    for row, place in zip(rows, places, strict=True):
        said = qwen3.check(row.input_ids, row.labels, messages[:place], row.mode, tools)
        assert row.mode == case[0]
        assert said == must_emit(messages[place])


@pytest.mark.parametrize("case", GRID, ids="-".join)
def test_smollm2_is_trained_on_what_it_is_served_or_refused(smollm: Exported, case: tuple[str, str, str, str]) -> None:
    messages, tools = conversation(*case), TOOLS if case[1] == "tools" else []
    if case[0] == "think" or tools:
        part = "tools" if tools else r"messages\[-1\].reasoning_content"
        with pytest.raises(RecipeError, match=rf"(?s){part}(=.*)?: the chat template of smollm2\S+ does not write it"):
            list(smollm.chat.supervise_turns(messages, tools))
        return
    places = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    for row, place in zip(smollm.chat.supervise_turns(messages, tools), places, strict=True):
        said = smollm.check(row.input_ids, row.labels, messages[:place], row.mode, tools)
        assert said == must_emit(messages[place])


def test_the_default_mode_is_in_the_generation_config_too(qwen3: Exported, smollm: Exported) -> None:
    """LF#7978, LF#9765: trained on plain answers, served thinking. Thinking keeps its sampling, plain is greedy."""
    made = json.loads((qwen3.directory / "generation_config.json").read_text())
    ends = {"eos_token_id": [151_645, 151_643], "bos_token_id": 151_643, "pad_token_id": 151_643}
    greedy = {"do_sample": False, "temperature": 0.0}
    sampled = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20}
    assert made == {**ends, **(greedy if qwen3.default == "plain" else sampled)}
    assert json.loads((smollm.directory / "generation_config.json").read_text()).items() >= greedy.items()
    assert qwen3.chat.eos_id in made["eos_token_id"], "trl#3091: the model is trained to stop where serving stops"


def test_thinking_of_earlier_turns_is_trained_and_not_served(qwen3: Exported) -> None:
    """ms-swift#4939: each turn's reasoning is learnt in the example of that turn; history holds none, as in serving."""
    rows = list(qwen3.chat.supervise_turns(conversation("think", "no_tools", "turns", "bare")))
    think = qwen3.chat.encode("<think>")[0]
    for row in rows:
        trained = [label for label in row.labels if label != IGNORED]
        assert trained.count(think) == row.input_ids.count(think) == 1


def test_served_history_holds_no_empty_think_block(qwen3: Exported) -> None:
    """ms-swift#9829: one empty block, at the end of the prompt; none in earlier turns, none trained."""
    for row in qwen3.chat.supervise_turns(conversation("plain", "tools", "turns", "system"), TOOLS):
        prompt = qwen3.chat.decode(row.input_ids[: row.labels.count(IGNORED)], skip_special=False)
        assert prompt.count("<think>") == 1
        assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_a_client_that_keeps_reasoning_to_itself_is_served_the_same_prompt(qwen3: Exported) -> None:
    messages = conversation("think", "no_tools", "turns", "system")
    bare = [{key: value for key, value in message.items() if key != "reasoning_content"} for message in messages]
    (*_, row) = qwen3.chat.supervise_turns(messages)
    assert qwen3.check(row.input_ids, row.labels, bare[:-1], "think", [])


def test_modes_may_change_from_turn_to_turn(qwen3: Exported) -> None:
    messages = [ASK, turn("think", "The hose."), MORE, turn("plain", "The clamp."), MORE, turn("think", "The pump.")]
    rows = list(qwen3.chat.supervise_turns(messages))
    assert [row.mode for row in rows] == ["think", "plain", "think"]
    for row, place in zip(rows, (1, 3, 5), strict=True):
        said = qwen3.check(row.input_ids, row.labels, messages[:place], row.mode, [])
        assert said == must_emit(messages[place])


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["legal", "maintenance"])
@pytest.mark.parametrize("model", ["tiny_qwen3", "smollm2_135m"])
def test_every_row_of_a_recipe_is_served_as_it_was_trained(recipe: str, model: str, tmp_path: Path) -> None:
    """LF#9365: no thinking token is ever trained by a plain answer, so that plain rows do not unlearn the mode."""
    words = [f"recipe={recipe}", f"model={model}", f"work={tmp_path / 'work'}"]
    if model == "tiny_qwen3":  # one task of each mode, mixed
        reasoned = {"legal": 'tasks.term.reasoning="Of {broader}."', "maintenance": 'tasks.place.reasoning="{text}"'}
        words += [reasoned[recipe], "prepare.think_share=0.2"]
    loaded = load(words)
    base = find_base(loaded.model)
    prepared = find_prepared(loaded, base)
    made = export(base.path, tmp_path / "model", loaded.model.default_mode)
    seen = dict.fromkeys(loaded.model.modes, 0)
    for side in ("train", "valid"):
        lines = prepared.file(f"{side}.jsonl").read_text().split("\n")[:-1]
        rows = {row["id"]: row for row in pq.read_table(prepared.file(f"sft_{side}.parquet")).to_pylist()}
        for record in map(Chat.from_json, lines):
            row = rows.pop(record.id)
            said = made.check(row["input_ids"], row["labels"], record.prompt, row["mode"], record.tools)
            assert said == must_emit(dict(record.messages[-1]))
            assert ("think>" in said) == (row["mode"] == "think") == (mode_of(record.messages[-1]) == "think")
            seen[record.mode] += 1
        assert all(row["task"] == "replay" and row["labels"] == row["input_ids"] for row in rows.values())
    assert min(seen.values()) > 30
    for record in map(Chat.from_json, prepared.file("test.jsonl").read_text().split("\n")[:-1]):
        asked = made.chat.prompt_ids(record.prompt, record.mode, record.tools)
        assert asked == made.served(record.prompt, record.mode, record.tools)
    if model == "tiny_qwen3":
        train = pq.read_table(prepared.file("sft_train.parquet")).to_pylist()
        share = [row["mode"] for row in train if row["task"] != "replay"].count("think")
        assert share / sum(row["task"] != "replay" for row in train) == pytest.approx(0.2, abs=0.01)


def test_the_grid_would_notice_a_prompt_that_is_one_token_short(qwen3: Exported) -> None:
    messages = conversation("plain", "no_tools", "one_turn", "bare")
    row = qwen3.chat.supervise(messages)
    labels = row.labels.copy()
    first = labels.count(IGNORED)
    labels[first - 1] = row.input_ids[first - 1]
    with pytest.raises(AssertionError):
        qwen3.check(row.input_ids, labels, messages[:-1], "plain", [])
    assert re.search(r"</think>\n\n$", qwen3.chat.decode(row.input_ids[:first], skip_special=False))
