"""What EXPORT leaves to `.venv-quantise`, which runs `python -m finetune.quantise ORDER.json PARENT`.

That environment pins other versions than training does and lacks most of its packages, so nothing but the standard
library, `errors`, `generate` and `parity` is imported from here. Token ids come in and go out as lines of JSON, weights
as safetensors. Two orders: `compress` writes one quantised checkpoint, `measure` reads the finished ones as a server
would, from their files alone, and asks them what the merged model was asked.
"""

import ctypes
import gc
import json
import os
import signal
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from finetune import parity
from finetune.generate import Kept, generate

Order = Mapping[str, Any]


def compress(order: Order) -> None:
    """Write weights and config.json of `model` into the folder `out`, quantised as `scheme` says.

    `calibration`: a file of {"ids": [...]} lines; null where nothing has to be calibrated.
    """
    import torch
    from llmcompressor import oneshot
    from transformers import AutoModelForCausalLM, GenerationConfig

    torch.manual_seed(order["seed"])
    model = AutoModelForCausalLM.from_pretrained(
        order["model"], dtype="auto", local_files_only=True, trust_remote_code=False, use_safetensors=True
    )
    # Ours has temperature 0.0 for vLLM, and saving refuses that; the file beside the weights is copied by the stage.
    model.generation_config = GenerationConfig()
    read = {}
    if order["calibration"]:
        rows = [line["ids"] for line in _lines(order["calibration"])]
        read = {"dataset": torch.utils.data.DataLoader(rows, collate_fn=_one_row), "num_calibration_samples": len(rows)}
    oneshot(model=model, recipe=_modifiers(order), shuffle_calibration_samples=False, **read)
    model.save_pretrained(order["out"], save_compressed=True)
    versions = {name: version(name) for name in ("llmcompressor", "compressed-tensors", "transformers", "torch")}
    (Path(order["out"]) / "versions.json").write_text(json.dumps(versions), encoding="utf-8")


def _modifiers(order: Order) -> list[Any]:
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.smoothquant import SmoothQuantModifier

    weights = {"type": "int", "symmetric": True}
    if order["scheme"] == "w4a16":
        groups = {"weights": {**weights, "num_bits": 4, "strategy": "group", "group_size": order["group_size"]}}
    else:
        each_token = {**weights, "num_bits": 8, "strategy": "token", "dynamic": True}
        groups = {"weights": {**weights, "num_bits": 8, "strategy": "channel"}, "input_activations": each_token}
    kind = GPTQModifier if order["rounding"] == "gptq" else QuantizationModifier
    rounding = kind(config_groups={"linear": {"targets": ["Linear"], **groups}}, ignore=["lm_head"])
    smoothing = order["smoothing"] if order["scheme"] == "w8a8" else 0
    return [*([SmoothQuantModifier(smoothing_strength=smoothing)] if smoothing else []), rounding]


def _one_row(rows: list[list[int]]) -> dict[str, Any]:
    import torch

    ids = torch.tensor(rows)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def measure(order: Order) -> None:
    """For every `scheme -> directory` of `quantised`: parity-<scheme>.json and answers-<scheme>.jsonl in `out`.

    `asked`: a file of {"id", "prompt", "answer"} lines, token ids, on which logits are compared with those of the model
    in `merged`. `questions`: a file of {"task", "max_new_tokens", "prompts"} lines. Finished files are kept.
    """
    out, asked = Path(order["out"]), _lines(order["asked"])
    prompts, answers = [line["prompt"] for line in asked], [line["answer"] for line in asked]
    wanted = {scheme: out / f"parity-{scheme}.json" for scheme in order["quantised"]}
    logits = out / "merged_logits"
    if not all(file.exists() for file in wanted.values()):
        _say("the merged model reads its answers")
        parity.store(_load(order["merged"], order), prompts, answers, logits)
        gc.collect()
    questions = _lines(order["questions"])
    for scheme, directory in order["quantised"].items():
        kept = Kept(out / f"answers-{scheme}.jsonl")
        answered = all(len(kept.of(task["task"])) == len(task["prompts"]) for task in questions)
        if wanted[scheme].exists() and answered:
            continue
        model = _load(directory, order)
        if not wanted[scheme].exists():
            _say(f"{scheme} reads the same answers")
            found = parity.compare(model, prompts, answers, logits, [line["id"] for line in asked], order["dtype"])
            _write_whole(wanted[scheme], json.dumps(found))
        for task in questions:
            _ask(model, task, kept, order, f"{scheme}, {task['task']}")
        del model
        gc.collect()
    logits.unlink(missing_ok=True)


def _ask(model: Any, task: Mapping[str, Any], kept: Kept, order: Order, what: str) -> None:
    name = task["task"]
    _say(f"{what}, {len(task['prompts'])} prompts")
    generate(
        model, task["prompts"], max_new_tokens=task["max_new_tokens"], stop_ids=order["stop_ids"],
        pad_id=order["pad_id"], batch_tokens=order["batch_tokens"], done=kept.of(name),
        on_batch=lambda batch: kept.add(name, batch), say=lambda line: _say(f"{what}: {line}"),
    )  # fmt: skip


def _load(directory: str, order: Order) -> Any:
    """A checkpoint from its own files; quantised weights are unpacked, activations of w8a8 rounded in every layer."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=getattr(torch, order["dtype"]), attn_implementation="sdpa", local_files_only=True,
        trust_remote_code=False, use_safetensors=True,
    )  # fmt: skip
    quantiser = getattr(model, "hf_quantizer", None)
    if quantiser is not None:  # its own hook for this sits on the outermost module, which parity does not call
        quantiser.compressor.decompress_model(model)
    # As in finetune.base: a strided slice makes torch copy a bfloat16 head once for each row on CPU.
    model.get_output_embeddings().register_forward_pre_hook(lambda _, given: (given[0].contiguous(), *given[1:]))
    return model.requires_grad_(False).to(order["device"]).eval()


def _lines(file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]


def _write_whole(file: Path, text: str) -> None:
    written = file.with_name(f".{file.name}.writing")
    written.write_text(text, encoding="utf-8")
    written.replace(file)


def _say(line: str) -> None:
    print(f"export: {line}", flush=True)  # other lines, llm-compressor's, go to the log


def _end_with(parent: int) -> None:
    """When the stage that waits for us is killed, the kernel kills us too: nobody else may write into its folder."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        raise SystemExit(1)


def main(file: str, parent: str) -> int:
    _end_with(int(parent))
    import torch

    order = json.loads(Path(file).read_text(encoding="utf-8"))
    torch.set_num_threads(order["threads"])
    {"compress": compress, "measure": measure}[order["do"]](order)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
