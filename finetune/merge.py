"""Stage MERGE: an adapter added into its base, tensor by tensor, in bounded memory, bit-identical to PEFT's own merge.

The output is a model directory that a server loads as it is. Every adapter tensor is used exactly once, every target
is found and every number is finite, or nothing is published.
"""

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from finetune import checkpoint, shards
from finetune.adapter import Adapter, Update
from finetune.artifacts import (
    MANIFEST,
    Artifact,
    Stage,
    canonical_json,
    clear,
    hash_file,
    read,
    sync_directory,
    write_whole,
)
from finetune.config.model import Model, Yarn
from finetune.config.section import Section
from finetune.config.training import Method
from finetune.errors import RecipeError
from finetune.fourbit import AS_IT_IS, ROUND_TRIPPED, RoundTrip

if TYPE_CHECKING:
    import torch

Say = Callable[[str], None]

_DTYPE = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
BLOCK_BYTES = 32 << 20
"""Bytes of base weights held at once; the float32 working copies are a small multiple of it."""
_FEWEST_ROWS = 64
_STATE = ".merge.json"


class Config(Section):
    """What changes the merged bytes."""

    model: Model
    method: Method


def run(
    config: Mapping[str, Any], *, out: Path, base: Artifact, adapter: Artifact, bases: Artifact | None = None,
    say: Say = print,
) -> dict[str, Any]:
    """Write `model/` and `merge.json` into `out`. Resumes: finished shards of a killed attempt are kept.

    `bases` is the measured choice of stage BASES, for an adapter that was trained on a 4-bit base.
    """
    settings = Config.model_validate(config)
    trip, tried = RoundTrip.of(adapter.facts), None
    if bases is not None:
        measured = checkpoint.read_json(bases.file("bases.json"))
        tried = measured["bases"]
        trip = trip if measured["chosen"] == ROUND_TRIPPED else None
    summary = write_merged(
        base.path,
        adapter.path,
        out,
        identity=canonical_json({"base": base.digest, "adapter": adapter.digest, "bases": tried}),
        round_trip=trip,
        bases=tried,
        default_mode=settings.model.default_mode,
        yarn=settings.model.rope_parameters,
        say=say,
    )
    return {"merged_tensors": summary["merged_tensors"], "bytes": summary["bytes"], "base_used": summary["base_used"]}


