"""serve.sh: the vLLM command that fits this model, with the reason for each flag."""

import json
from pathlib import Path

from finetune.config.model import Model

_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM accepts for --max-lora-rank."""


def script(model_dir: Path, adapter_dir: Path, name: str, model: Model) -> str:
    """A POSIX shell script that stands beside `model/`; further arguments go to vLLM."""
    gigabytes = sum(path.stat().st_size for path in model_dir.glob("*.safetensors")) / 1e9
    config = json.loads((adapter_dir / "adapter_config.json").read_text(encoding="utf-8"))
    lines = [
        "#!/bin/sh",
        "# Serves model/ over an OpenAI-compatible API: sh serve.sh [more vLLM arguments]",
        f"# Weights take {gigabytes:.1f} GB in {model.dtype}; TENSOR_PARALLEL=n spreads them over n GPUs.",
        "# Answers are greedy by default (generation_config.json), as they were scored; requests may say otherwise.",
        *_thinking(model),
        'here=$(cd "$(dirname "$0")" && pwd)',
        'exec vllm serve "$here/model" \\',
        '  --host "${HOST:-127.0.0.1}" \\',
        f"  --served-model-name {name} \\",
        f"  --dtype {model.dtype} \\",
        '  --tensor-parallel-size "${TENSOR_PARALLEL:-1}" \\',
        f'  --max-model-len "${{MAX_MODEL_LEN:-{_longest(model)}}}" \\',
        *(["  --reasoning-parser qwen3 \\"] if model.default_mode == "think" else []),
        '  "$@"',
        *_adapter(config, name, model, model_dir),
    ]
    return "\n".join(lines) + "\n"


def _longest(model: Model) -> int:
    """YaRN is chosen for long requests; without it, room for every position would cost cache that few requests use."""
    return model.positions if model.rope_parameters else min(model.positions, 8192)


def _thinking(model: Model) -> list[str]:
    if "think" not in model.modes:
        return []
    if model.default_mode == "think":
        return ["# Thinks by default; a request turns it off with chat_template_kwargs {\"enable_thinking\": false}."]
    return [
        "# Answers without thinking by default. No --reasoning-parser: it would move an answer without </think> into",
        "# `reasoning` and leave `content` empty. A request turns thinking on with",
        "# chat_template_kwargs {\"enable_thinking\": true}.",
    ]


def _adapter(config: dict[str, object], name: str, model: Model, model_dir: Path) -> list[str]:
    """How to serve the adapter beside its base instead, or why that cannot be."""
    blocked = [key for key in ("use_dora", "modules_to_save", "trainable_token_indices") if config.get(key)]
    if blocked or config.get("bias", "none") != "none":
        return ["", f"# adapter/ cannot be served by vLLM ({', '.join(blocked) or 'bias'}): serve model/ instead."]
    pattern = config.get("rank_pattern")
    ranks = [config["r"], *(pattern.values() if isinstance(pattern, dict) else [])]
    highest = max(int(str(rank)) for rank in ranks)
    allowed = next((rank for rank in _LORA_RANKS if rank >= highest), highest)
    revision = f" --revision {model.revision}" if model.revision else ""
    yarn = []
    if model.rope_parameters is not None:
        merged = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
        rope = {"rope_theta": merged["rope_theta"], **model.rope_parameters.model_dump()}
        over = json.dumps({"rope_parameters": rope, "max_position_embeddings": model.positions})
        yarn = [f"#     --hf-overrides '{over}' \\"]
    return [
        "",
        "# The adapter on its base, which several adapters can share:",
        f"#   vllm serve {model.name}{revision} --enable-lora --max-lora-rank {allowed} \\",
        *yarn,
        f"#     --lora-modules {name}=adapter --dtype {model.dtype} --chat-template model/chat_template.jinja",
    ]
