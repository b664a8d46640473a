"""Stage MERGE: an adapter added into its base, tensor by tensor, in bounded memory, bit-identical to PEFT's own merge.

The output is a model directory that a server loads as it is. Every adapter tensor is used exactly once, every target
is found and every number is finite, or nothing is published.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune import checkpoint, leftovers, shards
from finetune.adapter import Adapter
from finetune.artifacts import (
    MANIFEST,
    Artifact,
    Stage,
    canonical_json,
    explained,
    hash_file,
    read,
    remember,
    sync_directory,
    write_whole,
)
from finetune.config.model import Model, Yarn
from finetune.config.section import Section
from finetune.config.training import Method
from finetune.deltas import Update, hash_tensor
from finetune.errors import RecipeError
from finetune.fourbit import AS_IT_IS, ROUND_TRIPPED, RoundTrip, says_4bit, told
from finetune.stream import BLOCK_BYTES, Entry, write_shard

Say = Callable[[str], None]

_HEAD = "lm_head.weight"
_SECONDS_BETWEEN_LINES = 2


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
        [adapter.path],
        out,
        identity=canonical_json({"base": base.digest, "adapter": adapter.digest, "bases": tried}),
        round_trip=trip,
        bases=tried,
        default_mode=settings.model.default_mode,
        yarn=settings.model.rope_parameters,
        say=say,
    )
    remember(out, {f"model/{name}": digest for name, digest in summary["files"].items()})
    (out / leftovers.NOTE).unlink()
    return {"merged_tensors": summary["merged_tensors"], "bytes": summary["bytes"], "base_used": summary["base_used"]}


def merge_adapter(
    base_dir: Path,
    adapter_dir: Path,
    out_dir: Path,
    *,
    then: Sequence[Path] = (),
    say: Say = print,
    round_trip: RoundTrip | None = None,
    default_mode: str | None = None,
    trained_on: str | None = None,
) -> dict[str, Any]:
    """Merge any supported PEFT adapter into its base, and `then` others one by one into what the one before left:
    `finetune merge --base --adapter [--adapter ...] --out`.

    An adapter that a training stage of ours published says itself which modules were 4-bit, which mode it answers in
    and which YaRN it was trained with; for others all stay as the base has them unless they are given. `trained_on`
    (one of fourbit.TRAINED_ON) says it for one from elsewhere, and must where its files speak of 4 bit.
    Publishes `out_dir` with one rename; killed before that, the same command goes on. Raises RecipeError when `out_dir`
    exists, when OUT.partial holds what no merge left there, when base and adapters do not fit each other, or when a
    number is not finite.
    """
    if out_dir.exists():
        raise RecipeError.one(
            "--out", str(out_dir), "it exists, and what was merged before is never reused or overwritten in silence",
            "remove it or name another folder",
        )  # fmt: skip
    adapters = [adapter_dir, *then]
    for word, directory in (("--base", base_dir), *(("--adapter", directory) for directory in adapters)):
        if not directory.is_dir():
            raise RecipeError.one(word, str(directory), "there is no such folder", "give the folder with its files")
    recorded = [_recorded(directory) for directory in adapters]
    if recorded[0] and trained_on:
        raise RecipeError.one(
            "--trained-on", trained_on, "the adapter's own manifest says what its base was", "leave it out"
        )
    before = [trained_on, *("nf4" if says_4bit(directory) else "as-it-is" for directory in then)]
    trips = [
        RoundTrip.of(entry[0]) if entry else told(directory, base_dir, base)
        for directory, entry, base in zip(adapters, recorded, before, strict=True)
    ]
    if late := [directory.name for directory, trip in zip(adapters, trips, strict=True) if trip][bool(trips[0]) :]:
        raise RecipeError.one(
            "--adapter", late, "it was trained on a base that had been merged before and then put into 4 bit",
            "merge the adapters before it first, and give the result as --base",
        )  # fmt: skip
    round_trip = round_trip or trips[0]
    last = next((entry[1] for entry in reversed(recorded) if entry), None)
    default_mode = default_mode or (last.default_mode if last else None)
    yarn = last.rope_parameters if last else None
    partial = out_dir.with_name(out_dir.name + ".partial")
    with explained(out_dir.parent), leftovers.alone(partial):
        identity = {
            "version": STAGE.version, "base": _fingerprint(base_dir), "adapters": list(map(_fingerprint, adapters)),
            "mode": default_mode, "round_trip": round_trip.describe() if round_trip else None,
            "yarn": yarn.model_dump() if yarn else None,
        }  # fmt: skip
        summary = write_merged(
            base_dir, adapters, partial, identity=canonical_json(identity), round_trip=round_trip,
            default_mode=default_mode, yarn=yarn, say=say,
        )  # fmt: skip
        partial.replace(out_dir)
        sync_directory(out_dir.parent)
        (out_dir / leftovers.NOTE).unlink()
    return summary


def write_merged(
    base_dir: Path,
    adapter_dirs: Sequence[Path],
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
    the same, anything else is cleared. The bytes do not depend on where an earlier attempt was killed. The note of
    what was finished is left for the caller to remove once the result is safe.
    """
    base_config = checkpoint.read_json(base_dir / "config.json")
    if "quantization_config" in base_config:
        raise RecipeError.one(
            str(base_dir / "config.json"), base_config["quantization_config"].get("quant_method"),
            "the base is already quantised and its numbers cannot take an adapter", "give the unquantised base",
        )  # fmt: skip
    source = {name: shards.read_header(base_dir / name) for name in shards.shard_names(base_dir)}
    tensors = {tensor.name: tensor for held in source.values() for tensor in held.values()}
    embedding = _tied_embedding(tensors) if base_config.get("tie_word_embeddings") else None
    planned = tensors | ({_HEAD: replace(tensors[embedding], name=_HEAD)} if embedding else {})
    adapters = [Adapter.read(directory) for directory in adapter_dirs]
    plans = [adapter.plan(planned) for adapter in adapters]
    if round_trip:
        _check_round_trip(round_trip, tensors, adapter_dirs[0])
    chains, untied = _chains(plans, embedding)
    layout = {
        shard: [
            Entry(name, planned[name], chains.get(name, ()), _trip(round_trip, name))
            for name in held
            for name in ((name, _HEAD) if untied and name == embedding and _HEAD not in tensors else (name,))
        ]
        for shard, held in source.items()
    }

    done = leftovers.start(out, identity, say)
    model = out / "model"
    total = sum(entry.source.bytes for entries in layout.values() for entry in entries)
    _check_room(out, sum(entry.source.bytes for shard in layout.keys() - done.keys() for entry in layout[shard]))
    progress = _Progress(total, say)
    progress.skip(sum(entry.source.bytes for shard in done for entry in layout[shard]), len(done))
    for shard, entries in layout.items():
        if shard in done:
            continue
        unfinished = model / f".{shard}.writing"
        kept = write_shard(unfinished, entries, add=progress.add, block_bytes=block_bytes)
        unfinished.replace(model / shard)
        sync_directory(model)
        done[shard] = kept
        leftovers.note(out, identity, done)

    if (base_dir / shards.INDEX).exists():
        weight_map = {entry.name: shard for shard, entries in layout.items() for entry in entries}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        write_whole(model / shards.INDEX, json.dumps(index, indent=2) + "\n")
    dtypes = {tensor.dtype for tensor in tensors.values()}
    checkpoint.write_small_files(base_dir, model, dtypes=dtypes, default_mode=default_mode, yarn=yarn, untied=untied)
    changed = sorted(entry.name for entries in layout.values() for entry in entries if entry.updates)
    summary = {
        "adapter_sha256": adapters[0].sha256 if len(adapters) == 1 else None,
        "adapters": [adapter.describe(plan) for adapter, plan in zip(adapters, plans, strict=True)],
        "adapter_tensors": sum(len(adapter.tensors) for adapter in adapters),
        "merged_tensors": changed,
        "untouched_tensors": sum(map(len, layout.values())) - len(changed),
        "untied": untied,
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
    return summary


def _tied_embedding(tensors: Iterable[str]) -> str | None:
    return next((name for name in tensors if f".{name}".endswith(".embed_tokens.weight")), None)


def _chains(
    plans: Sequence[Mapping[str, Update]], embedding: str | None
) -> tuple[dict[str, tuple[tuple[Update, bool], ...]], bool]:
    """Target -> its updates in order, each with whether the adapter's own copy of the base may be taken (only by the
    first, on a base whose head is its own); and whether a head that was tied got other numbers than its embedding.

    `embedding` names the tensor that the head shares; None where it has its own.
    """
    chains: dict[str, list[tuple[Update, bool]]] = {}
    tied = embedding is not None
    for position, plan in enumerate(plans):
        parts = dict(plan)
        if tied and embedding is not None:
            body, head = parts.get(embedding), parts.get(_HEAD)
            if _trained_as_one(body, head):
                parts |= {_HEAD: body} if body else {}
            else:
                tied = False
        for target, update in parts.items():
            chains.setdefault(target, []).append((update, position == 0 and embedding is None))
    return {target: tuple(updates) for target, updates in chains.items()}, embedding is not None and not tied


def _trained_as_one(body: Update | None, head: Update | None) -> bool:
    """Whether an adapter leaves embedding and tied head the same. PEFT trains rows of both when it trains tokens; a
    LoRA on one of them is not applied to the other in training, though PEFT's own merge adds it to both."""
    if head is None:
        return body is None or body.kind == "tokens"
    if body is not None and body.kind == head.kind == "replace":
        return hash_tensor(body.roles["whole"]) == hash_tensor(head.roles["whole"])
    if head.kind == "tokens":
        raise RecipeError.one(
            "trainable_token_indices", head.target, "rows of the head were trained apart from the embedding it shares",
            "merge it with PEFT's merge_and_unload and check the result with `finetune verify`",
        )  # fmt: skip
    return False


def _trip(round_trip: RoundTrip | None, name: str) -> RoundTrip | None:
    module = name.removesuffix(".weight")
    return round_trip if round_trip and module in round_trip.modules else None


def _check_room(out: Path, needed: int) -> None:
    free = shutil.disk_usage(out).free
    if needed > free:
        raise RecipeError.one(
            "--out", str(out), f"{needed / 1e9:.1f} GB are still to be written and {free / 1e9:.1f} GB are free",
            "free some space or name a folder on another disk",
        )  # fmt: skip


def _check_round_trip(trip: RoundTrip, tensors: Mapping[str, shards.Tensor], adapter_dir: Path) -> None:
    missing = sorted(module for module in trip.modules if f"{module}.weight" not in tensors)
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
    """Says bytes, speed and time left: at most every twentieth of the whole and every two seconds, and at the end."""

    def __init__(self, total: int, say: Say) -> None:
        self._total, self._say, self._done, self._said, self._kept = total, say, 0, 0, 0
        self._began = self._last = time.monotonic()

    def skip(self, count: int, files: int) -> None:
        self._done = self._said = self._kept = count
        if files:
            self._say(f"merge: {files} files ({count / 1e9:.2f} GB) kept from before")

    def add(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        rare = (self._done - self._said) * 20 >= self._total and now - self._last >= _SECONDS_BETWEEN_LINES
        if not rare and self._done != self._total:
            return
        self._said, self._last = self._done, now
        speed = (self._done - self._kept) / max(1e-9, now - self._began)
        left = f", {(self._total - self._done) / speed:.0f} s left" if self._done < self._total else ""
        share = self._done / self._total
        self._say(
            f"merge: {self._done / 1e9:.2f} of {self._total / 1e9:.2f} GB ({share:.0%}), {speed / 1e9:.2f} GB/s{left}"
        )


STAGE = Stage("merge", 2, run)
