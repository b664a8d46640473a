"""A PEFT LoRA adapter on disk: which base tensors it changes and what becomes of them. Read by MERGE.

Nothing is unpickled: only adapter_model.safetensors is read. What this file does not know how to merge exactly it
refuses by name, because a merge that leaves something out answers wrongly without a word.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune import shards
from finetune.artifacts import hash_file
from finetune.errors import Problem, RecipeError

if TYPE_CHECKING:
    import torch

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_DTYPE = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_ROLE = re.compile(
    r"(?P<module>.+)\.(?:(?P<linear>lora_[AB])\.weight|(?P<embedding>lora_embedding_[AB])"
    r"|(?P<magnitude>lora_magnitude_vector)(?:\.weight)?|(?P<base>base_layer)\.weight)"
)

_HARMLESS = frozenset(
    """task_type peft_type auto_mapping peft_version base_model_name_or_path revision inference_mode r target_modules
    exclude_modules lora_alpha lora_dropout use_rslora modules_to_save layers_to_transform layers_pattern rank_pattern
    alpha_pattern megatron_core use_dora qalora_group_size eva_config lora_ga_config velora_config runtime_config
    ensure_weight_tying init_lora_weights bias ephemeral_gpu_offload""".split()  # noqa: SIM905
)
"""Keys of adapter_config.json that are read here or do not change the merged weights."""
_SAVED_WITH_EMBEDDINGS = ("embed_tokens", "lm_head")
"""PEFT adds these whole when the vocabulary grew or when they are targets, and puts them back on loading."""
_CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations that also change the base weights, so that adapter and published base no longer belong together."""


@dataclass(frozen=True)
class Update:
    """What happens to one base tensor: `kind` lora (rows += scale * B A), embedding (the same, transposed), dora, or
    replace (modules_to_save). `roles` maps a role to the adapter's tensor."""

    target: str
    kind: str
    scale: float
    roles: Mapping[str, shards.Tensor]