def merge_adapter(
    base_dir: Path,
    adapter_dir: Path,
    out_dir: Path,
    *,
    say: Say = print,
    round_trip: RoundTrip | None = None,
    default_mode: str | None = None,
) -> dict[str, Any]:
    """Merge any supported PEFT adapter into its base: `finetune merge --base --adapter --out`.

    An adapter that a training stage of ours published says itself which modules were 4-bit, which mode it answers in
    and which YaRN it was trained with; for others all stay as the base has them unless they are given.
    Publishes `out_dir` with one rename; killed before that, the same command goes on. Raises RecipeError when `out_dir`
    exists, when base and adapter do not fit each other, or when a number is not finite.
    """
    if out_dir.exists():
        raise RecipeError.one(
            "--out", str(out_dir), "it exists, and what was merged before is never reused or overwritten in silence",
            "remove it or name another folder",
        )  # fmt: skip
    recorded = _recorded(adapter_dir)
    round_trip = round_trip or (RoundTrip.of(recorded[0]) if recorded else None)
    default_mode = default_mode or (recorded[1].default_mode if recorded else None)
    yarn = recorded[1].rope_parameters if recorded else None
    partial = out_dir.with_name(out_dir.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    identity = canonical_json(
        {"base": _fingerprint(base_dir), "adapter": _fingerprint(adapter_dir), "mode": default_mode,
         "round_trip": round_trip.describe() if round_trip else None, "yarn": yarn.model_dump() if yarn else None}
    )  # fmt: skip
    summary = write_merged(
        base_dir, adapter_dir, partial, identity=identity, round_trip=round_trip, default_mode=default_mode, yarn=yarn,
        say=say,
    )  # fmt: skip
    partial.replace(out_dir)
    sync_directory(out_dir.parent)
    return summary


def write_merged(
    base_dir: Path,
    adapter_dir: Path,
    out: Path,
    *,
    identity: str,
    round_trip: RoundTrip | None = None,
    default_mode: str | None = None,
    yarn: Yarn | None = None,
    bases: list[dict[str, Any]] | None = None,
    say: Say = print,
    block_bytes: int = BLOCK_BYTES,
) -> dict[str, Any]:
    """Fill `out` with `model/` and `merge.json`; return the content of merge.json.

    `out` may hold the leftovers of a killed attempt: shards whose recorded hash still holds are kept if `identity` is
    the same, anything else is cleared. The bytes do not depend on where an earlier attempt was killed.
    """
    adapter = Adapter.read(adapter_dir)
    base_config = checkpoint.read_json(base_dir / "config.json")
    if "quantization_config" in base_config:
        raise RecipeError.one(
            str(base_dir / "config.json"), base_config["quantization_config"].get("quant_method"),
            "the base is already quantised and its numbers cannot take an adapter", "give the unquantised base",
        )  # fmt: skip
    source = {name: shards.read_header(base_dir / name) for name in shards.shard_names(base_dir)}
    updates = adapter.plan({tensor.name: tensor for tensors in source.values() for tensor in tensors.values()})
    if base_config.get("tie_word_embeddings"):
        _check_tied(updates)
    if round_trip:
        _check_round_trip(round_trip, source, adapter_dir)

    done = _start(out, identity)
    model = out / "model"
    total = sum(tensor.bytes for tensors in source.values() for tensor in tensors.values())
    progress = _Progress(total, say)
    for shard, tensors in source.items():
        kept = done.get(shard)
        if kept is None:
            with (model / f".{shard}.writing").open("wb") as handle:
                work = _merged_blocks(tensors, updates, adapter, round_trip, block_bytes)
                kept = _write_shard(handle, tensors, work, progress)
            (model / f".{shard}.writing").replace(model / shard)
            sync_directory(model)
            done[shard] = kept
            write_whole(out / _STATE, json.dumps({"identity": identity, "shards": done}))
        else:
            progress.add(sum(tensor.bytes for tensor in tensors.values()), note="kept from before")

    if shards.INDEX in {path.name for path in base_dir.iterdir()}:
        weight_map = {name: shard for shard, tensors in source.items() for name in tensors}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        write_whole(model / shards.INDEX, json.dumps(index, indent=2) + "\n")
    dtypes = {tensor.dtype for tensors in source.values() for tensor in tensors.values()}
    checkpoint.write_small_files(base_dir, model, dtypes=dtypes, default_mode=default_mode, yarn=yarn)
    summary = {
        "adapter_sha256": adapter.sha256,
        "adapter_tensors": len(adapter.tensors),
        "merged_tensors": sorted(updates),
        "untouched_tensors": sum(len(tensors) for tensors in source.values()) - len(updates),
        "base_used": ROUND_TRIPPED if round_trip else AS_IT_IS,
        "base_chosen_because": _why(round_trip, bases),
        "bases": bases,
        "round_trip": round_trip.describe() if round_trip else None,
        "bytes": total,
        "files": {
            **{name: entry["sha256"] for name, entry in sorted(done.items())},
            **{path.name: hash_file(path) for path in sorted(model.iterdir()) if path.name not in done},
        },
    }
    write_whole(out / "merge.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    for path in [model, *model.iterdir(), out / "merge.json"]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    (out / _STATE).unlink()
    return summary


def _merged_blocks(
    tensors: Mapping[str, shards.Tensor],
    updates: Mapping[str, Update],
    adapter: Adapter,
    round_trip: RoundTrip | None,
    block_bytes: int,
) -> "Iterator[torch.Tensor]":
    """The shard's tensors in file order, cut into blocks of rows, merged and known to be finite."""
    import torch

    for name, tensor in tensors.items():
        with tensor.file.open("rb") as handle:
            module = name.removesuffix(".weight")
            trip = round_trip if round_trip and module in round_trip.modules else None
            rows = tensor.shape[0] if tensor.shape else 1
            whole = trip.apply(_read_rows(handle, tensor, 0, rows)) if trip else None
            for first, last in _cuts(tensor, block_bytes):
                block = whole[first:last] if whole is not None else _read_rows(handle, tensor, first, last)
                if name in updates:
                    block = adapter.apply(updates[name], block, first, last)
                if block.is_floating_point() and not bool(torch.isfinite(block).all()):
                    guilty = "after merging" if name in updates else "in the base"
                    raise RecipeError.one(
                        name, None, f"rows {first} to {last} hold NaN or infinity {guilty}",
                        "use an adapter and a base with finite weights (a diverged training run makes such ones)",
                    )  # fmt: skip
                yield block.contiguous()


def _cuts(tensor: shards.Tensor, block_bytes: int) -> list[tuple[int, int]]:
    """Row ranges of about `block_bytes`, never fewer than 64 rows: below that the matrix product takes another kernel
    with another order of summation, and the result would depend on where the cut is."""
    rows = tensor.shape[0] if tensor.shape else 1
    count = min(-(-tensor.bytes // block_bytes), rows // _FEWEST_ROWS)
    edges = [rows * part // max(1, count) for part in range(max(1, count) + 1)]
    return list(itertools.pairwise(edges))


def _read_rows(handle: BinaryIO, tensor: shards.Tensor, first: int, last: int) -> "torch.Tensor":
    """Rows [first, last) read into memory of our own: a memory map would count the whole file as resident."""
    import torch

    rows = tensor.shape[0] if tensor.shape else 1
    stride = tensor.bytes // rows if rows else 0
    buffer = bytearray((last - first) * stride)
    handle.seek(tensor.start + first * stride)
    assert handle.readinto(buffer) == len(buffer), tensor.name  # type: ignore[attr-defined]
    shape = (last - first, *tensor.shape[1:]) if tensor.shape else ()
    if tensor.dtype not in _DTYPE:
        return torch.frombuffer(buffer, dtype=torch.uint8) if buffer else torch.empty(0, dtype=torch.uint8)
    dtype = getattr(torch, _DTYPE[tensor.dtype])
    return torch.frombuffer(buffer, dtype=dtype).reshape(shape) if buffer else torch.empty(shape, dtype=dtype)


def _write_shard(
    handle: BinaryIO, tensors: Mapping[str, shards.Tensor], blocks: "Iterator[torch.Tensor]", progress: "_Progress"
) -> dict[str, Any]:
    """Write header and blocks, hashing on the way; returns {sha256, bytes} once the disk has them."""
    import torch

    digest = hashlib.sha256()
    header = shards.header_bytes([(tensor.name, tensor.dtype, tensor.shape) for tensor in tensors.values()])
    digest.update(header)
    handle.write(header)
    size = len(header)
    for block in blocks:
        data = memoryview(block.reshape(-1).view(torch.uint8).numpy())
        digest.update(data)
        handle.write(data)
        size += len(data)
        progress.add(len(data))
    handle.flush()
    os.fsync(handle.fileno())
    assert size == len(header) + sum(tensor.bytes for tensor in tensors.values())
    return {"sha256": digest.hexdigest(), "bytes": size}


def _start(out: Path, identity: str) -> dict[str, dict[str, Any]]:
    """Shards of an earlier attempt that are whole and belong to the same merge; everything else is removed."""
    model, done = out / "model", {}
    if (out / _STATE).exists():
        state = json.loads((out / _STATE).read_text(encoding="utf-8"))
        if state["identity"] == identity:
            done = {
                shard: entry
                for shard, entry in state["shards"].items()
                if (model / shard).is_file() and hash_file(model / shard) == entry["sha256"]
            }
    if not done:
        clear(out)
    model.mkdir(exist_ok=True)
    for path in model.iterdir():
        if path.name not in done:
            path.unlink()
    return done


def _check_tied(updates: Mapping[str, Update]) -> None:
    touched = [name for name in updates if name.rpartition(".")[0].endswith(("embed_tokens", "lm_head"))]
    if touched:
        raise RecipeError.one(
            "tie_word_embeddings", touched, "embedding and head are one tensor in this base but were trained apart",
            "train without embed_tokens and lm_head, or on a base whose head is its own",
        )  # fmt: skip


def _check_round_trip(trip: RoundTrip, source: Mapping[str, Mapping[str, shards.Tensor]], adapter_dir: Path) -> None:
    names = {name for tensors in source.values() for name in tensors}
    missing = sorted(module for module in trip.modules if f"{module}.weight" not in names)
    if missing:
        raise RecipeError.one(
            str(adapter_dir), missing[:5], "modules that were 4-bit in training are not in the base",
            "give the base that this adapter was trained on",
        )  # fmt: skip


def _why(trip: RoundTrip | None, bases: list[dict[str, Any]] | None) -> str:
    if bases is None:
        return "the adapter was trained on these dequantised weights" if trip else "the adapter was trained on it"
    measured = ", ".join(f"{base['name']} {base['kl_mean']:.2g}" for base in bases)
    return f"closest to the adapter as it was trained; mean KL in nats: {measured}"


def _recorded(adapter_dir: Path) -> tuple[Mapping[str, Any], Model] | None:
    """What the manifest of a training stage says of this adapter; None for adapters from elsewhere."""
    if not (adapter_dir / MANIFEST).is_file():
        return None
    manifest = read(adapter_dir).manifest
    config = manifest["config"]
    return manifest["facts"], Model.model_validate(config["model"])


def _fingerprint(directory: Path) -> dict[str, str]:
    """Hashes of small files; size and time of big ones, so that starting a 65 GB merge does not read it twice."""
    found = {}
    for path in sorted(path for path in directory.iterdir() if path.is_file()):
        stat = path.stat()
        big = stat.st_size > 64 << 20
        found[path.name] = f"{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ino}" if big else hash_file(path)
    return found


class _Progress:
    """Says how many bytes are done, at most twenty times for a whole merge."""

    def __init__(self, total: int, say: Say) -> None:
        self._total, self._say, self._done, self._said = total, say, 0, 0

    def add(self, count: int, note: str = "") -> None:
        self._done += count
        if note or self._done == self._total or (self._done - self._said) * 20 >= self._total:
            self._said = self._done
            share = self._done / max(1, self._total)
            self._say(f"merge: {self._done / 1e9:.2f} of {self._total / 1e9:.2f} GB ({share:.0%}) {note}".rstrip())


STAGE = Stage("merge", 2, run)
