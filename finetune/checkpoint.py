"""The small files beside the weights, written so that servers and both generations of transformers read the same.

config.json, generation_config.json, tokenizer files and the chat template with the default mode baked in. A server
reads every one of them without complaint when it is off, and answers wrongly; finetune.verify checks what is made here.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.artifacts import write_whole
from finetune.config.model import Yarn
from finetune.errors import RecipeError

TOKENIZER_FILES = (
    "tokenizer.json", "vocab.json", "merges.txt", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
"""Copied when the base has them; older readers want vocab.json and merges.txt beside tokenizer.json."""
TEMPLATE = "chat_template.jinja"
_DTYPE_NAME = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_ARCHITECTURE = {"qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}
_BAKED = "{%- if enable_thinking is not defined %}{%- set enable_thinking = false %}{%- endif %}\n"


def write_small_files(
    base: Path, model: Path, *, dtypes: set[str], default_mode: str | None, yarn: Yarn | None = None,
    untied: bool = False,
) -> None:
    """Write everything but the weights into `model`. Deterministic: same base, same bytes.

    `untied`: the head has numbers of its own now, whatever the base's config says.
    """
    source = read_json(base / "config.json")
    config = model_config(source | ({"tie_word_embeddings": False} if untied else {}), dtypes=dtypes, yarn=yarn)
    tokenizer = tokenizer_config(read_json(base / "tokenizer_config.json"), config)
    generation_file = base / "generation_config.json"
    earlier = read_json(generation_file) if generation_file.exists() else {}
    generation = generation_config(earlier, config, _eos_of_turn(base, tokenizer), default_mode=default_mode)
    _write_json(model / "config.json", config)
    _write_json(model / "generation_config.json", generation)
    _write_json(model / "tokenizer_config.json", tokenizer)
    if not (base / "tokenizer.json").is_file():
        raise RecipeError.one(
            str(base), None, "there is no tokenizer.json", "give a base with its fast tokenizer: servers need it"
        )
    for name in TOKENIZER_FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, model / name)
    write_whole(model / TEMPLATE, bake_mode(read_template(base), default_mode))


def model_config(base: Mapping[str, Any], *, dtypes: set[str], yarn: Yarn | None = None) -> dict[str, Any]:
    """config.json of the merged model: rope and dtype in the spelling of transformers 4 and 5, nothing of training.

    `yarn` is what the adapter was trained with, in place of the base's own rope.
    """
    config = {
        key: value
        for key, value in base.items()
        if key not in ("quantization_config", "auto_map", "_name_or_path", "transformers_version", "torch_dtype")
        and not (key == "rope_scaling" and value is None)
    }
    config["architectures"] = [_ARCHITECTURE[config["model_type"]]] if config.get("model_type") in _ARCHITECTURE else (
        config.get("architectures")
    )  # fmt: skip
    config["tie_word_embeddings"] = bool(config.get("tie_word_embeddings", False))
    if len(dtypes & set(_DTYPE_NAME)) == 1:
        config["dtype"] = _DTYPE_NAME[next(iter(dtypes & set(_DTYPE_NAME)))]
    if yarn is not None:
        theta = _rope(config)["rope_theta"]
        config |= {"rope_theta": theta, "rope_scaling": yarn.model_dump(), "max_position_embeddings": yarn.positions}
    return {**config, **_rope(config)} if not _rope_scaled(config) else _scaled_rope(config)


def generation_config(
    base: Mapping[str, Any], config: Mapping[str, Any], eos_of_turn: int | None, *, default_mode: str | None
) -> dict[str, Any]:
    """Defaults of a server that is asked without sampling parameters.

    Plain mode answers greedily, as it was scored; vLLM ignores do_sample, so temperature 0.0 stands there too.
    Thinking mode, or none given, keeps the base's sampling (greedy thinking loops). Every id that may end an answer is
    listed.
    """
    ends: list[int] = [] if eos_of_turn is None else [eos_of_turn]
    for source in (base.get("eos_token_id"), config.get("eos_token_id")):
        for end in source if isinstance(source, list) else [source]:
            if end is not None and end not in ends:
                ends.append(end)
    found: dict[str, Any] = {"eos_token_id": ends}
    for key in ("bos_token_id", "pad_token_id"):
        value = base.get(key, config.get(key))
        if value is not None:
            found[key] = value
    if default_mode == "plain" or not base.get("do_sample"):
        return {**found, "do_sample": False, "temperature": 0.0}
    sampling = {key: base[key] for key in ("top_p", "top_k", "min_p", "repetition_penalty") if key in base}
    return {**found, "do_sample": True, "temperature": base.get("temperature") or 1.0, **sampling}


def tokenizer_config(base: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json that transformers 4 reads too: its own class names, special tokens not as a list."""
    found = {key: value for key, value in base.items() if key not in ("auto_map", "chat_template")}
    extra = found.pop("extra_special_tokens", None)
    if isinstance(extra, dict):
        found["extra_special_tokens"] = extra
    elif extra:
        known = list(found.get("additional_special_tokens") or [])
        found["additional_special_tokens"] = known + [token for token in extra if token not in known]
    if found.get("tokenizer_class") in (None, "TokenizersBackend"):
        found["tokenizer_class"] = "Qwen2Tokenizer" if config.get("model_type") == "qwen3" else (
            "PreTrainedTokenizerFast"
        )  # fmt: skip
    return found


