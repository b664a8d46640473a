"""The trained prompt is the served prompt: equality with transformers' apply_chat_template, and the masks."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from finetune.chat import IGNORED, ChatFormat
from finetune.errors import RecipeError

TOOL = {
    "type": "function",
    "function": {
        "name": "find_article",
        "description": "Find an article <by> its number & part; “quoted”.",
        "parameters": {"type": "object", "properties": {"number": {"type": "integer"}}, "required": ["number"]},
    },
}
QUESTION = {"role": "user", "content": 'Which article?\n\n  12 < 13 & "so on" — 第十二条'}
ANSWER = {"role": "assistant", "content": "Article 12."}
THOUGHT = {**ANSWER, "reasoning_content": "It says twelve.\nSo twelve."}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "find_article", "arguments": {"number": 12}}}],
}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "single": [QUESTION],
    "system": [{"role": "system", "content": "Be brief."}, QUESTION],
    "multi_turn": [QUESTION, ANSWER, {"role": "user", "content": "And the next?"}],
    "multi_turn_with_reasoning": [QUESTION, THOUGHT, {"role": "user", "content": "And the next?"}],
    "tool_result": [QUESTION, CALL, {"role": "tool", "content": '{"title": "Definition"}'}],
    "empty_content": [{"role": "user", "content": ""}],
}
TEXTS = ["", " a", "a\n\n b  c\t", "12345 kg", "é e\u0301 ﬁ", "合同法第十二条", "🙂 <|im_end|> x"]


@pytest.fixture(scope="module", params=["tiny_qwen3", "smollm2"])
def directory(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


@pytest.fixture(scope="module")
def chat(directory: Path) -> ChatFormat:
    return ChatFormat.read(directory)


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory)


@pytest.fixture(scope="module")
def qwen3(tiny_qwen3: Path) -> ChatFormat:
    return ChatFormat.read(tiny_qwen3)


@pytest.fixture(scope="module")
def smollm(smollm2: Path) -> ChatFormat:
    return ChatFormat.read(smollm2)


def trained(chat: ChatFormat, labels: list[int]) -> str:
    return chat.decode([label for label in labels if label != IGNORED], skip_special=False)


def masked(chat: ChatFormat, ids: list[int], labels: list[int]) -> str:
    return chat.decode([i for i, label in zip(ids, labels, strict=True) if label == IGNORED], skip_special=False)


@pytest.mark.parametrize("tools", [(), (TOOL,)], ids=["no_tools", "tools"])
@pytest.mark.parametrize("mode", ["plain", "think"])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_prompt_ids_equal_those_of_transformers(
    chat: ChatFormat, tokenizer: Any, name: str, mode: Any, tools: tuple[Any, ...]
) -> None:
    messages = CONVERSATIONS[name]
    served = tokenizer.apply_chat_template(
        messages, tools=list(tools) or None, add_generation_prompt=True, enable_thinking=mode == "think"
    )["input_ids"]
    assert chat.prompt_ids(messages, mode, tools) == served


@pytest.mark.parametrize("text", TEXTS)
def test_encode_equals_transformers_on_any_text(chat: ChatFormat, tokenizer: Any, text: str) -> None:
    assert chat.encode(text) == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_every_template_is_proven_in_plain_mode(chat: ChatFormat) -> None:
    chat.prove("plain")


@pytest.mark.parametrize("mode", ["plain", "think"])
def test_qwen3_is_proven_in_both_modes_with_tools(qwen3: ChatFormat, mode: Any) -> None:
    qwen3.prove(mode, tools=True)
    qwen3.prove_modes(["plain", "think"], mode)


def test_a_template_that_drops_tools_is_refused_by_the_proof(smollm: ChatFormat) -> None:
    with pytest.raises(RecipeError, match=r"tools: the chat template of smollm2\S+ does not write it"):
        smollm.prove("plain", tools=True)


def test_two_modes_of_one_prompt_are_refused(smollm: ChatFormat) -> None:
    """Qwen3#1438: a switch that changes nothing."""
    smollm.prove_modes(["plain"], "plain")
    with pytest.raises(RecipeError, match="one prompt for both"):
        smollm.prove_modes(["plain", "think"], "plain")


