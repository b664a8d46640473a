"""Base, SFT, tuned and merged as models in this process: at most one in memory, and none where all answers are kept."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from finetune.artifacts import Artifact
from finetune.base import device_of, give_back_memory, load_adapter, load_base, quantised_modules
from finetune.config.machine import Machine
from finetune.config.model import Model
from finetune.config.training import Method
from finetune.generate import fold_adapter
from finetune.provenance import version_of
from finetune.shards import shard_names

ASKING = 1
"""Raise it with every change of generate.py, parity.py or score/inprocess.py that may change an answer: answers that
were made before it are then asked anew. (Another prompt is asked anew by itself.)"""


class Adapted:
    """A base and one adapter: asked first with the adapter off, then with the two added up, and there is no way back.

    Decoding through a float32 adapter costs about twice the CPU time, so it is added to the weights (fold_adapter).
    """

    def __init__(self, base: Artifact, adapter: Artifact, model: Model, method: Method, machine: Machine) -> None:
        self._load = lambda: load_adapter(load_base(base, model, method, device=device_of(machine)), adapter)
        self._base, self._adapter = base, adapter
        self._arithmetic = arithmetic(model, machine) | {"bnb": method.bnb}
        self._model: Any = None
        self._folded = False

    def about(self, *, tuned: bool) -> dict[str, Any]:
        """What decides the answers."""
        adapter = self._adapter.digest if tuned else None
        return {"base": self._base.digest, "adapter": adapter, **self._arithmetic}

    @contextmanager
    def as_base(self) -> Iterator[Any]:
        assert not self._folded, "the base is asked before its adapter is added to it"
        with self._loaded().disable_adapter():
            yield self._model

    @contextmanager
    def as_tuned(self) -> Iterator[Any]:
        model = self._loaded()
        if not self._folded:
            fold_adapter(model)
            self._folded = True
        yield model

    def equals(self, merged: Path) -> bool:
        """Whether the sum in memory is, bit for bit, the checkpoint in `merged`: then the answers of the two are one.

        False for a 4-bit base, which cannot hold the sum.
        """
        import torch
        from safetensors import safe_open

        with self.as_tuned() as model:
            if quantised_modules(model):
                return False
            weights = {
                name.removeprefix("base_model.model.").replace(".base_layer.", "."): tensor
                for name, tensor in model.named_parameters(remove_duplicate=False)
                if ".lora_" not in name
            }
            for shard in shard_names(merged):
                with safe_open(str(merged / shard), framework="pt") as file:
                    for name in file.keys():  # noqa: SIM118 - it is no mapping
                        own = weights.get(name)
                        if own is None or not torch.equal(own.cpu(), file.get_tensor(name)):
                            return False
        return True

    def forget(self) -> None:
        self._model = None
        give_back_memory()

    def _loaded(self) -> Any:
        if self._model is None:
            self._model = self._load()
            self._folded = False
        return self._model


class Whole:
    """A checkpoint that is complete in itself."""

    def __init__(self, directory: Artifact, model: Model, machine: Machine) -> None:
        # What a checkpoint says of its rope is what a server reads: a recipe's YaRN stands in it already.
        settings = model.model_copy(update={"rope_parameters": None})
        self._load = lambda: load_base(directory, settings, None, device=device_of(machine))
        self._about = {"checkpoint": directory.digest, **arithmetic(settings, machine)}
        self._model: Any = None

    def about(self) -> dict[str, Any]:
        return self._about

    @contextmanager
    def as_it_is(self) -> Iterator[Any]:
        if self._model is None:
            self._model = self._load()
        yield self._model

    def forget(self) -> None:
        self._model = None
        give_back_memory()


def arithmetic(model: Model, machine: Machine) -> dict[str, Any]:
    """What changes an answer of the same weights: our code that asks, the libraries, the device, section `model`."""
    rope = None if model.rope_parameters is None else model.rope_parameters.model_dump(mode="json")
    return {
        "asking": ASKING, "torch": version_of("torch"), "transformers": version_of("transformers"),
        "device": device_of(machine).type, "dtype": model.dtype, "attn_implementation": model.attn_implementation,
        "rope_parameters": rope,
    }  # fmt: skip
