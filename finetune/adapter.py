"""A PEFT LoRA adapter on disk: which base tensors it changes. Read by MERGE.

Nothing is unpickled: only adapter_model.safetensors is read. What this file does not know how to merge exactly it
refuses by name, because a merge that leaves something out answers wrongly without a word.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune import shards
from finetune.artifacts import hash_file
from finetune.deltas import DTYPE, Change, Update, cuts, read_rows
from finetune.errors import Problem, RecipeError

if TYPE_CHECKING:
    import torch

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_ROLE = re.compile(
    r"(?P<module>.+)\.(?:(?P<linear>lora_[AB])\.weight|(?P<embedding>lora_embedding_[AB])"
    r"|(?P<magnitude>lora_magnitude_vector)(?:\.weight)?|(?P<base>base_layer)\.weight"
    r"|token_adapter\.trainable_(?P<tokens>tokens)_delta)"
)

_HARMLESS = frozenset(
    """task_type peft_type auto_mapping peft_version base_model_name_or_path revision inference_mode r target_modules
    exclude_modules lora_alpha lora_dropout use_rslora modules_to_save layers_to_transform layers_pattern rank_pattern
    alpha_pattern megatron_core use_dora qalora_group_size eva_config lora_ga_config velora_config runtime_config
    ensure_weight_tying init_lora_weights bias ephemeral_gpu_offload trainable_token_indices""".split()  # noqa: SIM905
)
"""Keys of adapter_config.json that are read here or do not change the merged weights."""
_REFUSED = {
    "fan_in_fan_out": "the base keeps its matrices transposed (Conv1D, as in GPT-2), which is not merged here",
    "lora_bias": "it trained biases of its own, and there is no bias in the base's layers to take them",
    "layer_replication": "it trained on copies of the base's layers: the merged model is another architecture",
    "target_parameters": "it trained bare parameters (experts of a mixture), which are not merged here",
    "alora_invocation_tokens": "it is active only after certain tokens, which no merged weight can express",
    "arrow_config": "it chooses among adapters token by token, which no merged weight can express",
    "megatron_config": "its tensors are laid out for Megatron",
    "use_qalora": "it works on pooled inputs of a quantised base",
}
"""Keys whose value would change what is merged, and why that is not done."""
_SAVED_WITH_EMBEDDINGS = ("embed_tokens", "lm_head")
"""PEFT adds these whole when the vocabulary grew or when they are targets, and puts them back on loading."""
_CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations that also change the base weights, so that adapter and published base no longer belong together."""
_CHUNK = 32 << 20