@dataclass(frozen=True)
class Adapter:
    directory: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, shards.Tensor]
    sha256: str
    _held: "dict[str, torch.Tensor]" = field(default_factory=dict, compare=False)

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
        target is in the base and all shapes fit."""
        modules: dict[str, dict[str, shards.Tensor]] = {}
        for name, tensor in self.tensors.items():
            match = _ROLE.fullmatch(name.removeprefix(_PREFIX))
            if match and name.startswith(_PREFIX):
                role = match["linear"] or match["embedding"] or match["magnitude"] or match["base"]
                modules.setdefault(match["module"], {})[role] = tensor
            else:
                module = name.removeprefix(_PREFIX).removesuffix(".weight")
                modules.setdefault(module, {})["whole"] = tensor
        problems: list[Problem] = []
        updates: dict[str, Update] = {}
        saved = tuple(self.config.get("modules_to_save") or ())
        for module, roles in sorted(modules.items()):
            target = f"{module}.weight"
            what = self._what_is_wrong(module, roles, base.get(target), saved)
            if what:
                problems.append(Problem(module, sorted(roles), *what))
                continue
            kind = (
                "replace" if "whole" in roles
                else "dora" if "lora_magnitude_vector" in roles
                else "embedding" if "lora_embedding_A" in roles
                else "lora"
            )  # fmt: skip
            updates[target] = Update(target, kind, self._scale(module), roles)
        if not modules:
            problems.append(Problem(str(self.directory / WEIGHTS), None, "the adapter is empty", "train it again"))
        if problems:
            raise RecipeError(problems)
        assert sum(len(update.roles) for update in updates.values()) == len(self.tensors)
        return updates

    def apply(self, update: Update, block: "torch.Tensor", first: int, last: int) -> "torch.Tensor":
        """Rows [first, last) of the base tensor `block`, merged; same dtype. Bit-identical to merge_and_unload()."""
        import torch

        if update.kind == "replace":
            return self._load(update.roles["whole"])[first:last].to(block.dtype)
        if "base_layer" in update.roles:
            block = self._load(update.roles["base_layer"])[first:last].to(block.dtype)
        if update.kind == "embedding":
            a, b = self._load(update.roles["lora_embedding_A"]), self._load(update.roles["lora_embedding_B"])
            delta = (b.float() @ a.float()[:, first:last]).T * update.scale
            # PEFT rounds the delta of an embedding before adding it, unlike that of a linear layer.
            return block + delta.to(block.dtype)
        a, b = self._load(update.roles["lora_A"]), self._load(update.roles["lora_B"])
        delta = (b.float()[first:last] @ a.float()) * update.scale
        merged = block.float() + delta
        if update.kind == "dora":
            # DoRA (2402.09353, section 4.3): the norm of each row of the merged direction is divided out.
            norm = torch.linalg.norm(merged, dim=1)
            magnitude = self._load(update.roles["lora_magnitude_vector"]).float()[first:last]
            merged = (magnitude / norm).view(-1, 1) * merged
        return merged.to(block.dtype)

    def _load(self, tensor: shards.Tensor) -> "torch.Tensor":
        """One adapter tensor; those of the module in work are kept, so that row blocks do not read them again."""
        module = _module(tensor.name)
        if self._held and _module(next(iter(self._held))) != module:
            self._held.clear()
        if tensor.name not in self._held:
            self._held[tensor.name] = read_tensor(tensor)
        return self._held[tensor.name]

    def _scale(self, module: str) -> float:
        """lora_alpha / r, or / sqrt(r) with use_rslora (2312.03732); patterns win, first match as in PEFT."""
        alpha = self._patterned("alpha_pattern", module, self.config["lora_alpha"])
        rank = self._rank(module)
        return float(alpha / rank**0.5 if self.config.get("use_rslora") else alpha / rank)

    def _rank(self, module: str) -> int:
        return int(self._patterned("rank_pattern", module, self.config["r"]))

    def _patterned(self, key: str, module: str, default: Any) -> Any:
        for pattern, value in (self.config.get(key) or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        return default

    def _what_is_wrong(
        self, module: str, roles: Mapping[str, shards.Tensor], base: shards.Tensor | None, saved: tuple[str, ...]
    ) -> tuple[str, str] | None:
        """(rule, fix) when these adapter tensors cannot be merged into this base tensor."""
        belongs = "give the base that this adapter was trained on"
        if "whole" in roles and module.split(".")[-1] not in (*saved, *_SAVED_WITH_EMBEDDINGS):
            return "a tensor of the adapter is neither LoRA nor in modules_to_save, and would be left out", (
                "merge it with the library that made it"
            )
        if base is None:
            return "the adapter changes a module that the base's files do not have", belongs
        shape = base.shape
        if base.dtype not in _DTYPE or len(shape) != 2:
            return f"the base tensor is {base.dtype} {list(shape)}, not a matrix of floats", belongs
        rank = self._rank(module)
        parts = set(roles) - {"base_layer"}
        if parts == {"whole"}:
            wanted: dict[str, tuple[int, ...]] = {"whole": shape}
        elif parts in ({"lora_A", "lora_B"}, {"lora_A", "lora_B", "lora_magnitude_vector"}):
            wanted = {"lora_A": (rank, shape[1]), "lora_B": (shape[0], rank), "lora_magnitude_vector": (shape[0],)}
        elif parts == {"lora_embedding_A", "lora_embedding_B"}:
            wanted = {"lora_embedding_A": (rank, shape[0]), "lora_embedding_B": (shape[1], rank)}
        else:
            return "the adapter's tensors for this module are not a whole set", "save the adapter again"
        if self.config.get("use_dora") and parts == {"lora_A", "lora_B"}:
            return "use_dora is set but the magnitude vector is missing", "save the adapter again"
        wanted["base_layer"] = shape
        for role, tensor in roles.items():
            if tensor.shape != wanted[role]:
                return f"{role} has shape {list(tensor.shape)}, r={rank} and the base ask {list(wanted[role])}", belongs
        return None


def _module(name: str) -> str:
    match = _ROLE.fullmatch(name)
    return match["module"] if match else name


def read_tensor(tensor: shards.Tensor) -> "torch.Tensor":
    """One tensor of floats in memory of its own: a memory map would count the whole file as resident."""
    import torch

    with tensor.file.open("rb") as handle:
        handle.seek(tensor.start)
        buffer = bytearray(handle.read(tensor.bytes))
    return torch.frombuffer(buffer, dtype=getattr(torch, _DTYPE[tensor.dtype])).reshape(tensor.shape)


def _unsupported(config: Mapping[str, Any], directory: Path) -> list[Problem]:
    where = str(directory / CONFIG)
    by_hand = "merge it with PEFT's merge_and_unload and check the result with `finetune verify`"
    found = []
    if config.get("peft_type") != "LORA":
        found.append(Problem(where, config.get("peft_type"), "only LoRA adapters are merged here", by_hand))
    if config.get("bias", "none") != "none":
        found.append(Problem(f"{where}: bias", config["bias"], "trained biases are not merged here", by_hand))
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower().startswith(_CHANGES_THE_BASE):
        found.append(Problem(
            f"{where}: init_lora_weights", start, "this initialisation changed the base weights as well",
            "save the adapter with PEFT's path_initial_model_for_weight_conversion first",
        ))  # fmt: skip
    found += [
        Problem(f"{where}: {key}", value, "not known to be merged exactly", by_hand)
        for key, value in config.items()
        if key not in _HARMLESS and value
    ]
    return found


def _not_finite(tensors: Mapping[str, shards.Tensor]) -> list[Problem]:
    import torch

    problems = []
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPE:
            problems.append(Problem(name, tensor.dtype, "adapter tensors are floats", "save the adapter again"))
        elif not tensor.bytes:
            problems.append(
                Problem(name, list(tensor.shape), "the tensor is empty (ZeRO-3 saved a shard)", "save it gathered")
            )
        elif not bool(torch.isfinite(read_tensor(tensor)).all()):
            problems.append(Problem(name, None, "the adapter holds NaN or infinity", "train it again"))
    return problems


