"""Run by `.venv-quantise`: Transformers' log-probabilities of the tokens that vLLM answered. ORDER.json -> reads.json.

Order: as for vllm_reads.py; found.json lies beside it. Reads: {name: [[log-probability of each token], ...]}.
"""

import json
import sys
from pathlib import Path

from finetune import parity
from finetune.quantise import _load

if __name__ == "__main__":
    file = Path(sys.argv[1])
    order, found = json.loads(file.read_text()), json.loads(file.with_name("found.json").read_text())
    reads = {}
    for name, directory in order["models"].items():
        model = _load(directory, {**order, "device": "cpu"})
        answers = [one["answer"] for one in found[name]]
        all_logits = parity.logits_of(model, order["prompts"], answers)
        reads[name] = [
            logits.log_softmax(-1)[range(len(answer)), answer].tolist()
            for logits, answer in zip(all_logits, answers, strict=True)
        ]
    file.with_name("reads.json").write_text(json.dumps(reads))