@dataclass(frozen=True)
class Adapter:
    directory: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, shards.Tensor]
    sha256: str

    @classmethod
    def read(cls, directory: Path) -> "Adapter":
        """Read config and headers and check every number; raises RecipeError with everything that cannot be merged."""
        if not (directory / WEIGHTS).is_file():
            fix = "save it as safetensors: pickled weights are not opened" if list(directory.glob("*.bin")) else (
                f"give the folder that holds {WEIGHTS}"
            )  # fmt: skip
            raise RecipeError.one(str(directory), None, f"no {WEIGHTS} here", fix)
        try:
            config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RecipeError.one(
                str(directory / CONFIG), None, f"cannot be read ({error})", "give a PEFT adapter folder"
            ) from error
        tensors = shards.read_header(directory / WEIGHTS)
        problems = [*_unsupported(config, directory), *_not_finite(tensors)]
        if problems:
            raise RecipeError(problems)
        return cls(directory, config, tensors, hash_file(directory / WEIGHTS))

    def plan(self, base: Mapping[str, shards.Tensor]) -> dict[str, Update]:
        """Base tensor name -> its update. Raises RecipeError unless every adapter tensor is used exactly once, every
        target of the config is in the file and in the base, and all shapes fit."""
        found: dict[str, dict[str, shards.Tensor]] = {}
        for name, tensor in self.tensors.items():
            match = _ROLE.fullmatch(name.removeprefix(_PREFIX))
            if match and name.startswith(_PREFIX):
                role = next(value for key, value in match.groupdict().items() if key != "module" and value)
                found.setdefault(f"{match['module']}.weight", {})[role] = tensor
            else:
                found.setdefault(name.removeprefix(_PREFIX), {})["whole"] = tensor
        problems = list(self._not_as_configured(found, base))
        updates: dict[str, Update] = {}
        for target, roles in sorted(found.items()):
            module = target.removesuffix(".weight")
            what = self._what_is_wrong(target, roles, base.get(target))
            if what:
                problems.append(Problem(module, sorted(roles), *what))
                continue
            kind = (
                "replace" if "whole" in roles
                else "tokens" if "tokens" in roles
                else "dora" if "lora_magnitude_vector" in roles
                else "embedding" if "lora_embedding_A" in roles
                else "lora"
            )  # fmt: skip
            updates[target] = Update(target, kind, self._scale(module), roles, self._tokens(module))
        if not found:
            problems.append(Problem(str(self.directory / WEIGHTS), None, "the adapter is empty", "train it again"))
        if problems:
            raise RecipeError(problems)
        assert sum(len(update.roles) for update in updates.values()) == len(self.tensors)
        return updates

    def apply(self, update: Update, block: "torch.Tensor", first: int, last: int) -> "torch.Tensor":
        """Rows [first, last) of the base tensor `block`, merged; same dtype. Bit-identical to merge_and_unload()."""
        merged = block.clone()
        Change(update)(merged, first, last)
        return merged

    def describe(self, updates: Mapping[str, Update]) -> dict[str, Any]:
        """What merge.json says of this adapter."""
        kinds = [update.kind for update in updates.values()]
        scaled = {update.scale for update in updates.values() if update.kind not in ("replace", "tokens")}
        return {
            "name": self.directory.name, "sha256": self.sha256, "tensors": len(self.tensors),
            "kinds": {kind: kinds.count(kind) for kind in sorted(set(kinds))}, "scalings": sorted(scaled),
            **{key: self.config.get(key) for key in ("r", "lora_alpha", "use_rslora", "use_dora")},
        }  # fmt: skip

    def _scale(self, module: str) -> float:
        """lora_alpha / r, or / sqrt(r) with use_rslora (2312.03732); patterns win, first match as in PEFT."""
        alpha, rank = self._patterned("alpha_pattern", module, self.config["lora_alpha"]), self._rank(module)
        return float(alpha / math.sqrt(rank) if self.config.get("use_rslora") else alpha / rank)

    def _rank(self, module: str) -> int:
        return int(self._patterned("rank_pattern", module, self.config["r"]))

    def _patterned(self, key: str, module: str, default: Any) -> Any:
        for pattern, value in (self.config.get(key) or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        return default

    def _tokens(self, module: str) -> tuple[int, ...]:
        """Which rows of an embedding were trained; a list means those of the input embedding."""
        asked = self.config.get("trainable_token_indices") or {}
        if isinstance(asked, list):
            asked = {"embed_tokens": asked}
        return next((tuple(rows) for name, rows in asked.items() if _ends(module, name)), ())

    def _saved(self, target: str) -> bool:
        """Whether this tensor may be in the adapter as it is."""
        return any(_inside(target, name) for name in self.config.get("modules_to_save") or ()) or (
            _ends(target.removesuffix(".weight"), *_SAVED_WITH_EMBEDDINGS)
        )

    def _targets(self, modules: Iterable[str]) -> set[str] | None:
        """Of `modules` those that PEFT would give a LoRA by this config; None when the config does not say."""
        wanted, layers = self.config.get("target_modules"), self.config.get("layers_to_transform")
        if wanted is None:
            return None
        patterns = self.config.get("layers_pattern") or r"[^.]*"
        layers = [layers] if isinstance(layers, int) else layers
        numbers = [re.compile(rf"(?:^|.*?\.){pattern}\.(\d+)\.") for pattern in (
            [patterns] if isinstance(patterns, str) else patterns)]  # fmt: skip
        found = set()
        for module in modules:
            if _matches(self.config.get("exclude_modules"), module) or self._replaced(module):
                continue
            if wanted == "all-linear":
                found |= {module} if not _ends(module, *_SAVED_WITH_EMBEDDINGS) else set()
            elif isinstance(wanted, str) or module in wanted:
                found |= {module} if _matches(wanted, module) else set()
            elif _matches(wanted, module):
                match = next(filter(None, (number.match(module) for number in numbers)), None)
                if not layers or (match and int(match[1]) in layers):
                    found.add(module)
        return found

    def _replaced(self, module: str) -> bool:
        saved = self.config.get("modules_to_save") or ()
        return any(re.match(rf"(^|.*\.){name}($|\..*)", module) for name in saved)

    def _not_as_configured(
        self, found: Mapping[str, Mapping[str, shards.Tensor]], base: Mapping[str, shards.Tensor]
    ) -> Iterator[Problem]:
        """PEFT leaves out what config and file do not agree about, with a warning that nobody reads."""
        again = "save the adapter again"
        where = str(self.directory / CONFIG)
        there = {target.removesuffix(".weight") for target, roles in found.items()
                 if not {"whole", "tokens"} & set(roles)}  # fmt: skip
        matrices = {name.removesuffix(".weight") for name, tensor in base.items()
                    if name.endswith(".weight") and len(tensor.shape) == 2}  # fmt: skip
        wanted = self._targets(matrices)
        if wanted is not None:
            if lacking := sorted(wanted - there):
                yield Problem(f"{where}: target_modules", lacking[:5], "targets without a tensor in the adapter", again)
            tied = {"lm_head"} if self.config.get("ensure_weight_tying") else set()
            if inert := sorted((there & matrices) - wanted - tied):
                rule = "tensors of modules that the config does not target, which PEFT passes over"
                yield Problem(f"{where}: target_modules", inert[:5], rule, again)
        for name in self.config.get("modules_to_save") or ():
            if not any("whole" in roles and _inside(target, name) for target, roles in found.items()):
                yield Problem(f"{where}: modules_to_save", name, "the adapter holds nothing of this module", again)

    def _what_is_wrong(
        self, target: str, roles: Mapping[str, shards.Tensor], base: shards.Tensor | None
    ) -> tuple[str, str] | None:
        """(rule, fix) when these adapter tensors cannot be merged into this base tensor."""
        belongs, again = "give the base that this adapter was trained on", "save the adapter again"
        parts = set(roles) - {"base_layer"}
        if "whole" in roles and not self._saved(target):
            return "a tensor of the adapter is neither LoRA nor in modules_to_save, and would be left out", (
                "merge it with the library that made it"
            )
        if base is None:
            return "the adapter changes a module that the base's files do not have", belongs
        shape = base.shape
        if base.dtype not in DTYPE or (len(shape) != 2 and parts != {"whole"}):
            return f"the base tensor is {base.dtype} {list(shape)}, not a matrix of floats", belongs
        rank, tokens = self._rank(target.removesuffix(".weight")), self._tokens(target.removesuffix(".weight"))
        if parts == {"whole"}:
            wanted: dict[str, tuple[int, ...]] = {"whole": shape}
        elif parts == {"tokens"}:
            wanted = {"tokens": (len(tokens), *shape[1:])}
            if len(set(tokens)) != len(tokens) or not all(0 <= token < shape[0] for token in tokens):
                return "trainable_token_indices names a row twice or one that the base does not have", belongs
        elif parts in ({"lora_A", "lora_B"}, {"lora_A", "lora_B", "lora_magnitude_vector"}):
            wanted = {"lora_A": (rank, shape[1]), "lora_B": (shape[0], rank), "lora_magnitude_vector": (shape[0],)}
        elif parts == {"lora_embedding_A", "lora_embedding_B"}:
            wanted = {"lora_embedding_A": (rank, shape[0]), "lora_embedding_B": (shape[1], rank)}
        elif parts == {"lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector"}:
            return "DoRA on an embedding needs the whole vocabulary at once and is not merged here", (
                "merge it with PEFT's merge_and_unload, or train without embed_tokens"
            )
        else:
            return "the adapter's tensors for this module are not a whole set", again
        if self.config.get("use_dora") and parts == {"lora_A", "lora_B"}:
            return "use_dora is set but the magnitude vector is missing", again
        wanted["base_layer"] = shape
        for role, tensor in roles.items():
            if tensor.shape != wanted[role]:
                grown = role in ("whole", "base_layer") and tensor.shape[1:] == shape[1:]
                return f"{role} has shape {list(tensor.shape)}, r={rank} and the base ask {list(wanted[role])}" + (
                    " (the vocabulary was resized in training)" if grown else ""
                ), belongs if not grown else "resize the base's embeddings in the same way and save it first"
        return None


def _ends(module: str, *names: str) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)


