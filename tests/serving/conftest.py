"""These tests start vLLM out of .venv-serve (scripts/test.sh serving sets it up) and are not collected without it."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

VLLM = Path(__file__).resolve().parents[2] / ".venv-serve/bin/vllm"
collect_ignore_glob = [] if VLLM.is_file() else ["test_*.py"]


@pytest.fixture(scope="session")
def qwen3_float32(tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Path) -> Path:
    """The tiny Qwen3 with its real tokenizer, stored in float32: merging into it rounds nothing."""
    folder = tmp_path_factory.mktemp("qwen3") / "float32"
    shutil.copytree(tiny_qwen3, folder)
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor.float() for name, tensor in tensors.items()}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))
    return folder
