"""Layers that are one step of autograd compute what PEFT's and transformers' own compute."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import Linear
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config, set_seed

from finetune.fused import _Adapted, fuse_layers

SHAPE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 64, "max_position_embeddings": 64,
}  # fmt: skip
KINDS = {"llama": LlamaConfig, "qwen3": Qwen3Config}


def adapted(
    kind: str = "llama", *, dtype: torch.dtype = torch.float32, b: float = 0.1, seed: int = 0, **lora: Any
) -> PeftModel:
    """A random model of two layers with an adapter whose second half is not zero; norms of random weight."""
    set_seed(seed)
    base = AutoModelForCausalLM.from_config(KINDS[kind](**SHAPE), attn_implementation="eager")
    for name, parameter in base.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, mean=1, std=0.2)
    config = LoraConfig(**{"r": 4, "lora_alpha": 12, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **lora})
    model = get_peft_model(base.to(dtype), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
        if "lora_B" in name and b:
            torch.nn.init.normal_(parameter, std=b)
    return model.train()


def fused(model: PeftModel) -> PeftModel:
    fuse_layers(model)
    return model


def tokens() -> torch.Tensor:
    return torch.randint(0, 64, (2, 17), generator=torch.Generator().manual_seed(1))


def outcome(model: PeftModel, **given: Any) -> dict[str, torch.Tensor]:
    """The logits and every gradient of one step."""
    model.zero_grad()
    logits = model(tokens(), use_cache=False, **given).logits
    (torch.nn.functional.log_softmax(logits.float(), -1)[..., 3].sum() / logits.size(1)).backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {"logits": logits.detach(), **found}


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest distance of two tensors of a name, relative to the norm of the second."""
    assert set(one) == set(other)
    gaps = {name: (one[name].double() - other[name].double()).norm() / other[name].double().norm() for name in one}
    return float(max(gaps.values()))


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize(
    "lora",
    [{}, {"use_rslora": True}, {"rank_pattern": {"down_proj": 7, "k_proj": 2}, "alpha_pattern": {"q_proj": 3}},
     {"r": 1}],
    ids=["plain", "rslora", "patterns", "rank 1"],
)  # fmt: skip
def test_a_step_in_float32_is_pefts(kind: str, lora: dict[str, Any]) -> None:
    wanted, found = outcome(adapted(kind, **lora)), outcome(fused(adapted(kind, **lora)))
    assert len(found) == 1 + 2 * 2 * 7, "logits, and A and B of seven linear layers in two layers"
    assert distance(found, wanted) < 2e-5
    assert not any(torch.equal(found[name], wanted[name]) for name in found if "lora_A" in name), "nothing was fused"


def test_layers_that_read_the_same_input_are_one_step_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four functions a layer instead of seven; where one of them cannot join, each is called by itself."""
    calls: list[int] = []
    apply = _Adapted.apply

    def counted(x: torch.Tensor, scaling: tuple[float, ...], *rest: torch.Tensor) -> Any:
        calls.append(len(scaling))
        return apply(x, scaling, *rest)

    monkeypatch.setattr(_Adapted, "apply", counted)
    outcome(fused(adapted()))
    assert calls == [3, 1, 2, 1] * 2
    calls.clear()
    some = {"target_modules": ["q_proj", "up_proj", "o_proj"]}
    assert distance(outcome(fused(adapted(**some))), outcome(adapted(**some))) < 2e-5
    assert calls == [1, 1, 1] * 2
    calls.clear()
    assert fused(adapted(lora_dropout=0.5))(tokens()).logits.isfinite().all()
    assert calls == []


def test_a_row_without_its_adapter_is_left_to_peft() -> None:
    """PEFT chooses adapters by row through hooks on each layer, which a call of three layers at once would pass by."""
    names = ["__base__", "default"]
    with torch.no_grad():
        wanted = adapted().eval()(tokens(), adapter_names=names).logits
        found = fused(adapted()).eval()(tokens(), adapter_names=names).logits
        every = fused(adapted()).eval()(tokens()).logits
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found[0], every[0], atol=1e-3)


def test_a_prompt_read_in_two_parts_is_the_prompt_read_at_once() -> None:
    """Keys and values that were kept are joined by upstream's own attention."""
    model = fused(adapted()).eval()
    with torch.no_grad():
        first = model(tokens()[:, :9], use_cache=True)
        rest = model(tokens()[:, 9:], past_key_values=first.past_key_values).logits
        torch.testing.assert_close(rest, model(tokens()).logits[:, 9:], atol=1e-5, rtol=1e-5)


