"""config.json and generation_config.json as servers and both generations of transformers read them."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from finetune.findings import Finding, finding

_ARCHITECTURE = {"qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}
_ROPE_NEEDS: Mapping[str, tuple[str, ...]] = {
    "default": (), "linear": ("factor",), "dynamic": ("factor",),
    # Without the second, readers put max_position_embeddings in its place, which is the extended length here.
    "yarn": ("factor", "original_max_position_embeddings"),
    "longrope": ("short_factor", "long_factor"),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
}  # fmt: skip
_RESTORE = "restore config.json of the base"


def check_config(directory: Path, config: Mapping[str, Any]) -> Iterator[Finding]:
    """Architecture, code from outside, quantisation left over from training, rope, layer types."""
    where = str(directory / "config.json")
    kind, named = config.get("model_type"), config.get("architectures")
    if not kind:
        yield finding("model-type", f"{where}: model_type", None, "readers cannot tell which model this is", _RESTORE)
    elif not (isinstance(named, list) and len(named) == 1 and str(named[0]).endswith("ForCausalLM")) or (
        named != [_ARCHITECTURE.get(str(kind), named[0])] or str(named[0]).startswith(("Peft", "FSDP"))
    ):
        yield finding(
            "architecture", f"{where}: architectures", named, "a server would refuse it or serve it as a pooling model",
            f'write ["{_ARCHITECTURE.get(str(kind), "...ForCausalLM")}"]',
        )  # fmt: skip
    if config.get("auto_map"):
        yield finding("auto-map", f"{where}: auto_map", config["auto_map"],
                      "it asks readers to run code of the model's author", "remove auto_map")  # fmt: skip
    quantisation = config.get("quantization_config")
    if isinstance(quantisation, dict) and str(quantisation.get("quant_method")) == "bitsandbytes":
        yield finding("training-quantisation", f"{where}: quantization_config", "bitsandbytes",
                      "a leftover of QLoRA training, which servers do not know",
                      "remove quantization_config")  # fmt: skip
    types = config.get("layer_types")
    if isinstance(types, list) and len(types) != config.get("num_hidden_layers"):
        yield finding("layer-types", f"{where}: layer_types", len(types), "one entry for each of num_hidden_layers",
                      _RESTORE)  # fmt: skip
    if kind == "qwen3" and config.get("head_dim") is None:
        yield finding("head-dim", f"{where}: head_dim", None, "readers without it guess 128 or hidden/heads",
                      "write head_dim")  # fmt: skip
    yield from _rope(where, config)


def rope_note(config: Mapping[str, Any]) -> str | None:
    """What holds for one generation of readers only and is no defect for the other."""
    parameters = config.get("rope_parameters")
    kind = parameters.get("rope_type", "default") if isinstance(parameters, dict) else "default"
    if kind == "default" or config.get("rope_scaling"):
        return None
    return f"{kind} stands in rope_parameters alone: transformers 4 does not read it there (it reads rope_scaling)"


def _rope(where: str, config: Mapping[str, Any]) -> Iterator[Finding]:
    parameters, scaling = config.get("rope_parameters"), config.get("rope_scaling")
    theta = config.get("rope_theta")
    if not all(part is None or isinstance(part, dict) for part in (parameters, scaling)):
        yield finding("rope-type", f"{where}: rope", parameters or scaling, "a mapping of rope's numbers", _RESTORE)
        return
    inner = (parameters or {}).get("rope_theta")
    if parameters and scaling:
        yield finding(
            "two-ropes", f"{where}: rope_scaling", scaling,
            "rope_parameters stands beside it, and readers lose the theta",
            "keep rope_theta with rope_scaling, or rope_theta with rope_parameters",
        )  # fmt: skip
    if theta is None and not inner:
        yield finding("rope-theta", f"{where}: rope_theta", None,
                      "readers fall back to a theta of their own in silence",
                      "write rope_theta as published with the base")  # fmt: skip
    elif theta is None:
        yield finding("rope-theta-version-4", f"{where}: rope_theta", None,
                      "transformers 4 does not read rope_parameters and takes 10000",
                      f"add rope_theta: {inner}")  # fmt: skip
    elif inner is not None and inner != theta:
        yield finding("two-thetas", f"{where}: rope_theta", theta, f"rope_parameters says {inner}", "make them one")
    rope = scaling or parameters or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in _ROPE_NEEDS:
        yield finding("rope-type", f"{where}: rope_type", kind, f"known are {', '.join(_ROPE_NEEDS)}",
                      "use one of them")  # fmt: skip
        return
    lacking = [key for key in _ROPE_NEEDS[kind] if key not in rope]
    if lacking:
        yield finding("rope-keys", f"{where}: rope ({kind})", lacking, "keys that this kind needs are missing",
                      "add them")  # fmt: skip
    original, longest = rope.get("original_max_position_embeddings", 0), config.get("max_position_embeddings")
    if kind == "yarn" and not lacking and longest != (reach := int(original * rope["factor"])):
        rule = (
            "YaRN extends nothing while this is below original x factor" if longest is None or longest < reach
            else "servers would accept positions that YaRN does not reach"
        )  # fmt: skip
        yield finding("yarn-length", f"{where}: max_position_embeddings", longest, rule, f"write {reach}")


def check_generation(
    directory: Path, config: Mapping[str, Any], ids: Mapping[str, int], end_of_turn: str | None,
    tokenizer_config: Mapping[str, Any],
) -> Iterator[Finding]:
    """Defaults of a server: where answers end, and how they are sampled when the request does not say."""
    file = directory / "generation_config.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        yield finding("generation-config", file, None,
                      "missing or unreadable, and servers then sample at temperature 1.0 in silence",
                      'write {"eos_token_id": [...], "do_sample": false, "temperature": 0.0}')  # fmt: skip
        return
    ends = found.get("eos_token_id", config.get("eos_token_id"))
    listed = ends if isinstance(ends, list) else [] if ends is None else [ends]
    token = tokenizer_config.get("eos_token")
    for what in dict.fromkeys([end_of_turn, token.get("content") if isinstance(token, dict) else token]):
        if what is not None and ids.get(what) not in listed:
            yield finding("end-of-answer", f"{file}: eos_token_id", ends,
                          f"answers end with {what} (id {ids.get(what)}), which is not listed: servers would talk on",
                          f"add {ids.get(what)}")  # fmt: skip
    known = set(ids.values())
    strange = [end for end in listed if known and end not in known]
    if strange or not listed:
        yield finding("end-ids", f"{file}: eos_token_id", ends, "not ids of this tokenizer",
                      "write the ids that end an answer")  # fmt: skip
    yield from _sampling(file, found)


def _sampling(file: Path, found: Mapping[str, Any]) -> Iterator[Finding]:
    temperature = found.get("temperature")
    if temperature is None:
        yield finding("temperature", f"{file}: temperature", None,
                      "vLLM ignores do_sample and samples at 1.0 when it is absent",
                      "write temperature: 0.0 for greedy, or the one you want")  # fmt: skip
    elif not isinstance(temperature, int | float) or temperature < 0:
        yield finding("temperature", f"{file}: temperature", temperature, "a number from 0 up", "correct it")
    elif found.get("do_sample") is False and temperature != 0:
        yield finding("temperature", f"{file}: temperature", temperature, "transformers answers greedily, vLLM samples",
                      "write 0.0, or do_sample: true")  # fmt: skip
    elif found.get("do_sample") and temperature == 0:
        yield finding("temperature", f"{file}: do_sample", True, "transformers refuses to sample at temperature 0",
                      "write do_sample: false")  # fmt: skip
    top_p, top_k = found.get("top_p"), found.get("top_k")
    if top_p is not None and not (isinstance(top_p, int | float) and 0 < top_p <= 1):
        yield finding("sampling-range", f"{file}: top_p", top_p, "above 0, at most 1", "correct it")
    if top_k is not None and (not isinstance(top_k, int) or top_k < -1):
        yield finding("sampling-range", f"{file}: top_k", top_k, "a whole number from -1 up", "correct it")
    if "max_new_tokens" in found:
        yield finding("answer-length", f"{file}: max_new_tokens", found["max_new_tokens"],
                      "it becomes the length of every answer that asks for none", "remove it")  # fmt: skip
