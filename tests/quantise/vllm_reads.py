"""Run by `.venv-serve`: what vLLM answers, greedily, with quantised checkpoints. ORDER.json -> found.json beside it.

Order: {"models": {name: directory}, "prompts": [[ids], ...], "tokens": n, "dtype": str}. Found: {name: [{"answer":
[ids], "logprobs": [...]}, ...]}, the log-probability of each greedy token.
"""

import json
import os
import sys
from pathlib import Path

os.environ |= {
    "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "TORCHDYNAMO_DISABLE": "1",
}  # fmt: skip

from vllm import LLM, SamplingParams
from vllm.distributed.parallel_state import cleanup_dist_env_and_memory


def read(directory: str, prompts: list[list[int]], tokens: int, dtype: str) -> list[dict]:
    llm = LLM(
        model=directory, dtype=dtype, max_model_len=256, max_num_seqs=4, kv_cache_memory_bytes=256 << 20,
        enforce_eager=True, seed=0,
    )  # fmt: skip
    asked = SamplingParams(temperature=0, max_tokens=tokens, logprobs=1, ignore_eos=True)
    made = [one.outputs[0] for one in llm.generate([{"prompt_token_ids": ids} for ids in prompts], asked)]
    found = []
    for one in made:
        chosen = [step[token].logprob for token, step in zip(one.token_ids, one.logprobs, strict=True)]
        found.append({"answer": list(one.token_ids), "logprobs": chosen})
    llm.llm_engine.engine_core.shutdown()
    del llm
    cleanup_dist_env_and_memory()
    return found


if __name__ == "__main__":
    order = json.loads(Path(sys.argv[1]).read_text())
    found = {
        name: read(directory, order["prompts"], order["tokens"], order["dtype"])
        for name, directory in order["models"].items()
    }
    Path(sys.argv[1]).with_name("found.json").write_text(json.dumps(found))
