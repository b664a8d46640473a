"""The base model on disk and in memory: where its files are, how it is loaded, in 4 bit too, and the adapter on top.

`find_base` imports no torch; everything that does imports it inside the function, so that planning stays quick.
"""

import ctypes
import fcntl
import gc
import hashlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune import artifacts, embedded, libraries, wheels
from finetune.artifacts import Artifact
from finetune.config.machine import Machine
from finetune.config.model import Model
from finetune.config.training import Method
from finetune.errors import RecipeError
from finetune.memory.disk import hub_snapshot

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

_WANTED = ("*.json", "*.safetensors", "*.jinja", "*.txt", "LICENSE*", "NOTICE*")
_REMEMBERED = "digests.json"


# --- files -----------------------------------------------------------------------------------------------------------


def find_base(model: Model) -> Artifact:
    """The base model's directory as an artifact whose digest identifies every byte that can change a result.

    Hashes of files are remembered by (path, size, mtime, inode), so that 65 GB are read once. Raises RecipeError when
    the files are not here and may not be fetched.
    """
    path = _directory_of(model)
    if not (path / "config.json").is_file():
        raise RecipeError.one(
            "model.path", str(path), "this folder holds no model (config.json is missing)",
            "give the folder that holds config.json, the tokenizer and model*.safetensors",
        )
    if not list(path.glob("*.safetensors")):
        raise RecipeError.one(
            "model.path", str(path), "this folder has no *.safetensors (pickled weights are never loaded)",
            "convert the weights to safetensors first",
        )
    return _as_artifact(model, path, _hash_files(path))


def remembered_base(model: Model) -> Artifact | None:
    """What `find_base` would return, without fetching or hashing: None where a file was never hashed here."""
    try:
        path = hub_snapshot(model) if model.path is None and model.origin == "hub" else _directory_of(model)
    except RecipeError:
        return None
    known = _read_book(wheels.home() / _REMEMBERED)
    keys = {str(file.relative_to(path)): _key_of(file) for file in sorted(_visible(path))}
    if not keys or not set(keys.values()) <= set(known):
        return None
    return _as_artifact(model, path, {name: known[key] for name, key in keys.items()})


def _as_artifact(model: Model, path: Path, files: dict[str, str]) -> Artifact:
    digest = hashlib.sha256(artifacts.canonical_json(files).encode()).hexdigest()
    return Artifact(path, {"stage": "base", "digest": digest, "files": files, "facts": {"name": model.name}})


def _directory_of(model: Model) -> Path:
    if model.path is not None:
        return Path(model.path).expanduser()
    if model.origin == "embedded":
        return embedded.locate(model.key)
    return _hub_snapshot(model)