def test_a_fresh_adapter_has_gradients_in_b_only() -> None:
    wanted, found = outcome(adapted(b=0)), outcome(fused(adapted(b=0)))
    first = [name for name in found if "lora_A" in name]
    assert first
    assert not any(found[name].any() for name in first)
    assert distance(*({n: g for n, g in one.items() if n not in first} for one in (found, wanted))) < 2e-5


@pytest.mark.parametrize("kind", list(KINDS))
def test_steps_in_bfloat16_are_as_near_to_the_truth_as_pefts(kind: str) -> None:
    """The truth is the same (rounded) weights in float32. Gradients stay float32, as the weights are. One model alone
    says little: either may round by a third better in it, so eight are asked."""
    theirs, ours = [], []
    for seed in range(8):
        low = adapted(kind, dtype=torch.bfloat16, seed=seed)
        truth = adapted(kind, seed=seed)
        truth.load_state_dict({name: value.float() for name, value in low.state_dict().items()})
        wanted = outcome(truth)
        theirs.append(error(outcome(low), wanted))
        found = outcome(fused(low))
        assert all(value.dtype == torch.float32 for name, value in found.items() if "lora_" in name)
        ours.append(error(found, wanted))
    print(kind, sum(ours) / sum(theirs), ours, theirs)
    assert 8e-4 < sum(ours) < 1.25 * sum(theirs)


