"""Runs inside .venv-serve: reads jobs as JSON from standard input, one vLLM engine after another in this process.

A job is {"model": dir, "adapter": dir or null, "prompts": [[ids]], "tokens": n}; the answer, a JSON line behind
`ANSWERS `, holds for each job and prompt {"token_ids": [...], "logprobs": [...]}.
"""

import json
import sys
from typing import Any

from vllm import LLM, SamplingParams
from vllm.distributed.parallel_state import cleanup_dist_env_and_memory
from vllm.lora.request import LoRARequest


def answer(job: dict[str, Any]) -> list[dict[str, Any]]:
    lora = {"enable_lora": True, "max_loras": 1, "max_lora_rank": 16} if job["adapter"] else {}
    llm = LLM(
        model=job["model"], dtype="float32", max_model_len=256, max_num_seqs=4, kv_cache_memory_bytes=64 << 20,
        enforce_eager=True, seed=0, **lora,
    )  # fmt: skip
    sampling = SamplingParams(temperature=0, max_tokens=job["tokens"], logprobs=1, ignore_eos=True)
    prompts = [{"prompt_token_ids": prompt} for prompt in job["prompts"]]
    request = LoRARequest("adapter", 1, job["adapter"]) if job["adapter"] else None
    found = []
    for made in llm.generate(prompts, sampling, lora_request=request, use_tqdm=False):
        (one,) = made.outputs
        steps = zip(one.token_ids, one.logprobs, strict=True)
        found.append({"token_ids": list(one.token_ids), "logprobs": [step[token].logprob for token, step in steps]})
    llm.llm_engine.engine_core.shutdown()
    del llm
    cleanup_dist_env_and_memory()
    return found


if __name__ == "__main__":
    print("ANSWERS " + json.dumps([answer(job) for job in json.load(sys.stdin)]), flush=True)
