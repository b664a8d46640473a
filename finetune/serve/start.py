"""Start vLLM on a bundle with flags that fit this machine, and ask it what the bundle says it answers."""

import argparse
import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from finetune.errors import RecipeError
from finetune.handoff import capacity, serving
from finetune.memory import Here, here
from finetune.serve import ask
from finetune.serve.server import Server, find_vllm, free_port
from finetune.verify.bundle import models

Say = Callable[[str], None]
_SECRET = {"--api-key": "VLLM_API_KEY", "--hf-token": "HF_TOKEN"}
"""Flags whose values would stand in the log and in everybody's list of processes; vLLM reads these variables too."""
_CPU_REQUESTS = 2
"""Requests of full length that the cache holds on a CPU: enough for a look, and memory for the weights remains."""


def run(chosen: argparse.Namespace) -> int:
    """0; 1 when --check found answers other than the bundle's. Raises RecipeError when nothing can be served."""
    say = partial(print, flush=True)
    # vLLM runs inside the bundle, so that it is told `model` and not a path of this machine.
    bundle, base, log = (path and path.resolve() for path in (chosen.bundle, chosen.base, chosen.log))
    plan = read_plan(bundle)
    no_secrets(chosen.flag)
    if chosen.check and chosen.model != "model":
        raise RecipeError.one(
            "--model", chosen.model, "--check compares with the answers of model/, and rounded weights give others",
            "leave --check or --model out; the report says what quantising cost",
        )  # fmt: skip
    golden = ask.read_golden(bundle) if chosen.check else []
    vllm = find_vllm(chosen.vllm, any_version=chosen.any_version)
    free_port(chosen.host, chosen.port)
    dtype = chosen.dtype or plan["dtype"]
    machine = here()
    words = command(bundle, plan, machine, dtype=dtype, base=base, weights=chosen.model)
    words = [str(vllm), *words, "--host", chosen.host, "--port", str(chosen.port), *chosen.flag]
    if base is not None and plan["adapter"].get("warning"):
        say(f"serve: warning: {plan['adapter']['warning']}")
    say("+ " + " ".join(words))
    with tempfile.TemporaryFile("w+") if log is None else log.open("w+", encoding="utf-8") as lines:
        quiet = chosen.check or log is not None
        at: dict[str, Any] = {"host": chosen.host, "port": chosen.port, "log": lines if quiet else None}
        try:
            with Server(words, bundle, compiled=bool(machine.gpus), **at) as server:
                version, seconds = server.wait()
                say(f"serve: vLLM {version} is ready after {seconds:.0f} s at {server.url}/v1 as {plan['name']}")
                if chosen.check:
                    return check(server.url, plan, golden, dtype, bundle, say, adapter=base is not None)
                say(_curl(server.url, plan["name"]))
                return server.stay()
        except KeyboardInterrupt:
            say("serve: ended before it was of use")
            return 130


def read_plan(bundle: Path) -> dict[str, Any]:
    """serve/plan.json. Raises RecipeError for a folder that is no bundle, or one made before there was such a plan."""
    file = bundle / "serve" / "plan.json"
    if not file.is_file() or not (bundle / "model" / "config.json").is_file():
        raise RecipeError.one(
            str(bundle), None, "no bundle with model/ and serve/plan.json", "give the folder that the main job printed"
        )
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def no_secrets(flags: Sequence[str]) -> None:
    """Refuse a key on the command line, and one in the environment that no client can send. Neither is printed."""
    for word in flags:
        flag = re.split(r"[=\s]", word)[0].replace("_", "-")
        # vLLM takes the beginning of a flag for the flag.
        for secret in [secret for secret in _SECRET if flag.startswith("--") and secret.startswith(flag)]:
            raise RecipeError.one(
                f"--flag={secret}", None, "its value would stand in the log and in the list of processes",
                f"export {_SECRET[secret]}=... before the command; vLLM reads it",
            )  # fmt: skip
    key = os.environ.get("VLLM_API_KEY", "")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise RecipeError.one(
            "VLLM_API_KEY", None, "it holds a space, a line end or letters beyond ASCII, which no header can",
            'export VLLM_API_KEY="$(openssl rand -hex 24)"',
        )  # fmt: skip


