"""Make lm_eval_choices.json: a multiple choice as lm-evaluation-harness scores it, for tests/score/test_likelihood.py.

lm-eval brings 21 packages more than we have, so its figures are kept and not it. In a copy of the environment:
pip install lm-eval==0.4.13 && PYTHONPATH=.:tests python tests/score/lm_eval_choices.py
"""

import json
import tempfile
from importlib.metadata import version
from pathlib import Path

from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from multiple_choice import questions
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetune import embedded


def main() -> None:
    model_dir = embedded.build_tiny_qwen3(embedded.models())
    asked = questions(model_dir)
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            {"prompt": one.text, "choices": list(row.choices), "gold": row.choices.index(row.answer)}
            for one, row in asked
        ]
        data = Path(folder, "rows.jsonl")
        data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        task = {
            "task": "ours", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{prompt}}",
            "doc_to_choice": "{{choices}}", "doc_to_target": "gold", "target_delimiter": "",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        }  # fmt: skip
        model = AutoModelForCausalLM.from_pretrained(model_dir, dtype="float32")
        lm = HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(model_dir), batch_size=4, device="cpu")
        found = simple_evaluate(lm, tasks=[task], task_manager=TaskManager(include_defaults=False), bootstrap_iters=0)
    samples = sorted(found["samples"]["ours"], key=lambda sample: sample["doc_id"])
    made = {
        "made_with": f"lm-eval {version('lm-eval')}",
        "acc": found["results"]["ours"]["acc,none"],
        "acc_norm": found["results"]["ours"]["acc_norm,none"],
        "rows": [
            {"log_probs": [float(pair[0]) for pair in sample["filtered_resps"]], "acc": sample["acc"],
             "acc_norm": sample["acc_norm"]}
            for sample in samples
        ],
    }  # fmt: skip
    Path(__file__).with_suffix(".json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