def test_a_template_whose_default_is_another_mode_is_refused_with_the_tokens(tiny_qwen3: Path, tmp_path: Path) -> None:
    path = copy(tiny_qwen3, tmp_path / "model")
    template = (path / "chat_template.jinja").read_text()
    quiet = template.replace("enable_thinking is defined and enable_thinking is false", "not enable_thinking")
    (path / "chat_template.jinja").write_text(quiet)
    ChatFormat.read(path).prove_modes(["plain", "think"], "plain")
    with pytest.raises(RecipeError, match=r"from token \d+ on: served \[.*\], rendered \[.*<think>"):
        ChatFormat.read(path).prove_modes(["plain", "think"], "think")


@pytest.mark.parametrize("name", [name for name in CONVERSATIONS if name != "tool_result"])
def test_a_training_row_is_the_served_prompt_and_then_the_answer(chat: ChatFormat, tokenizer: Any, name: str) -> None:
    messages = [*CONVERSATIONS[name], ANSWER]
    row = chat.supervise(messages, "plain")
    served = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, enable_thinking=False)
    prompt = served["input_ids"]
    answer = tokenizer("Article 12.<|im_end|>", add_special_tokens=False)["input_ids"]
    assert row.input_ids == prompt + answer
    assert row.labels == [IGNORED] * len(prompt) + answer


def test_the_end_of_turn_is_trained_and_the_newline_after_it_is_not(chat: ChatFormat) -> None:
    row = chat.supervise([QUESTION, ANSWER], "plain")
    assert row.labels[-1] == row.input_ids[-1] == chat.eos_id
    assert trained(chat, row.labels) == "Article 12.<|im_end|>"


def test_the_empty_think_block_is_prompt_and_not_answer(qwen3: ChatFormat) -> None:
    """LF#10773, LF#9365: the opener on the wrong side of the loss unlearns the mode."""
    row = qwen3.supervise([QUESTION, ANSWER], "plain")
    assert masked(qwen3, row.input_ids, row.labels).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert "think" not in trained(qwen3, row.labels)


def test_reasoning_is_trained_with_both_of_its_tags(qwen3: ChatFormat) -> None:
    row = qwen3.supervise([QUESTION, THOUGHT], "think")
    expected = "<think>\nIt says twelve.\nSo twelve.\n</think>\n\nArticle 12.<|im_end|>"
    assert trained(qwen3, row.labels) == expected
    assert masked(qwen3, row.input_ids, row.labels).endswith("<|im_start|>assistant\n")


def test_each_assistant_turn_is_one_example_with_history_as_served(qwen3: ChatFormat) -> None:
    second = {"role": "assistant", "content": "Article 13.", "reasoning_content": "Twelve plus one."}
    messages = [*CONVERSATIONS["multi_turn_with_reasoning"], second]
    first_row, second_row = qwen3.supervise_turns(messages)
    assert first_row == qwen3.supervise(messages[:2], "think")
    assert trained(qwen3, second_row.labels).endswith("Article 13.<|im_end|>")
    assert "It says twelve" not in qwen3.decode(second_row.input_ids), "serving strips reasoning from history"


def test_a_tool_call_is_trained(qwen3: ChatFormat) -> None:
    text = trained(qwen3, qwen3.supervise([QUESTION, CALL], "plain", [TOOL]).labels)
    assert text == '<tool_call>\n{"name": "find_article", "arguments": {"number": 12}}\n</tool_call><|im_end|>'


def test_no_token_reaches_across_from_prompt_to_answer(smollm: ChatFormat) -> None:
    # "assistant\n" + "\n x" would merge into one token of two newlines, which no server ever sends.
    row = smollm.supervise([QUESTION, {"role": "assistant", "content": "\n x"}], "plain")
    prompt = smollm.prompt_ids([QUESTION], "plain")
    assert row.input_ids[: len(prompt)] == prompt
    assert row.input_ids != smollm.encode(smollm.decode(row.input_ids, skip_special=False))


def test_reasoning_for_a_template_that_drops_it_is_refused(smollm: ChatFormat) -> None:
    with pytest.raises(RecipeError, match=r"(?s)messages\[-1\].reasoning_content=It says.*does not write it"):
        smollm.supervise([QUESTION, THOUGHT], "think")


def test_a_think_row_without_reasoning_is_refused(qwen3: ChatFormat) -> None:
    """Qwen3#1438, Qwen3#1377: trained on absent reasoning, the model thinks nothing when asked to think."""
    with pytest.raises(RecipeError, match="mode think carries the reasoning"):
        qwen3.supervise([QUESTION, ANSWER], "think")


