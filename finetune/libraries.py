"""The large libraries: imported without what a run does not use, and without the garbage collector at work in between.

Importing torch, transformers, peft and trl took 5.4 to 7.1 s; with the collector off 4.0 to 4.7 s, with bitsandbytes
left out as well 3.2 to 3.5 s (2026-11-22, 2 CPU cores, three rounds each).
"""

import functools
import gc
import importlib
import importlib.metadata
import logging
import sys
from collections.abc import Sequence
from typing import Any

_MODELS = ("torch", "transformers", "peft")


def load(*names: str) -> None:
    """Import torch, transformers, peft and `names`, then take all that was imported out of the collector's sight.

    Millions of objects are made that live for ever: each full collection walks through all of them for nothing.
    wandb is hidden meanwhile: TRL would import it for a card of its own, and our tracker wants it after the first step.
    Which distribution brings which package is read from some hundred files: once, though two libraries ask (0.1 s).
    """
    hidden = "wandb" not in sys.modules
    asked = importlib.metadata.packages_distributions
    importlib.metadata.packages_distributions = functools.cache(asked)
    gc.disable()
    if hidden:
        leave_out(["wandb"])
    try:
        for name in (*_MODELS, *names):
            importlib.import_module(name)
    finally:
        if hidden:
            sys.modules.pop("wandb")
        importlib.metadata.packages_distributions = asked
        gc.freeze()
        gc.enable()


def unused(*, bnb: bool, zero3: bool, optimizers: Sequence[str] = ()) -> list[str]:
    """Packages that PEFT and Accelerate would import only because they are installed.

    bitsandbytes brings torch's compiler along (1.0 s), DeepSpeed takes 0.3 s. `optimizers` are the names asked of TRL,
    some of which are bitsandbytes' own.
    """
    foreign = any(not name.startswith("adamw_torch") for name in optimizers)
    return [name for name, used in (("bitsandbytes", bnb or foreign), ("deepspeed", zero3)) if not used]


def bitsandbytes() -> Any:
    """`bitsandbytes.functional`, without what it says when it is imported: an optional kernel package would be fetched
    from a hub, and the built-in kernel is used."""
    hush_bitsandbytes()
    return importlib.import_module("bitsandbytes.functional")


def hush_bitsandbytes() -> None:
    """To be called before anybody imports it."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def leave_out(names: Sequence[str]) -> None:
    """Make these packages look as if they were not installed, for the rest of this process.

    None in sys.modules is Python's own way to say so: find_spec finds nothing, an import is a ModuleNotFoundError.
    """
    for name in names:
        if name not in sys.modules:
            sys.modules[name] = None  # type: ignore[assignment]