def _hub_snapshot(model: Model) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    wanted: dict[str, Any] = {"repo_id": model.name, "revision": model.revision, "allow_patterns": list(_WANTED)}
    try:
        return Path(snapshot_download(**wanted, local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    try:
        return Path(snapshot_download(**wanted))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        raise RecipeError.one(
            "model.name", model.name, f"its files are not on this machine and cannot be fetched ({error})",
            "set model.path to a folder that holds them, or download them once where there is a network: "
            f"`hf download {model.name}" + (f" --revision {model.revision}`" if model.revision else "`"),
        ) from error


def _hash_files(path: Path) -> dict[str, str]:
    """Relative name -> sha256 of every file in the folder (hidden ones left out)."""
    book = wheels.home() / _REMEMBERED
    keys = {str(file.relative_to(path)): _key_of(file) for file in sorted(_visible(path))}
    known = _read_book(book)
    if not set(keys.values()) <= set(known):
        with _one_reader(book):  # all ranks of a machine come here at once, and one of them has to read 65 GB
            known = _read_book(book)
            fresh = {key: artifacts.hash_file(path / name) for name, key in keys.items() if key not in known}
            known |= fresh
            _note(book, fresh)
    return {name: known[key] for name, key in keys.items()}


def _key_of(file: Path) -> str:
    stat = file.stat()
    return f"{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ino}"


@contextmanager
def _one_reader(book: Path) -> Iterator[None]:
    """Wait until no other process here reads weights for `book`; where no lock can be had, all read."""
    try:
        book.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(book.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o644)
    except OSError:
        yield
        return
    try:
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _note(book: Path, fresh: dict[str, str]) -> None:
    if fresh:
        with suppress(OSError):  # a cache that cannot be written costs a second reading, never a run
            artifacts.write_whole(book, json.dumps({**_read_book(book), **fresh}, indent=1, sort_keys=True))


def _read_book(book: Path) -> dict[str, str]:
    try:
        entries = json.loads(book.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return {}
    return dict(entries) if isinstance(entries, dict) else {}


def _visible(path: Path) -> Iterator[Path]:
    for file in path.rglob("*"):
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts):
            yield file


# --- memory ----------------------------------------------------------------------------------------------------------


def set_threads(machine: Machine) -> int:
    """Fix the number of CPU threads of this process and return it: sums are only reproducible with a fixed number.

    OMP_WAIT_POLICY=PASSIVE has to be set before torch is imported; without it a step went from 3.7 to 22 CPU seconds
    when another process used a core.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    _hush(machine)
    libraries.load()
    import torch

    local = max(1, machine.processes // machine.nodes)
    threads = machine.threads or max(1, len(os.sched_getaffinity(0)) // local)
    torch.set_num_threads(threads)
    return threads


def _hush(machine: Machine) -> None:
    """Keep libraries from saying what is known and harmless: a reader must not learn to skip over warnings."""
    if machine.device != "cuda":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns that it found no GPU
    # TRL and PEFT use a key that transformers has renamed; it works until version 6.
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated", category=FutureWarning)
    # DeepSpeed calls collectives by names that torch 2.13 is about to change, at every step.
    warnings.filterwarnings("ignore", message=".*torch.distributed.* is deprecated", category=FutureWarning)
    libraries.hush_bitsandbytes()
    # temperature=0.0 beside do_sample=false is on purpose: vLLM samples without it.
    logging.getLogger("transformers.generation.configuration_utils").setLevel(logging.ERROR)
    if not sys.stderr.isatty():
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()


def device_of(machine: Machine) -> "torch.device":
    import torch

    if machine.device == "cpu" or (machine.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise RecipeError.one(
            "machine.device", machine.device, "no CUDA device is visible here", "use machine=cpu, or check the driver"
        )
    return torch.device("cuda", torch.cuda.current_device())


def load_base(
    base: Artifact, model: Model, method: Method | None, *, device: Any, dtype: Any = None
) -> "PreTrainedModel":
    """The base model in eval mode with frozen weights, in `dtype` (default: model.dtype), in 4 bit when method says so.

    `method=None` loads the unquantised base whatever the recipe trains with.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    wanted = dtype or getattr(torch, model.dtype)
    config = AutoConfig.from_pretrained(base.path, local_files_only=True, trust_remote_code=False)
    if model.rope_parameters is not None:
        yarn = model.rope_parameters
        config.rope_parameters = {"rope_theta": config.rope_parameters["rope_theta"], **yarn.model_dump()}
        config.max_position_embeddings = yarn.positions
    options: dict[str, Any] = {
        "config": config, "dtype": wanted, "attn_implementation": model.attn_implementation, "local_files_only": True,
        "trust_remote_code": False, "use_safetensors": True,
    }
    if method is not None and method.bnb is not None:
        options["quantization_config"] = _quantisation(method.bnb, wanted)
        if not _zero3_is_on():  # it places every parameter itself
            options["device_map"] = {"": device}
    loaded = AutoModelForCausalLM.from_pretrained(base.path, **options)
    # The adapter's config and the reports name the model, not a folder of this machine.
    loaded.name_or_path = loaded.config._name_or_path = model.name
    _keep_4bit_layout(loaded)
    if "quantization_config" in options and loaded.device.type == "cpu":
        give_back_memory()
    loaded.get_output_embeddings().register_forward_pre_hook(_make_contiguous)
    loaded.requires_grad_(False)
    if "device_map" not in options and not _zero3_is_on():
        loaded.to(device)
    return loaded.eval()


def give_back_memory() -> None:
    """After rounding to 4 bit, or between two models: free memory of the C heap goes back to the system.

    SmolLM2-135M leaves 250 to 360 MB of free pages between its 4-bit weights where a tokenizer was read before, and
    300 MB when it is let go (2026-11-22). Elsewhere than with glibc there is no such call.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _make_contiguous(head: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """With `logits_to_keep` the head gets a strided slice, for which torch 2.13 copies a bfloat16 weight once a row on
    CPU: 68 rows took 3.9 GB and 6 s where a contiguous copy takes 0.02 s."""
    return (inputs[0].contiguous(), *inputs[1:])


def _quantisation(bnb: dict[str, Any], dtype: Any) -> Any:
    from transformers import BitsAndBytesConfig

    keys = {"load_in_4bit": True, "bnb_4bit_compute_dtype": dtype, **bnb}
    try:
        return BitsAndBytesConfig(**keys)
    except (TypeError, ValueError) as error:
        raise RecipeError.one(
            "method.bnb", bnb, f"BitsAndBytesConfig refuses it ({error})", "see the keys of BitsAndBytesConfig"
        ) from error


def _keep_4bit_layout(model: "PreTrainedModel") -> None:
    """Stop bitsandbytes from repacking 4-bit weights in place at the first eval-mode forward on AVX512-bf16 CPUs.

    After that repacking training gradients are silently wrong (relative error 1.02) and dequantising yields garbage
    (related: bitsandbytes issue 2078). from_pretrained returns eval mode, so one generate before train() is enough.
    """
    for _, module in modules_4bit(model):
        module.support_avx512bf16_for_cpu = False


def quantised_modules(model: Any) -> list[str]:
    """Sorted names, as in the checkpoint, of exactly the modules whose weights are 4 bit: what a merge has to round."""
    names = set()
    for name, _ in modules_4bit(model):
        plain = name.removeprefix("base_model.model.")
        names.add(plain.removesuffix(".base_layer"))
    return sorted(names)


def modules_4bit(model: Any) -> Iterator[tuple[str, Any]]:
    """(name in this model, module) of every module whose weights are 4 bit; PEFT's wrapper has the same class name."""
    import torch

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and type(module).__name__ == "Linear4bit":
            yield name, module


def _zero3_is_on() -> bool:
    from transformers.integrations import is_deepspeed_zero3_enabled

    return bool(is_deepspeed_zero3_enabled())


def new_adapter(model: "PreTrainedModel", method: Method, *, seed: int, in_float32: bool = True) -> "PeftModel":
    """Put a fresh adapter on the base, its random half drawn from `seed`.

    The adapter's weights are float32 unless `in_float32` is off (ZeRO-3 gathers mixed types into one buffer and
    fails; DeepSpeed keeps float32 copies of its own there).
    """
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed

    try:
        config = LoraConfig(**{"task_type": "CAUSAL_LM", **method.lora})
    except (TypeError, ValueError) as error:
        raise RecipeError.one(
            "method.lora", method.lora, f"peft.LoraConfig refuses it ({error})", "see the keys of peft.LoraConfig"
        ) from error
    set_seed(seed)
    adapted = get_peft_model(model, config, autocast_adapter_dtype=in_float32)
    if in_float32:
        _raise_to_float32(adapted)
    return adapted


def load_adapter(
    model: "PreTrainedModel", adapter: Artifact, trainable: bool = False, *, in_float32: bool = True
) -> "PeftModel":
    """Put a published adapter on the base. A key that is missing or left over is an error, never an inert adapter."""
    from peft import PeftModel
    from safetensors import safe_open

    loaded = PeftModel.from_pretrained(
        model, str(adapter.path), is_trainable=trainable, autocast_adapter_dtype=in_float32, local_files_only=True
    )
    if in_float32:
        _raise_to_float32(loaded)
    with safe_open(str(adapter.file("adapter_model.safetensors")), framework="pt") as file:
        on_disk = set(file.keys())
    planned = adapter_keys(loaded)
    assert on_disk == planned, f"adapter and model disagree: {sorted(on_disk ^ planned)[:4]} ..."
    return loaded if trainable else loaded.eval()


def adapter_keys(model: "PeftModel", name: str = "default") -> set[str]:
    """Names that the adapter's tensors have on disk."""
    return set(adapter_parameters(model, name))


def adapter_parameters(model: "PeftModel", name: str = "default") -> "dict[str, torch.nn.Parameter]":
    """The adapter's parameters by the names that they have on disk."""
    found = {}
    for key, parameter in model.named_parameters():
        head, dot, tail = key.partition(f".{name}")
        if dot and "lora_" in head and (tail == "" or tail.startswith(".")):
            # PEFT writes DoRA's magnitudes without the name of the module that holds them.
            found[head if head.endswith("lora_magnitude_vector") else head + tail] = parameter
    return found


def _raise_to_float32(model: "PeftModel") -> None:
    import torch

    for key, parameter in model.named_parameters():
        if "lora_" in key and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()


def find_start_of_adapter(
    model: "PreTrainedModel", method: Method, start: Artifact | None, *, seed: int, machine: Machine
) -> "PeftModel":
    """The trainable adapter a stage begins with: the one before it, or a fresh one."""
    in_float32 = machine.layout != "zero3" or method.bnb is not None
    if start is not None:
        return load_adapter(model, start, trainable=True, in_float32=in_float32)
    return new_adapter(model, method, seed=seed, in_float32=in_float32)