def _inside(target: str, saved: str) -> bool:
    """Whether a tensor belongs to a module of modules_to_save, or to one within it (PEFT's rule: by the name's end)."""
    parts = target.split(".")[:-1]
    return any(".".join(parts[: end + 1]).endswith(saved) for end in range(len(parts)))


def _matches(wanted: Any, module: str) -> bool:
    """A string is an expression for the whole name, a list holds ends of names (PEFT's rule)."""
    if not wanted:
        return False
    return bool(re.fullmatch(wanted, module)) if isinstance(wanted, str) else _ends(module, *wanted)


def _unsupported(config: Mapping[str, Any], directory: Path) -> list[Problem]:
    where = str(directory / CONFIG)
    by_hand = "merge it with PEFT's merge_and_unload and check the result with `finetune verify`"
    found = []
    if config.get("peft_type") != "LORA":
        rule = "only LoRA adapters (DoRA and rsLoRA among them) are merged here"
        found.append(Problem(where, config.get("peft_type"), rule, by_hand))
    if config.get("bias", "none") != "none":
        found.append(Problem(f"{where}: bias", config["bias"], "trained biases are not merged here", by_hand))
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower().startswith(_CHANGES_THE_BASE):
        found.append(Problem(
            f"{where}: init_lora_weights", start, "this initialisation changed the base weights as well",
            "save the adapter with PEFT's path_initial_model_for_weight_conversion first",
        ))  # fmt: skip
    found += [
        Problem(f"{where}: {key}", value, _REFUSED.get(key, "not known to be merged exactly"), by_hand)
        for key, value in config.items()
        if key not in _HARMLESS and value
    ]
    return found


def _not_finite(tensors: Mapping[str, shards.Tensor]) -> list[Problem]:
    problems = []
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPE:
            problems.append(Problem(name, tensor.dtype, "adapter tensors are floats", "save the adapter again"))
        elif not tensor.bytes:
            problems.append(
                Problem(name, list(tensor.shape), "the tensor is empty (ZeRO-3 saved a shard)", "save it gathered")
            )
        elif not all(finite(read_rows(tensor, *part)) for part in parts(tensor, _CHUNK)):
            problems.append(Problem(name, None, "the adapter holds NaN or infinity", "train it again"))
    return problems


def parts(tensor: shards.Tensor, bytes_at_once: int) -> Iterator[tuple[int, int]]:
    """The tensor's rows in ranges of about so many bytes."""
    rows = tensor.shape[0] if tensor.shape else 1
    return cuts(0, rows, bytes_at_once * rows // max(1, tensor.bytes))


def finite(block: "torch.Tensor") -> bool:
    """No NaN and no infinity. Both ends of the range tell it, ten times faster than asking every element."""
    import torch

    return not block.numel() or all(math.isfinite(end.item()) for end in torch.aminmax(block))