def error(one: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    parts = [((one[n].double() - wanted[n].double()).norm() / wanted[n].double().norm()) ** 2 for n in wanted]
    return float(torch.stack(parts).mean().sqrt())


def of_layer(layer: torch.nn.Module, x: torch.Tensor, slope: torch.Tensor) -> dict[str, torch.Tensor]:
    """Output of one layer and its gradients, that for the input among them."""
    layer.zero_grad()
    x = x.clone().requires_grad_()
    y = layer(x)
    y.backward(slope)
    found = {name: parameter.grad for name, parameter in layer.named_parameters() if parameter.grad is not None}
    return {"y": y.detach(), "x": x.grad, **found}


@pytest.mark.parametrize("kind", list(KINDS))
def test_each_layer_alone_is_the_upstreams_to_a_millionth(kind: str) -> None:
    model = adapted(kind, rank_pattern={"down_proj": 7}, use_rslora=True)
    layers = [layer for layer in model.modules() if isinstance(layer, Linear) or type(layer).__name__.endswith("Norm")]
    assert len(layers) == 2 * 7 + {"llama": 5, "qwen3": 9}[kind]
    draw = torch.Generator().manual_seed(2)
    for layer in layers:
        inside = layer.in_features if isinstance(layer, Linear) else len(layer.weight)
        outside = layer.out_features if isinstance(layer, Linear) else inside
        x, slope = (torch.randn(3, 5, size, generator=draw) for size in (inside, outside))
        wanted = of_layer(layer, x, slope)
        fuse_layers(layer)
        assert distance(of_layer(layer, x, slope), wanted) < 1e-6, layer


def layer_of(model: PeftModel) -> Any:
    """A fused down projection; its own result differs from PEFT's in the last bits."""
    return fused(model).get_base_model().model.layers[0].mlp.down_proj


def is_pefts(layer: Any, x: torch.Tensor | None = None, **given: Any) -> bool:
    """Whether the layer's answer is PEFT's own forward's to the last bit."""
    x = torch.randn(40, 48, generator=torch.Generator().manual_seed(3)) if x is None else x
    return bool(torch.equal(layer(x, **given), Linear.forward(layer, x, **given)))


def test_a_layer_that_is_not_plain_lora_is_left_to_peft() -> None:
    assert not is_pefts(layer_of(adapted())), "the same bits anyhow, so nothing is shown here"
    assert is_pefts(layer_of(adapted(use_dora=True)))
    torch.manual_seed(4)
    layer = layer_of(adapted(lora_dropout=0.5))
    x = torch.ones(400, 48)
    assert len(layer(x)[:, 0].unique()) > 1, "dropout is lost"
    biased = layer_of(adapted())
    biased.base_layer.bias = torch.nn.Parameter(torch.ones(32), requires_grad=False)
    assert is_pefts(biased)
    trained = layer_of(adapted())
    trained.base_layer.weight.requires_grad_()
    trained(torch.randn(40, 48)).sum().backward()
    assert trained.base_layer.weight.grad is not None
    assert is_pefts(trained)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert is_pefts(layer_of(adapted())), "autocast chooses types by itself"


def test_a_layer_goes_back_to_peft_and_comes_again() -> None:
    """Adapters are switched off for a reference, merged for a measurement, joined by a second one."""
    model = adapted()
    layer, x = layer_of(model), torch.randn(40, 48)
    plain, ours = torch.nn.functional.linear(x, layer.base_layer.weight), layer(x)
    with model.disable_adapter():
        assert torch.equal(layer(x), plain)
    assert torch.equal(layer(x), ours)
    model.merge_adapter()
    assert is_pefts(layer, x)
    torch.testing.assert_close(layer(x), ours, atol=1e-5, rtol=1e-5)
    model.unmerge_adapter()
    torch.testing.assert_close(layer(x), ours, atol=1e-5, rtol=1e-5)
    model.add_adapter("second", LoraConfig(r=3, lora_alpha=7, target_modules="all-linear", init_lora_weights=False))
    first = layer(x)
    model.base_model.set_adapter(["default", "second"])
    assert is_pefts(layer, x)
    assert not torch.allclose(layer(x), first)
    model.set_adapter("second")
    assert not is_pefts(layer, x)
    torch.testing.assert_close(layer(x), Linear.forward(layer, x), atol=1e-5, rtol=1e-5)
    model.set_adapter("default")
    names = ["__base__"] * 20 + ["default"] * 20
    assert is_pefts(layer, x, adapter_names=names)
    torch.testing.assert_close(layer(x, adapter_names=names)[:20], plain[:20], atol=1e-6, rtol=1e-6)


def test_only_what_is_trained_gets_a_gradient() -> None:
    layer, x = layer_of(adapted()), torch.randn(40, 48)
    layer(x).sum().backward()
    assert layer.lora_A["default"].weight.grad is not None
    for half in (layer.lora_A, layer.lora_B):
        half["default"].weight.grad = None
    layer.lora_A["default"].weight.requires_grad_(False)
    x.requires_grad_()
    layer(x).sum().backward()
    assert layer.lora_A["default"].weight.grad is None
    assert layer.lora_B["default"].weight.grad is not None
    assert x.grad is not None
    with torch.no_grad():
        assert not layer(x).requires_grad


def test_a_norm_that_is_trained_is_left_alone() -> None:
    norm = fused(adapted()).get_base_model().model.norm
    norm.weight.requires_grad_()
    norm(torch.randn(3, 32)).sum().backward()
    assert norm.weight.grad is not None


def test_recomputation_gives_the_same_step() -> None:
    model = fused(adapted())
    wanted = outcome(model)
    model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    found = outcome(model)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_less_is_kept_for_the_backward_pass() -> None:
    """No float32 copy of the inputs of a layer: bytes that autograd saves, each storage once, beside the weights."""

    def kept(model: PeftModel) -> int:
        own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        seen: dict[int, int] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            logits = model(tokens().repeat(8, 1), use_cache=False).logits
        del logits
        return sum(seen.values())

    ours, theirs = kept(fused(adapted(dtype=torch.bfloat16))), kept(adapted(dtype=torch.bfloat16))
    print(ours, theirs, ours / theirs)
    assert ours < 0.75 * theirs
