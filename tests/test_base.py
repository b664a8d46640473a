"""The base model: found, hashed once, loaded as asked; 4-bit weights that stay right after generating."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from finetune import base as base_module
from finetune.artifacts import Artifact
from finetune.base import find_base, load_base, new_adapter, quantised_modules
from finetune.config.model import Model
from finetune.config.training import Method
from finetune.errors import RecipeError
from tests import tiny

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return tiny.make_base(tmp_path_factory.mktemp("base"))


def model_at(path: Path, **changes: object) -> Model:
    return Model(**{**tiny.MODEL, "path": str(path), **changes})


def test_finding_the_base_imports_no_torch() -> None:
    code = "import sys; import finetune.base; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_digest_follows_the_bytes_and_files_are_hashed_once(
    base: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETUNE_HOME", str(tmp_path / "home"))
    folder = tmp_path / "model"
    folder.mkdir()
    for file in base.path.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    first = find_base(model_at(folder))
    read: list[Path] = []
    real = base_module.artifacts.hash_file
    monkeypatch.setattr(base_module.artifacts, "hash_file", lambda path: read.append(path) or real(path))
    assert find_base(model_at(folder)).digest == first.digest
    assert not read
    weights = folder / "model.safetensors"
    stat, raw = weights.stat(), weights.read_bytes()
    weights.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert find_base(model_at(folder)).digest != first.digest
    assert [path.name for path in read] == ["model.safetensors"]


def test_of_several_processes_one_reads_the_weights_and_the_others_wait_for_what_it_notes(
    base: Artifact, tmp_path: Path
) -> None:
    """Eight ranks hashed the same 65 GB at once."""
    script = (
        "import sys, time; from finetune import base; from finetune.config.model import Model\n"
        "real = base.artifacts.hash_file\n"
        "def slow(path): print(path.name, flush=True); time.sleep(0.2); return real(path)\n"
        "base.artifacts.hash_file = slow\n"
        "from tests import tiny\n"
        "base.find_base(Model(**{**tiny.MODEL, 'path': sys.argv[1]}))"
    )
    environment = {**os.environ, "FINETUNE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(base.path)], env=environment, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    read = [process.communicate(timeout=60)[0].split() for process in started]
    assert [process.returncode for process in started] == [0, 0, 0]
    assert sorted(name for names in read for name in names) == sorted(path.name for path in base.path.iterdir())


def test_a_folder_without_a_model_is_a_message(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"config.json is missing"):
        find_base(model_at(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(RecipeError, match="pickled weights are never loaded"):
        find_base(model_at(tmp_path))


def test_a_hub_model_that_is_not_here_is_a_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(RecipeError, match="hf download nobody/nothing"):
        find_base(Model(**{**tiny.MODEL, "name": "nobody/nothing"}))


def test_unknown_upstream_keys_are_messages(base: Artifact) -> None:
    loaded = load_base(base, Model(**tiny.MODEL), None, device="cpu")
    with pytest.raises(RecipeError, match=r"peft.LoraConfig refuses"):
        new_adapter(loaded, Method(name="lora", lora={"rank": 4}), seed=0)


def test_the_adapter_is_float32_on_a_bfloat16_base_and_drawn_from_the_seed(base: Artifact) -> None:
    def draw(seed: int) -> dict[str, torch.Tensor]:
        loaded = load_base(base, Model(**{**tiny.MODEL, "dtype": "bfloat16"}), None, device="cpu")
        assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
        adapted = new_adapter(loaded, Method(**tiny.METHOD), seed=seed)
        trained = {name: p.detach().clone() for name, p in adapted.named_parameters() if p.requires_grad}
        assert {p.dtype for p in trained.values()} == {torch.float32}
        return trained

    one, same, other = draw(0), draw(0), draw(1)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_every_linear_layer_is_4_bit_and_recorded_but_no_embedding_head_or_norm(base: Artifact) -> None:
    loaded = load_base(base, Model(**tiny.MODEL), Method(**tiny.QLORA), device="cpu")
    assert not any(module.support_avx512bf16_for_cpu for _, module in base_module.modules_4bit(loaded))
    names = quantised_modules(loaded)
    layers = [f"model.layers.{i}" for i in range(2)]
    attention = [f"{layer}.self_attn.{kind}_proj" for layer in layers for kind in "qkvo"]
    forward = [f"{layer}.mlp.{kind}_proj" for layer in layers for kind in ("gate", "up", "down")]
    assert names == sorted(attention + forward)
    assert quantised_modules(new_adapter(loaded, Method(**tiny.QLORA), seed=0)) == names


def test_generating_before_training_leaves_4_bit_gradients_as_they_were(base: Artifact) -> None:
    """On AVX512-bf16 CPUs bitsandbytes repacks weights at the first eval-mode forward; gradients were then wrong."""

    def gradients(generate: bool) -> torch.Tensor:
        settings, method = Model(**{**tiny.MODEL, "dtype": "bfloat16"}), Method(**tiny.QLORA)
        adapted = new_adapter(load_base(base, settings, method, device="cpu"), method, seed=0)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
        ids = torch.arange(10, 40).unsqueeze(0)
        if generate:
            adapted.eval()
            adapted.generate(input_ids=ids, max_new_tokens=2, do_sample=False)
        adapted.train()
        for module in adapted.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        adapted(input_ids=ids, labels=ids).loss.backward()
        return torch.cat([p.grad.flatten() for p in adapted.parameters() if p.grad is not None])

    assert torch.equal(gradients(generate=False), gradients(generate=True))


def test_the_head_never_sees_a_strided_slice(base: Artifact) -> None:
    model = load_base(base, model_at(base.path), None, device=torch.device("cpu"))
    seen: list[torch.Tensor] = []
    model.get_output_embeddings().register_forward_hook(lambda head, inputs, output: seen.append(inputs[0]))
    model(input_ids=torch.arange(12).reshape(3, 4), logits_to_keep=1)
    assert [tensor.shape[1] for tensor in seen] == [1]
    assert all(tensor.is_contiguous() for tensor in seen)
