"""The merged checkpoint in vLLM == base + adapter in vLLM == Transformers == PEFT, in float32: tokens and log-probs.

LF#10596, LF#3096, vllm#5148: a merged model that answers unlike its adapter, and no number that says so.
"""

import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checkpoints import make_adapter, make_base
from peft import PeftModel
from transformers import AutoModelForCausalLM

from finetune.chat import ChatFormat
from finetune.merge import merge_adapter

pytestmark = pytest.mark.serving
VLLM = Path(__file__).resolve().parents[2] / ".venv-serve/bin/vllm"
TOKENS = 24
TOLERANCE = 1e-3


def in_transformers(model: Any, prompts: list[list[int]]) -> list[dict[str, Any]]:
    """Greedy answers of TOKENS tokens, and the log-prob of each from one pass over prompt and answer."""
    found = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            whole = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False,
                eos_token_id=None,
            )  # fmt: skip
            logits = model(whole).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
        tokens = whole[0, len(prompt) :]
        found.append({"token_ids": tokens.tolist(), "logprobs": logits.gather(1, tokens[:, None])[:, 0].tolist()})
    return found


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory, qwen3_float32: Path) -> dict[str, SimpleNamespace]:
    """Shape -> answers of four ways to run the same model."""
    root = tmp_path_factory.mktemp("engines")
    bases = {"qwen3": qwen3_float32, "llama": make_base(root / "llama", kind="llama", tied=True, dtype=torch.float32)}
    jobs, found = [], {}
    for shape, base in bases.items():
        adapter = make_adapter(base, root / f"{shape}-adapter", r=8, strength=0.2)
        merged = root / f"{shape}-merged"
        merge_adapter(base, adapter, merged, say=lambda _: None)
        chat = ChatFormat.read(base)
        talk = [{"role": "user", "content": "Which part?\n\n 12 < 13 & “so on” — 第十二条"}]
        prompts = [chat.prompt_ids(talk, mode, []) for mode in ("plain", "think")]
        prompts.append(chat.prompt_ids([*talk, {"role": "assistant", "content": "Seal 4."}, talk[0]], "plain", []))
        jobs += [{"model": str(model), "adapter": lora and str(lora), "prompts": prompts, "tokens": TOKENS}
                 for model, lora in ((merged / "model", None), (base, adapter))]  # fmt: skip
        plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        untuned = in_transformers(plain, prompts)
        loaded = AutoModelForCausalLM.from_pretrained(merged / "model", dtype=torch.float32)
        found[shape] = SimpleNamespace(
            untuned=untuned,
            transformers=in_transformers(loaded, prompts),
            peft=in_transformers(PeftModel.from_pretrained(plain, adapter), prompts),
        )
    environment = {
        **os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "TORCHDYNAMO_DISABLE": "1",
    }  # fmt: skip
    done = subprocess.run(
        [VLLM.with_name("python"), Path(__file__).with_name("engines.py")], input=json.dumps(jobs), env=environment,
        capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("ANSWERS ")]
    served = iter(json.loads(line.removeprefix("ANSWERS ")))
    for shape in bases:
        found[shape].vllm_merged, found[shape].vllm_adapter = next(served), next(served)
    return found


@pytest.mark.parametrize("shape", ["qwen3", "llama"])
@pytest.mark.parametrize("way", ["vllm_merged", "vllm_adapter", "peft"])
def test_every_way_to_run_the_tuned_model_gives_the_same_tokens_and_log_probs(
    answers: dict[str, SimpleNamespace], shape: str, way: str
) -> None:
    found = answers[shape]
    for ours, theirs in zip(found.transformers, getattr(found, way), strict=True):
        assert theirs["token_ids"] == ours["token_ids"]
        assert len(theirs["token_ids"]) == TOKENS
        assert theirs["logprobs"] == pytest.approx(ours["logprobs"], abs=TOLERANCE)


@pytest.mark.parametrize("shape", ["qwen3", "llama"])
def test_the_adapter_changes_the_answers_so_that_equality_says_something(
    answers: dict[str, SimpleNamespace], shape: str
) -> None:
    found = answers[shape]
    assert all(
        tuned["token_ids"] != base["token_ids"] for tuned, base in zip(found.transformers, found.untuned, strict=True)
    )