def read_template(directory: Path) -> str:
    """The chat template: the .jinja file, else the one inside tokenizer_config.json (the order that readers use)."""
    file = directory / TEMPLATE
    if file.is_file():
        return file.read_text(encoding="utf-8")
    inside = read_json(directory / "tokenizer_config.json").get("chat_template")
    if isinstance(inside, str):
        return inside
    raise RecipeError.one(
        str(file), None, "the base has no chat template, so a server would refuse every chat",
        f"put the template it was trained with into {TEMPLATE}",
    )  # fmt: skip


def bake_mode(template: str, default_mode: str | None) -> str:
    """The template whose rendering without `enable_thinking` is the default mode; asked explicitly nothing changes.

    Qwen3's own template thinks unless told not to, which a model tuned on plain answers was never trained for.
    """
    if default_mode == "plain" and "enable_thinking" in template and not template.startswith(_BAKED):
        return _BAKED + template
    return template


def read_json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError.one(
            str(file), None, f"cannot be read ({error})", "give a complete Hugging Face model directory"
        ) from error
    if not isinstance(found, dict):
        raise RecipeError.one(str(file), None, "is not a JSON object", "copy the model again")
    return found


def _rope_scaled(config: Mapping[str, Any]) -> bool:
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    return rope.get("rope_type", rope.get("type", "default")) != "default"


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """transformers 4 reads rope_theta, 5 reads rope_parameters; without the first, 4 takes 10000 in silence."""
    theta = (config.get("rope_parameters") or {}).get("rope_theta", config.get("rope_theta"))
    if theta is None:
        raise RecipeError.one(
            "config.json: rope_theta", None, "the base does not say its rope theta and readers guess differently",
            "add rope_theta as published with the model",
        )  # fmt: skip
    return {"rope_theta": theta, "rope_parameters": {"rope_type": "default", "rope_theta": theta}}


def _scaled_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """YaRN and the like in transformers 4's spelling, which 5 and vLLM read as well; both at once lose the theta."""
    scaling = dict(config.get("rope_scaling") or config.get("rope_parameters") or {})
    theta = scaling.pop("rope_theta", config.get("rope_theta"))
    if theta is None:
        theta = (config.get("rope_parameters") or {}).get("rope_theta")
    kept = {key: value for key, value in config.items() if key not in ("rope_parameters", "rope_scaling")}
    return {**kept, "rope_theta": theta, "rope_scaling": scaling}


def _eos_of_turn(base: Path, tokenizer: Mapping[str, Any]) -> int | None:
    """Id of the tokenizer's eos token: what the chat template ends an assistant's turn with."""
    token = tokenizer.get("eos_token")
    text = token.get("content") if isinstance(token, dict) else token
    for entry in read_json(base / "tokenizer.json").get("added_tokens", []):
        if entry["content"] == text:
            return int(entry["id"])
    return None


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    write_whole(file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
