"""Generation: batches change nothing, and neither do a shared opening, early leavers or an interruption."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from finetune.generate import Kept, common_prefix, generate, plan_batches

SHAPE: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 96,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}


def tiny(kind: str = "llama") -> Any:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE)) if kind == "llama" else Qwen3ForCausalLM(Qwen3Config(**SHAPE))
    return model.float().eval()


def random_prompts(count: int, *, opening: int = 0, seed: int = 0) -> list[list[int]]:
    draw = torch.Generator().manual_seed(seed)
    first = torch.randint(5, 300, (opening,), generator=draw).tolist()
    lengths = torch.randint(1, 40, (count,), generator=draw).tolist()
    return [first + torch.randint(5, 300, (length,), generator=draw).tolist() for length in lengths]


def ask(model: Any, prompts: list[list[int]], **changes: Any) -> list[list[int]]:
    options: dict[str, Any] = {"max_new_tokens": 12, "stop_ids": {1, 2}, "pad_id": 0, "batch_tokens": 200, **changes}
    return generate(model, prompts, **options)


def by_transformers(model: Any, prompt: list[int], new: int, stop: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            do_sample=False,
            eos_token_id=stop,
            pad_token_id=0,
        )
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("opening", [0, 50])
def test_a_batch_answers_as_transformers_does_one_by_one(kind: str, opening: int) -> None:
    model, prompts = tiny(kind), random_prompts(17, opening=opening)
    # Stop ids that greedy answers really contain, so that rows leave the batch at different times.
    free = ask(model, prompts, stop_ids=set())
    stop = sorted({answer[index % 9] for index, answer in enumerate(free)})[:6]
    expected = [by_transformers(model, prompt, 12, stop) for prompt in prompts]
    assert len({len(answer) for answer in expected}) > 2, "all rows stop at once: the test would show nothing"
    assert ask(model, prompts, stop_ids=set(stop)) == expected


def test_the_model_is_left_as_it_was() -> None:
    model = tiny()
    model.train()
    before = model.config._attn_implementation
    ids = torch.tensor([[5, 6, 7]])
    logits = model(ids).logits
    ask(model, random_prompts(3))
    assert model.training
    assert model.config._attn_implementation == before
    assert torch.equal(model(ids).logits, logits)


def test_an_answer_ends_with_its_stop_id_or_at_the_limit() -> None:
    model, prompts = tiny(), random_prompts(9)
    stop = {answer[4] for answer in ask(model, prompts, stop_ids=set())[:4]}
    for answer in ask(model, prompts, stop_ids=stop):
        assert not stop & set(answer[:-1])
        assert answer[-1] in stop or len(answer) == 12


def test_sampling_depends_on_the_seed_and_the_row_and_not_on_the_batch() -> None:
    model, prompts = tiny(), [random_prompts(1, seed=3)[0]] * 6
    wide = ask(model, prompts, temperature=1.0, seed=7, batch_tokens=10_000)
    assert wide == ask(model, prompts, temperature=1.0, seed=7, batch_tokens=1)
    assert wide != ask(model, prompts, temperature=1.0, seed=8)
    assert len({tuple(answer) for answer in wide}) > 1


def test_sampling_draws_each_token_as_often_as_its_probability_says() -> None:
    model, prompt = tiny(), [9, 8, 7]
    with torch.inference_mode():
        expected = torch.softmax(model(torch.tensor([prompt])).logits[0, -1].double() / 1.5, -1)
    drawn = ask(model, [prompt] * 4000, temperature=1.5, max_new_tokens=1, batch_tokens=100_000)
    seen = torch.bincount(torch.tensor([answer[0] for answer in drawn]), minlength=300) / 4000
    error = (expected * (1 - expected) / 4000).sqrt()
    assert ((seen - expected).abs() < 5 * error + 1e-3).all()


def test_an_interrupted_call_goes_on_to_the_same_answers() -> None:
    model, prompts = tiny(), random_prompts(20, opening=30)
    reported: dict[int, list[int]] = {}

    class KilledError(Exception):
        pass

    def stop_after_two(batch: dict[int, list[int]]) -> None:
        reported.update(batch)
        if len(reported) > 8:
            raise KilledError

    with pytest.raises(KilledError):
        ask(model, prompts, on_batch=stop_after_two, batch_tokens=120)
    assert 0 < len(reported) < len(prompts)
    again: list[int] = []
    answers = ask(model, prompts, done=reported, on_batch=lambda batch: again.extend(batch), batch_tokens=120)
    assert answers == ask(model, prompts, batch_tokens=120)
    assert sorted([*again, *reported]) == list(range(20))


def test_a_batch_of_which_only_a_part_was_kept_is_computed_again_as_a_whole() -> None:
    model, prompts = tiny(), random_prompts(8)
    first = plan_batches([len(prompt) for prompt in prompts], 200)[0]
    again: list[int] = []
    ask(model, prompts, done={first[0]: [3]}, on_batch=lambda batch: again.extend(batch))
    assert sorted(again) == list(range(8))


def test_batches_hold_each_row_once_and_no_more_tokens_than_allowed() -> None:
    lengths = [len(prompt) for prompt in random_prompts(100)] + [500]
    batches = plan_batches(lengths, 128)
    assert sorted(row for rows in batches for row in rows) == list(range(101))
    assert all(len(rows) * max(lengths[row] for row in rows) <= 128 for rows in batches if rows != [100])
    assert batches[0] == [100]


def test_the_shared_opening_leaves_every_prompt_a_token_of_its_own() -> None:
    opening = list(range(40))
    assert common_prefix([opening, [*opening, 50], [*opening, 51]]) == 39
    assert common_prefix([[*opening, 50, 60], [*opening, 50, 61]]) == 41
    assert common_prefix([opening[:10], opening[:12]]) == 0
    assert common_prefix([opening]) == 0


def test_kept_answers_survive_a_kill_in_the_middle_of_a_line(tmp_path: Path) -> None:
    kept = Kept(tmp_path / ".answers.jsonl")
    kept.add("task", {3: [1, 2], 0: [4]})
    kept.add("other", {0: [9]})
    whole = kept.file.read_bytes()
    for cut in range(len(whole) + 1):
        kept.file.write_bytes(whole[:cut])
        again = Kept(kept.file)
        first = whole.index(b"\n") + 1
        assert again.of("task") == ({3: [1, 2], 0: [4]} if cut >= first else {})
        assert again.of("other") == ({0: [9]} if cut == len(whole) else {})
        again.add("third", {1: [5]})
        assert Kept(kept.file).of("third") == {1: [5]}


@pytest.mark.slow
def test_the_embedded_model_in_float32_answers_in_batches_as_one_by_one(smollm2: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    shots = "The pump leaks oil. -> pump\nThe left track is loose. -> track\nThe engine will not start. -> engine\n"
    lines = ["The boom cylinder drips.", "Bucket tooth missing.", "Air conditioner blows warm air.", "Horn dead."]
    prompts = [tokenizer(f"{shots}{line} ->")["input_ids"] for line in lines]
    assert common_prefix(prompts) > 0
    stop = {tokenizer.eos_token_id, tokenizer("\n")["input_ids"][0]}
    together = ask(model, prompts, stop_ids=stop, batch_tokens=1000)
    assert together == [by_transformers(model, prompt, 12, sorted(stop)) for prompt in prompts]