def command(
    bundle: Path, plan: Mapping[str, Any], machine: Here, *, dtype: str, base: Path | None, weights: str = "model"
) -> list[str]:
    """`serve ...` for this machine: the bundle's own arithmetic with the memory that is really there.

    `weights` is the folder that is served, `model` or a quantised sibling; an adapter (`base`) stands on none of them.
    """
    known = [path.name for path in models(bundle)]
    if weights not in known:
        raise RecipeError.one("--model", weights, "this bundle has no such model", f"one of {', '.join(known)}")
    if base is not None and weights != "model":
        raise RecipeError.one("--model", weights, "--base serves adapter/, not this", "leave one of the two out")
    name, model = plan["name"], bundle / weights
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    length = max([setup["max_model_len"] for setup in plan["setups"] if not setup["problem"]], default=1024)
    if base is None:
        words = ["serve", weights, *serving.flags(name, dtype)]
    elif plan["adapter"]["problem"]:
        raise RecipeError.one("--base", str(base), plan["adapter"]["problem"], "serve model/: leave --base out")
    elif not (base / "config.json").is_file():
        raise RecipeError.one("--base", str(base), "no model directory", "give the folder of the base model's weights")
    else:
        argv = plan["adapter"]["argv"]
        own = argv[argv.index("--served-model-name") : argv.index("--dtype")]
        words = ["serve", str(base), *own, "--dtype", dtype]
    words += serving.template_flags(model, default_mode=plan["default_mode"])
    if not machine.gpus:
        return [*words, *_cpu_flags(config, dtype, length)]
    smallest = min(machine.gpus, key=lambda gpu: gpu.memory_gib)
    like = capacity.LARGE if smallest.memory_gib > 40 else capacity.SMALL
    card = capacity.Card(
        smallest.name, smallest.memory_gib, like.reserve_gib, like.max_num_seqs, like.max_num_batched_tokens
    )
    held = capacity.weight_bytes(model) * (2 if dtype == "float32" and plan["dtype"] == "bfloat16" else 1)
    found = capacity.layout(config, held, gpus=len(machine.gpus), card=card, max_model_len=length, dtype=dtype)
    if found.problem:
        raise RecipeError.one(str(bundle), len(machine.gpus), found.problem, "more GPUs, or a quantised model")
    return [*words, *serving.gpu_flags(found)]


def check(
    url: str, plan: Mapping[str, Any], golden: list[dict[str, Any]], dtype: str, bundle: Path, say: Say, *,
    adapter: bool = False,
) -> int:  # fmt: skip
    """Ask every golden prompt and print what came: 0 when all is as the bundle says, else 1."""
    allowed = json.loads((bundle / "lineage.json").read_text(encoding="utf-8"))["golden"]["tolerance_nats"]
    stored = json.loads((bundle / "model" / "config.json").read_text(encoding="utf-8")).get("dtype", "bfloat16")
    # Merged weights are rounded when they are stored, base and adapter side by side are not.
    tolerance = float(allowed[stored if adapter else dtype])
    if adapter and stored != dtype:
        say(f"serve: model/ is stored in {stored}, adapter/ computes in {dtype}: compared as {stored}")
    found = [ask.compare(line, ask.chat(url, plan["name"], line, dtype), dtype, tolerance) for line in golden]
    for line, one in zip(golden, found, strict=True):
        say(f"  {line['id']:<16} {line['mode'] or 'no mode':<8} {one}")
    wrong = sum(bool(one.problem) for one in found)
    largest = max(one.largest for one in found)
    said = f"{wrong} NOT as the bundle says" if wrong else "all as the bundle says"
    say(f"serve: {len(found)} golden prompts in {dtype}: {said}; log-probs within {largest:.2g} of {tolerance:g}")
    return 1 if wrong else 0


def _cpu_flags(config: Mapping[str, Any], dtype: str, length: int) -> list[str]:
    block = 128 * capacity.kv_bytes_per_token(config, dtype)
    blocks = _CPU_REQUESTS * -(-length // 128)
    return [
        "--max-model-len", str(length), "--max-num-seqs", "4", "--kv-cache-memory-bytes", str(blocks * block),
        "--enforce-eager",
    ]  # fmt: skip


def _curl(url: str, name: str) -> str:
    body = json.dumps({"model": name, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 64})
    key = ' -H "Authorization: Bearer $VLLM_API_KEY"' if os.environ.get("VLLM_API_KEY") else ""
    asked = f"curl --noproxy '*' {url}/v1/chat/completions -H 'Content-Type: application/json'{key} -d '{body}'"
    return f"{asked}\nCtrl-C ends the server."
