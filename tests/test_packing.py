"""Packed == unpacked: a document in a pack gets the loss and the gradient that it gets alone, and no other sees it."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, set_seed
from trl.trainer.utils import add_fused_lm_head

from finetune import artifacts, cli, sft
from finetune.artifacts import Artifact
from finetune.attention import _KERNELS, _attend, _group, attend_documents
from finetune.errors import RecipeError
from finetune.head import score_supervised_only
from finetune.order import pack_room, place_rows
from tests import tiny

pytestmark = pytest.mark.slow

LENGTHS = [40, 23, 2, 28, 17, 9, 34, 20]
PACKS = [[0, 1, 2], [3, 4, 5], [6, 7]]


def documents(vocabulary: int) -> dict[str, list[Any]]:
    """Rows of a prepared file: the second half of each is supervised, and one of them (CPT) throughout."""
    draw = torch.Generator().manual_seed(3)
    ids = [torch.randint(10, vocabulary, (length,), generator=draw).tolist() for length in LENGTHS]
    labels = [[-100] * (len(row) // 2) + row[len(row) // 2 :] for row in ids]
    labels[3] = list(ids[3])
    return {"id": [f"row-{n}" for n in range(len(ids))], "input_ids": ids, "labels": labels}


@pytest.fixture(scope="module", params=["qwen3", "smollm2"])
def bare(request: pytest.FixtureRequest) -> torch.nn.Module:
    """A float32 model with an adapter that is not inert: tiny Qwen3, and SmolLM2's shape (a Llama)."""
    set_seed(0)
    if request.param == "qwen3":
        folder: Path = request.getfixturevalue("tiny_qwen3")
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    else:
        shape = AutoConfig.from_pretrained(request.getfixturevalue("smollm2"), num_hidden_layers=2)
        base = AutoModelForCausalLM.from_config(shape, dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model.train()


def losses_and_gradient(
    model: torch.nn.Module, calls: list[tuple[dict[str, Any], list[int]]], tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean loss of each document and the adapter's gradient of one step; a call is a batch and the lengths in it."""
    model.zero_grad(set_to_none=True)
    found = []
    for batch, lengths in calls:
        scored = model(**batch, use_cache=False, fused_lm_head=True)
        (-scored.log_probs.sum() / tokens).backward()
        # Position t of log_probs is about token t + 1; the first token of a document is about nothing.
        flat = torch.nn.functional.pad(scored.log_probs.detach(), (1, 0))[0].split(lengths)
        counts = torch.nn.functional.pad(scored.label_mask, (1, 0))[0].split(lengths)
        found += [-part.sum() / count.sum() for part, count in zip(flat, counts, strict=True)]
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return torch.stack(found), gradient


def packed_calls(rows: dict[str, list[Any]], packs: list[list[int]], per_device: int) -> list[tuple[Any, list[int]]]:
    collate = sft.Collator(0, packing=True)
    calls = []
    for start in range(0, len(packs), per_device):
        batch = collate([sft.join_rows(rows, pack) for pack in packs[start : start + per_device]])
        seen = batch.pop("row").tolist()
        assert "attention_mask" not in batch
        calls.append((batch, [len(rows["input_ids"][row]) for row in seen]))
    return calls


def alone(model: torch.nn.Module, rows: dict[str, list[Any]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Every document by itself, through the model's own forward and transformers' own attention and logits."""
    model.zero_grad(set_to_none=True)
    tokens = sum(label != -100 for labels in rows["labels"] for label in labels[1:])
    found = []
    for row in [row for pack in PACKS for row in pack]:
        logits = model(torch.tensor([rows["input_ids"][row]]), use_cache=False).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(rows["labels"][row][1:]), reduction="none")
        (loss.sum() / tokens).backward()
        found.append(loss.detach().sum() / loss.count_nonzero())
    return torch.stack(found), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def ready(bare: torch.nn.Module, head: str, attention: str, *, checkpointing: bool = False) -> torch.nn.Module:
    model = copy.deepcopy(bare)
    inner = model.get_base_model()
    inner.set_attn_implementation(attention)
    if checkpointing:
        inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        inner.enable_input_require_grads()
    add_fused_lm_head(inner)
    if head == "lean":
        score_supervised_only(inner, outputs=("log_probs", "is_top1"))
    else:
        attend_documents(inner)
    return model


def test_a_packed_step_is_the_step_of_its_documents(bare: torch.nn.Module) -> None:
    """trl#1230, trl#3067, alignment-handbook#204. Both attention backends of a CPU, both heads, gradient
    checkpointing on and off, all packs in one batch or one pack at a time (accumulation).
    """
    rows = documents(bare.config.vocab_size)
    tokens = sum(label != -100 for labels in rows["labels"] for label in labels[1:])
    wanted, wanted_gradient = alone(bare, rows)
    for head, attention, checkpointing, per_device in (
        ("lean", "sdpa", False, 3), ("lean", "eager", False, 1), ("lean", "sdpa", True, 1), ("lean", "eager", True, 3),
        ("trl", "sdpa", False, 1), ("trl", "eager", False, 3), ("trl", "sdpa", True, 3), ("trl", "eager", True, 1),
    ):
        case = f"{head}, {attention}, checkpointing {checkpointing}, {per_device} packs a batch"
        model = ready(bare, head, attention, checkpointing=checkpointing)
        losses, gradient = losses_and_gradient(model, packed_calls(rows, PACKS, per_device), tokens)
        assert float((losses - wanted).abs().max()) < 1e-5, case
        assert float(torch.cosine_similarity(gradient, wanted_gradient, dim=0)) > 0.9999, case
        assert float(gradient.norm() / wanted_gradient.norm()) == pytest.approx(1, abs=1e-4), case


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("head", ["lean", "trl"])
def test_changing_one_document_leaves_the_others_as_they_were(
    bare: torch.nn.Module, head: str, attention: str
) -> None:
    rows = documents(bare.config.vocab_size)
    other = copy.deepcopy(rows)
    other["input_ids"][4] = [token + 1 for token in other["input_ids"][4]]
    model = ready(bare, head, attention)
    (before, lengths), (after, _) = (packed_calls(one, [[3, 4, 5, 0]], 1)[0] for one in (rows, other))
    with torch.no_grad():
        scored = [model(**batch, use_cache=False, fused_lm_head=True).log_probs[0] for batch in (before, after)]
    moved = torch.nn.functional.pad((scored[0] - scored[1]).abs(), (1, 0)).split(lengths)
    assert float(moved[1].max()) > 1e-3
    assert max(float(moved[place].max()) for place in (0, 2, 3)) < 1e-6, "a document sees its neighbour"


def test_short_documents_of_like_length_are_attended_to_together() -> None:
    sizes = [72, 60, 61, 9, 600, 599, 72, 71]
    groups = _group(sizes, torch.device("cpu"))
    assert groups.shapes == ((1, 600), (1, 599), (3, 72), (2, 61), (1, 9)), "61 is less than 0.85 of 72"
    assert torch.equal(groups.source[groups.home], torch.arange(sum(sizes)))
    assert len(groups.filled) == 1 + 1
    assert groups.source[groups.filled].tolist() == [sum(sizes) - 1, 72 + 60 - 1], "each with its own last token"


@pytest.mark.parametrize("name", ["sdpa", "eager"])
def test_attention_of_a_group_has_the_gradient_of_its_documents_one_by_one(name: str) -> None:
    """Also where every token has a gradient, a document's last one included, which stands in the places filled up."""
    sizes, draw = [10, 9, 3, 10], torch.Generator().manual_seed(0)
    states = [
        torch.randn(1, heads, sum(sizes), 8, generator=draw, dtype=torch.float64, requires_grad=True)
        for heads in (4, 2, 2)
    ]
    weights = torch.randn(1, sum(sizes), 4, 8, generator=draw, dtype=torch.float64)
    bounds = torch.tensor([0, *sizes]).cumsum(0)
    together, _ = _attend(_KERNELS[name], torch.nn.Module(), *states, None, scaling=0.3, cu_seq_lens_q=bounds)
    parts = zip(*(state.split(sizes, 2) for state in states), strict=True)
    alone = torch.cat([_KERNELS["sdpa"](*part, scaling=0.3, dropout=0.0).transpose(1, 2) for part in parts], 1)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
    found, wanted = (torch.autograd.grad((made * weights).sum(), states) for made in (together, alone))
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_the_bounds_of_documents_are_read_once_a_forward(
    bare: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not once a layer, nor again when a layer is recomputed: on a GPU each reading waits for all work before it."""
    calls = packed_calls(documents(bare.config.vocab_size), PACKS, 1)
    diff, reads = torch.Tensor.diff, []
    monkeypatch.setattr(torch.Tensor, "diff", lambda bounds: (reads.append(1), diff(bounds))[1])
    for head in ("lean", "trl"):
        model = ready(bare, head, "sdpa", checkpointing=True)
        for count, (batch, lengths) in enumerate(calls, start=1):
            fresh = {name: value.clone() if torch.is_tensor(value) else value for name, value in batch.items()}
            losses_and_gradient(model, [(fresh, lengths)], 100)
            assert len(reads) == count, head
        reads.clear()


def test_what_leaks_is_refused_and_would_have_been_seen(bare: torch.nn.Module) -> None:
    """A flat row without bounds is an error; with transformers' own attention it is a wrong loss and no message."""
    rows = documents(bare.config.vocab_size)
    batch, lengths = packed_calls(rows, [[3, 0]], 1)[0]
    ids, mask = batch["input_ids"], torch.ones_like(batch["input_ids"])
    leaky = {"no positions": {}, "an all-ones mask": {"attention_mask": mask, "position_ids": batch["position_ids"]}}
    start = lengths[0]
    model = ready(bare, "trl", "sdpa")
    with torch.no_grad():
        right = copy.deepcopy(bare)(ids[:, start:], use_cache=False).logits[0]
        for name, given in leaky.items():
            wrong = bare(ids, use_cache=False, **given).logits[0, start:]
            assert float((wrong - right).abs().max()) > 1e-2, f"{name} does not leak, so nothing is shown here"
            with pytest.raises(AssertionError, match="where a document ends was not said"):
                model(ids, use_cache=False, **given)
        with pytest.raises(AssertionError, match="no padding to mask"):
            model(ids, attention_mask=torch.zeros(1, 1, ids.size(1), ids.size(1)), use_cache=False)
        whole = {name: batch[name] for name in ("position_ids", "cu_seq_lens_q")}
        apart = model(ids, use_cache=False, **whole).logits[0, start:]
    torch.testing.assert_close(apart, right, atol=1e-4, rtol=1e-4)


def test_a_padded_batch_is_not_taken_for_a_pack(bare: torch.nn.Module) -> None:
    model = ready(bare, "lean", "sdpa")
    rows = documents(bare.config.vocab_size)
    batch = packed_calls(rows, PACKS[:1], 1)[0][0]
    with pytest.raises(AssertionError, match="no padding to mask"):
        model(**batch, attention_mask=torch.ones_like(batch["input_ids"]), use_cache=False, fused_lm_head=True)


# --- whole runs ------------------------------------------------------------------------------------------------------

ROWS = 40
NO_DROPOUT = {**tiny.METHOD, "lora": {**tiny.METHOD["lora"], "lora_dropout": 0.0}}
ONE_STEP = {"max_steps": 1, "log_steps": 1, "method": NO_DROPOUT, "trl": {"learning_rate": 1e-2, "optim": "sgd"}}
"""With plain SGD the trained B is the gradient of the first step, up to a factor."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    root = tmp_path_factory.mktemp("inputs")
    return {"base": tiny.make_base(root / "base"), "prepared": tiny.make_prepared(root / "prepared", rows=ROWS)}


def train(
    root: Path, inputs: dict[str, Artifact], *, stage: str = "sft", per_device: int = 8, **changes: Any
) -> Artifact:
    config = tiny.sft_config(**changes)
    if stage == "cpt":
        config["cpt"] = config.pop("sft")
    return artifacts.build(
        {"sft": sft.SFT_STAGE, "cpt": sft.CPT_STAGE}[stage], config, root=root, inputs=inputs,
        machine=tiny.machine(per_device_batch_size=per_device), tracker=tiny.Silent(),
    )


def first_line(made: Artifact) -> dict[str, float]:
    return dict(json.loads(made.file("log.jsonl").read_text().splitlines()[0]))


def trained_b(made: Artifact) -> torch.Tensor:
    tensors = load_file(made.file("adapter_model.safetensors"))
    return torch.cat([tensors[name].flatten() for name in sorted(tensors) if "lora_B" in name])


@pytest.mark.parametrize("stage", ["sft", "cpt"])
def test_one_trained_step_is_the_same_packed_and_unpacked(
    tmp_path: Path, inputs: dict[str, Artifact], stage: str
) -> None:
    """All 40 documents in one step: padded, packed, and packed with one pack at a time, whose packs hold unlike many
    supervised tokens. The mean is over the tokens of the step however it is cut.
    """
    lengths = [len(ids) for ids in sft.read_rows(inputs["prepared"].file("sft_train.parquet"))["input_ids"]]
    packs = len(place_rows(lengths, room=pack_room(lengths, max_length=64)))
    common = {**ONE_STEP, "stage": stage}
    apart = train(tmp_path / "apart", inputs, batch_size=ROWS, **common)
    for per_device in (packs, 1):
        joined = train(
            tmp_path / f"packed-{per_device}", inputs, batch_size=packs, packing=True, per_device=per_device, **common
        )
        assert joined.facts["supervised_tokens"] == apart.facts["supervised_tokens"]
        one, two = first_line(apart), first_line(joined)
        for name in ("loss", "grad_norm", "eval_loss"):
            assert two[name] == pytest.approx(one[name], rel=1e-5), (per_device, name)
        step, other = trained_b(apart), trained_b(joined)
        assert float(step.norm()) > 0
        assert float(torch.cosine_similarity(step, other, dim=0)) > 0.9999


def test_label_smoothing_is_the_same_packed_and_unpacked(tmp_path: Path, inputs: dict[str, Artifact]) -> None:
    """It scores every position with the model's own head, past ours."""
    smooth = {**ONE_STEP, "trl": {**ONE_STEP["trl"], "label_smoothing_factor": 0.1}}
    apart = first_line(train(tmp_path / "apart", inputs, batch_size=ROWS, **smooth))
    joined = first_line(train(tmp_path / "packed", inputs, batch_size=13, per_device=13, packing=True, **smooth))
    plain = first_line(train(tmp_path / "plain", inputs, batch_size=13, per_device=1, packing=True, **ONE_STEP))
    for name in ("loss", "grad_norm", "eval_loss"):
        assert joined[name] == pytest.approx(apart[name], rel=1e-5), name
    assert joined["grad_norm"] != pytest.approx(plain["grad_norm"], rel=1e-3)


def test_a_packed_run_goes_on_after_a_kill_to_the_same_bytes(
    tmp_path: Path, inputs: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"packing": True, "batch_size": 2, "per_device": 1, "method": NO_DROPOUT}
    straight = train(tmp_path / "straight", inputs, **changes)
    assert straight.facts["filling"] > 0.9
    assert straight.facts["pack_length"] <= 64
    assert straight.facts["packs"] == 13
    real, calls = transformers.Trainer.training_step, 0

    def killed(self: Any, *args: Any, **keys: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 11:  # within step 6: the checkpoint of step 3 is whole
            raise KeyboardInterrupt
        return real(self, *args, **keys)

    with monkeypatch.context() as patch:
        patch.setattr(transformers.Trainer, "training_step", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "killed", inputs, **changes)
    again = train(tmp_path / "killed", inputs, **changes)
    assert again.manifest["files"] == straight.manifest["files"]


def test_a_broken_step_names_every_document_of_its_packs(
    tmp_path: Path, inputs: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    real = transformers.Trainer.training_step

    def poisoned(self: Any, model: Any, inputs: dict[str, Any], *args: Any) -> Any:
        rows.extend(inputs["row"].tolist())
        with torch.no_grad():
            next(p for p in model.parameters() if p.requires_grad).fill_(float("nan"))
        return real(self, model, inputs, *args)

    monkeypatch.setattr(transformers.Trainer, "training_step", poisoned)
    with pytest.raises(RecipeError, match="not a finite number in step 1") as caught:
        train(tmp_path, inputs, packing=True, batch_size=2)
    assert len(rows) > 2
    assert all(f"row-{row}" in str(caught.value) for row in rows)


def test_packs_that_are_not_full_are_said(tmp_path: Path, inputs: dict[str, Artifact], capsys: Any) -> None:
    train(tmp_path, inputs, packing=True, max_length=32, max_steps=1, batch_size=2)
    assert "85.3% full: rows of 19 tokens" in capsys.readouterr().out


def test_packs_of_the_recipes_own_rows_are_98_percent_full(tmp_path: Path) -> None:
    for recipe in ("legal", "finance", "medical", "maintenance"):
        assert cli.main(["prepare", f"recipe={recipe}", "model=smollm2_135m", f"work={tmp_path / recipe}"]) == 0
        (prepared,) = (tmp_path / recipe).glob("prepare-*")
        lengths = [len(ids) for ids in sft.read_rows(prepared / "sft_train.parquet")["input_ids"]]
        packs = place_rows(lengths, room=pack_room(lengths, max_length=1024))
        longest = max(sum(lengths[row] for row in pack) for pack in packs)
        assert sum(lengths) / (len(packs) * longest) > 0.98, recipe
        assert len(packs) == -(-sum(lengths) // 1024) or len(packs) == 1 + -(-sum(lengths) // 1024), recipe
