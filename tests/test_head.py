"""The lean head gives TRL's numbers: what it leaves out changes nothing."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, set_seed
from trl.trainer.utils import add_fused_lm_head

from finetune.head import score_supervised_only
from tests import tiny

OUTPUTS = ("log_probs", "entropy", "log_sum_sq_probs", "is_top1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_base(tmp_path_factory.mktemp("base")).path


def adapted(folder: Path, attention: str, *, lean: bool, pairs: bool = False) -> torch.nn.Module:
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention)
    set_seed(0)
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    add_fused_lm_head(model.get_base_model(), outputs=OUTPUTS)
    if lean:
        score_supervised_only(model.get_base_model(), outputs=OUTPUTS, pairs=pairs)
    return model.train()


def rows(lengths: list[int], supervised: list[int]) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    width = max(lengths)
    ids, mask = torch.randint(4, 99, (len(lengths), width)), torch.zeros(len(lengths), width, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for row, (length, count) in enumerate(zip(lengths, supervised, strict=True)):
        mask[row, :length] = 1
        ids[row, length:] = 0
        labels[row, length - count : length] = ids[row, length - count : length]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def gradients(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> tuple[object, torch.Tensor]:
    scored = model(**batch, use_cache=False, fused_lm_head=True)
    scored.loss.backward()
    return scored, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def read_lengths(model: torch.nn.Module) -> list[int]:
    """How many positions each later call puts through the embedding, and how many through the head."""
    seen: list[int] = []
    base = model.get_base_model()
    base.get_input_embeddings().register_forward_hook(lambda _, given, __: seen.append(given[0].numel()))
    return seen


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_scores_and_gradients_equal_trls_own_head(folder: Path, attention: str) -> None:
    batch = rows([17, 30, 22], [5, 11, 1])
    with torch.no_grad():
        probe = adapted(folder, attention, lean=True)(**batch, use_cache=False, fused_lm_head=True)
    assert not probe.entropy.any(), "TRL's own head answered, so nothing was compared"
    ours, our_gradient = gradients(adapted(folder, attention, lean=True), batch)
    theirs, their_gradient = gradients(adapted(folder, attention, lean=False), batch)
    for field in ("loss", "log_probs", "log_sum_sq_probs"):
        torch.testing.assert_close(ours[field], theirs[field], atol=2e-6, rtol=1e-5)
    assert torch.equal(ours["is_top1"], theirs["is_top1"])
    assert torch.equal(ours["label_mask"], theirs["label_mask"])
    torch.testing.assert_close(our_gradient, their_gradient, atol=1e-6, rtol=1e-4)


def test_padding_never_enters_the_model(folder: Path) -> None:
    batch = rows([17, 30, 22], [5, 11, 1])
    lean = adapted(folder, "eager", lean=True)
    seen = read_lengths(lean)
    gradients(lean, batch)
    assert seen == [17 + 30 + 22]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("supervised", "shared"), [([5, 11, 1, 3], 9), ([5, 11, 16, 3], 5), ([5, 11, 22, 3], 0)])
def test_a_start_that_all_rows_share_is_read_once(
    folder: Path, attention: str, supervised: list[int], shared: int
) -> None:
    """Nine tokens, or as many of them as no row has scored. Recomputation gives the same."""
    batch = rows([17, 30, 22, 21], supervised)
    batch["input_ids"][1:, :9] = batch["input_ids"][0, :9]
    batch["labels"] = torch.where(batch["labels"] == -100, -100, batch["input_ids"])
    lean = adapted(folder, attention, lean=True)
    seen = read_lengths(lean)
    ours, our_gradient = gradients(lean, batch)
    assert seen == [17 + 30 + 22 + 21 - 3 * shared]
    theirs, their_gradient = gradients(adapted(folder, attention, lean=False), batch)
    torch.testing.assert_close(ours["log_probs"], theirs["log_probs"], atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(our_gradient, their_gradient, atol=1e-6, rtol=1e-4)
    lean.zero_grad()
    lean.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    assert torch.equal(gradients(lean, batch)[1], our_gradient)


def test_where_noise_is_drawn_for_every_token_of_every_row_nothing_is_shared(folder: Path) -> None:
    batch = rows([17, 30], [5, 11])
    batch["input_ids"][1, :9] = batch["input_ids"][0, :9]
    lean = adapted(folder, "eager", lean=True)
    seen = read_lengths(lean)
    base = lean.get_base_model()
    dropout = base.model.layers[0].self_attn.q_proj.lora_dropout["default"] = torch.nn.Dropout(0.0)
    for owner, name, value in (
        (dropout, "p", 0.5), (base.config, "attention_dropout", 0.5),
        (base.get_input_embeddings(), "neftune_noise_alpha", 5.0),
    ):  # fmt: skip
        quiet = getattr(owner, name, 0.0)
        setattr(owner, name, value)
        gradients(lean, batch)
        assert seen.pop() == 17 + 30, name
        lean.eval()
        gradients(lean, batch)
        assert seen.pop() == 17 + 30 - 9, "nothing is drawn in an evaluation"
        setattr(owner, name, quiet)
        lean.train()
    gradients(lean, batch)
    assert seen == [17 + 30 - 9]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_prompt_read_once_scores_both_answers_as_if_read_twice(folder: Path, attention: str) -> None:
    batch = rows([20, 25, 16, 31], [6, 9, 7, 15])  # pairs (0, 2) and (1, 3): prompts of 14, 16, 9, 16
    ids, labels = batch["input_ids"], batch["labels"]
    ids[2, :9] = ids[0, :9]
    labels[0, 9:20] = ids[0, 9:20]
    ids[3, :16] = ids[1, :16]
    lean = adapted(folder, attention, lean=True, pairs=True)
    seen = read_lengths(lean)
    ours, our_gradient = gradients(lean, batch)
    assert seen == [2 * 40], "two joined rows of at most 16 + 9 + 15 tokens instead of four of 31"
    theirs, their_gradient = gradients(adapted(folder, attention, lean=False), batch)
    torch.testing.assert_close(ours["log_probs"], theirs["log_probs"], atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(our_gradient, their_gradient, atol=1e-6, rtol=1e-4)


def test_left_padding_is_not_mistaken_for_right_padding(folder: Path) -> None:
    batch = rows([10, 10], [4, 4])
    padded = {
        "input_ids": torch.nn.functional.pad(batch["input_ids"], (3, 0)),
        "attention_mask": torch.nn.functional.pad(batch["attention_mask"], (3, 0)),
        "labels": torch.nn.functional.pad(batch["labels"], (3, 0), value=-100),
    }
    ours, _ = gradients(adapted(folder, "eager", lean=True), padded)
    theirs, _ = gradients(adapted(folder, "eager", lean=False), padded)
    torch.testing.assert_close(ours["log_probs"], theirs["log_probs"])


def test_generation_is_left_alone_where_pairs_are_trained(folder: Path) -> None:
    batch = rows([12], [4])
    lean, plain = adapted(folder, "sdpa", lean=True, pairs=True).eval(), adapted(folder, "sdpa", lean=False).eval()
    with torch.no_grad():
        torch.testing.assert_close(lean(batch["input_ids"]).logits, plain(batch["input_ids"]).logits)
