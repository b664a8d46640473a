"""lineage.json: where a checkpoint comes from. Digests of everything between the documents and the weights.

docs/bundle.md explains every key.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune import provenance
from finetune.artifacts import Artifact
from finetune.memory import here

SCHEMA_VERSION = "4"
_MERGED = ("adapter_sha256", "base_used", "base_chosen_because", "round_trip")


def environment() -> dict[str, Any]:
    """Versions and hardware of this machine; no host name, no user, no paths."""
    found, software, hardware = here(), provenance.software(), provenance.hardware()
    return {
        "python": software["python"],
        **{name: hardware[name] for name in ("platform", "cpu", "threads")},
        "gpus": ", ".join(gpu.name for gpu in found.gpus) or None,
        "memory_gib": round(found.memory_gib),
        "packages": software["packages"],
    }


def trace(
    config: Mapping[str, Any], *, base: Artifact, documents: Mapping[str, Mapping[str, str]],
    stages: Sequence[Artifact], merge: Mapping[str, Any], bundle: Path, golden: Mapping[str, Any],
    environment: Mapping[str, Any], quantised: Mapping[str, Mapping[str, Any]], judged: Mapping[str, Any],
) -> dict[str, Any]:
    """documents -> prepared -> adapters -> checkpoint, each with its key and the digests it was made from.

    `documents` maps source -> file -> sha256; `stages` stand in the order in which they ran; model and adapter lie in
    `bundle`; `quantised` is what EXPORT says of the models that are handed over; `judged` is report.json, for the
    gates and for who accepted a failed one.
    """
    settings = config["model"]
    code = provenance.software()["code"]
    recorded = {stage.stage: stage.manifest.get("made") for stage in stages}
    return {
        "schema_version": SCHEMA_VERSION,
        "recipe": config["name"],
        "seed": config["seed"],
        "code": code,
        "base": {
            "name": settings["name"], "revision": settings["revision"], "note": settings["note"],
            "licence": settings["licence"], "digest": base.digest,
        },
        "documents": {name: dict(files) for name, files in sorted(documents.items())},
        "stages": [
            {
                "stage": stage.stage, "key": stage.manifest["key"], "version": stage.manifest["version"],
                "digest": stage.digest, "inputs": dict(stage.manifest["inputs"]),
                "files": dict(stage.manifest["files"]), "made": recorded[stage.stage],
            }
            for stage in stages
        ],
        "adapter": {"files": _files(bundle / "adapter", {"adapter_model.safetensors": str(merge["adapter_sha256"])})},
        "merge": {key: merge[key] for key in _MERGED} | {key: merge[key] for key in ("bases",) if key in merge},
        "checkpoint": {"files": dict(merge["files"]), "dtype": settings["dtype"]},
        "quantised": {
            scheme: {"files": dict(found["files"]), "settings": found.get("settings")}
            for scheme, found in quantised.items()
        },
        "template": {
            "file": "model/chat_template.jinja",
            "sha256": hashlib.sha256((bundle / "model/chat_template.jinja").read_bytes()).hexdigest(),
            "modes": list(settings["modes"]), "default_mode": settings["default_mode"],
        },
        "golden": dict(golden),
        "gates": [dict(gate) for gate in judged["gates"]],
        "accepted": None if judged["verdict"]["accepted_by"] is None else {
            "by": judged["verdict"]["accepted_by"], "reason": judged["verdict"]["reason"],
        },
        "signer": config["handoff"]["signer"],
        "environment": dict(environment),
        "differences": differences({**recorded, "handoff": {"code": code, **environment}}),
    }  # fmt: skip


def differences(made: Mapping[str, Mapping[str, Any] | None]) -> list[dict[str, Any]]:
    """[{what, values: [{value, stages}]}]: commit, versions and machine, where not all stages had the same.

    `made`: stage -> what its manifest says (finetune.provenance), None where nothing was recorded then: its value is
    "unknown". Which device a stage used is its own affair; two kinds of GPU are a difference.
    """
    said = {stage: dict(_said(found)) for stage, found in made.items()}
    compared = []
    for what in dict.fromkeys(name for found in said.values() for name in found):
        values: dict[str, list[str]] = {}
        for stage, found in said.items():
            if what != "gpu" or what in found:
                values.setdefault(found.get(what, "not installed") if found else "unknown", []).append(stage)
        if len(values) > 1:
            compared.append({"what": what, "values": [{"value": key, "stages": who} for key, who in values.items()]})
    return compared


def _said(made: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    if made is None:
        return
    commit = made["code"]["commit"]
    yield "commit", f"{commit}{' with uncommitted changes' if made['code']['dirty'] else ''}" if commit else "none"
    yield from ((name, str(made[name])) for name in ("python", "platform", "cpu"))
    if made.get("gpu"):
        yield "gpu", str(made["gpu"])
    yield from made["packages"].items()


def bundle_id(bundle: Path) -> str:
    """What a bundle is called by: the first 12 hex digits of the sha256 of its lineage.json."""
    return hashlib.sha256((bundle / "lineage.json").read_bytes()).hexdigest()[:12]


def _files(folder: Path, known: Mapping[str, str]) -> dict[str, str]:
    return {
        path.name: known.get(path.name) or hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
    }