def test_a_plain_row_with_reasoning_is_refused(qwen3: ChatFormat) -> None:
    with pytest.raises(RecipeError, match="mode plain must not carry reasoning"):
        qwen3.supervise([QUESTION, THOUGHT], "plain")


def test_markup_inside_text_is_found(qwen3: ChatFormat) -> None:
    assert qwen3.find_control_token("ignore this <|im_end|> and <think>") == "<|im_end|>"
    assert qwen3.find_control_token("a < b | c [d]") is None


def copy(source: Path, to: Path, **changes: Any) -> Path:
    to.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copy(source / name, to / name)
    settings = json.loads((to / "tokenizer_config.json").read_text())
    settings.update(changes)
    (to / "tokenizer_config.json").write_text(json.dumps(settings))
    return to


def test_pad_equal_to_the_end_of_turn_is_refused(smollm2: Path, tmp_path: Path) -> None:
    """trl#3091, unsloth#416, open-r1#494: the model never stops."""
    with pytest.raises(RecipeError, match="never learn to stop") as caught:
        ChatFormat.read(copy(smollm2, tmp_path / "model", pad_token="<|im_end|>"))
    assert '"pad_token"' in caught.value.problems[0].fix


def test_a_missing_pad_is_refused(smollm2: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no pad token"):
        ChatFormat.read(copy(smollm2, tmp_path / "model", pad_token=None))


def test_an_end_of_turn_at_which_no_server_stops_is_refused(smollm2: Path, tmp_path: Path) -> None:
    path = copy(smollm2, tmp_path / "model", eos_token="<|endoftext|>", pad_token="<repo_name>")
    (path / "generation_config.json").write_text('{"eos_token_id": 0}')
    with pytest.raises(RecipeError, match="serving stops only at"):
        ChatFormat.read(path)


def test_a_template_that_prompts_unlike_it_renders_is_refused_with_the_tokens(smollm2: Path, tmp_path: Path) -> None:
    path = copy(smollm2, tmp_path / "model")
    template = (path / "chat_template.jinja").read_text()
    assert "'<|im_start|>assistant\n'" in template or "assistant\\n" in template
    head, middle, tail = template.rpartition("assistant")
    (path / "chat_template.jinja").write_text(head + "assistant:" + tail if middle else template)
    with pytest.raises(RecipeError, match=r"from token \d+ on: served \[.*\], rendered \[.*\]"):
        ChatFormat.read(path).prove("plain")


def test_a_template_that_writes_todays_date_is_refused(smollm2: Path, tmp_path: Path) -> None:
    path = copy(smollm2, tmp_path / "model")
    template = (path / "chat_template.jinja").read_text()
    (path / "chat_template.jinja").write_text("{{ strftime_now('%d %b %Y') }}" + template)
    with pytest.raises(RecipeError, match="writes today's date"):
        ChatFormat.read(path).prove_modes(["plain"], "plain")


def test_a_result_that_the_template_writes_as_json_is_no_loss(tiny_qwen3: Path, tmp_path: Path) -> None:
    path = copy(tiny_qwen3, tmp_path / "model")
    template = (path / "chat_template.jinja").read_text()
    file, spot = path / "chat_template.jinja", "{{- '\\n<tool_response>\\n' }}\n        {{- content }}"
    assert template.count(spot) == 1
    messages = [QUESTION, CALL, {"role": "tool", "content": 'say "yes"\nor no'}, ANSWER]
    file.write_text(template.replace(spot, spot.replace("content }}", "content | tojson }}")))
    assert ChatFormat.read(path).supervise(messages, "plain", [TOOL]).supervised_tokens
    file.write_text(template.replace(spot, spot.replace("{{- content }}", "")))
    with pytest.raises(RecipeError, match=r"messages\[2\].content=say"):
        ChatFormat.read(path).supervise(messages, "plain", [TOOL])


def test_a_directory_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"tokenizer\.json"):
        ChatFormat.read(tmp_path)


def test_a_directory_without_a_template_is_refused(smollm2: Path, tmp_path: Path) -> None:
    path = copy(smollm2, tmp_path / "model")
    (path / "chat_template.jinja").unlink()
    with pytest.raises(RecipeError, match="no chat template"):
        ChatFormat.read(path)
