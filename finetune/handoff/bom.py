"""bom.cdx.json: a CycloneDX 1.6 bill of materials of the models, the data and the libraries they were made with.

Written by hand as plain JSON: cyclonedx-python-lib 11.12 has no model card in its classes; the tests hold this against
the schema that it ships. The same inputs give the same bytes: the serial number comes from the content, components
stand in a fixed order, and there is a timestamp only where SOURCE_DATE_EPOCH gives one.
"""

import datetime as dt
import hashlib
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

from finetune.artifacts import canonical_json

if TYPE_CHECKING:
    from finetune.handoff import Config

_SPDX = {name.lower(): name for name in (
    "Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "ISC", "CC-BY-4.0", "CC-BY-SA-4.0", "CC0-1.0", "MPL-2.0",
)}  # fmt: skip
_CLASSIFIED = {
    "License :: OSI Approved :: Apache Software License": "Apache-2.0",
    "License :: OSI Approved :: MIT License": "MIT",
}


def build(
    settings: "Config", traced: Mapping[str, Any], facts: Mapping[str, Any], licences: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """The whole document. `traced` is lineage.json, `facts` report.json, `licences` what stands in LICENSES/."""
    data = list(_data(settings, traced["documents"], licences))
    libraries = list(_libraries(_versions(traced)))
    adapter = _adapter(settings, traced)
    quantised = [_quantised(settings, scheme, found) for scheme, found in sorted(traced["quantised"].items())]
    model = _model(settings, traced, facts, [entry["bom-ref"] for entry in data])
    body: dict[str, Any] = {
        "metadata": {
            "tools": {"components": [{"type": "application", "name": "finetune-toolkit",
                                      "version": str(traced["code"]["version"])}]},
            "component": model,
        },
        "components": [_base(settings, traced, licences), adapter, *quantised, *data, *libraries],
        "dependencies": [
            {"ref": "model", "dependsOn": ["base", "adapter"]},
            {"ref": "adapter", "dependsOn": sorted(["base", *(e["bom-ref"] for e in [*data, *libraries])])},
            *({"ref": entry["bom-ref"], "dependsOn": ["model"]} for entry in quantised),
        ],
    }  # fmt: skip
    digest = hashlib.sha256(canonical_json(body).encode()).hexdigest()
    if "SOURCE_DATE_EPOCH" in os.environ:
        when = dt.datetime.fromtimestamp(int(os.environ["SOURCE_DATE_EPOCH"]), dt.UTC)
        body["metadata"] = {"timestamp": when.strftime("%Y-%m-%dT%H:%M:%SZ"), **body["metadata"]}
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, digest)}",
        "version": 1,
        **body,
    }


def _model(
    settings: "Config", traced: Mapping[str, Any], facts: Mapping[str, Any], data: Sequence[str]
) -> dict[str, Any]:
    return {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": settings.name,
        "version": _digest_of(traced["checkpoint"]["files"])[:12],
        "description": settings.description,
        "licenses": _licences(settings.model.licence, settings.licence),
        "modelCard": {
            "modelParameters": {
                "approach": {"type": "supervised"},
                "task": "text-generation",
                "architectureFamily": "transformer",
                "modelArchitecture": settings.model.architecture.model_type,
                "datasets": [{"ref": name} for name in data],
                "inputs": [{"format": "text"}],
                "outputs": [{"format": "text"}],
            },
            "quantitativeAnalysis": {"performanceMetrics": list(_metrics(facts))},
            "considerations": {
                "useCases": [task.title for task in settings.tasks.values()],
                "technicalLimitations": [
                    settings.limits or "The recipe states no limits.",
                    "Measured on the tasks named here and nowhere else.",
                ],
                "performanceTradeoffs": list(_gates(facts)),
            },
        },
        "properties": _properties({
            "seed": traced["seed"], "stages": ", ".join(settings.stages), "method": settings.method.name,
            "dtype": settings.model.dtype, "template_sha256": traced["template"]["sha256"],
            "merged_into": traced["merge"]["base_used"], "commit": traced["code"]["commit"],
            "uncommitted_changes": traced["code"]["dirty"],
            **{f"stage:{entry['stage']}": _made(entry["made"]) for entry in traced["stages"]},
        }),
        "components": _files(traced["checkpoint"]["files"], "model"),
    }  # fmt: skip


def _base(settings: "Config", traced: Mapping[str, Any], licences: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    model = settings.model
    found: dict[str, Any] = {
        "type": "machine-learning-model", "bom-ref": "base", "name": model.name,
        "version": model.revision or traced["base"]["digest"][:12],
        "description": model.note or "The base model as it was published.",
        "hashes": [{"alg": "SHA-256", "content": traced["base"]["digest"]}],
        "licenses": _licences(model.licence),
    }  # fmt: skip
    if model.origin == "hub" and model.revision:  # weights made in another way are not what the hub has by that name
        found["purl"] = f"pkg:huggingface/{model.name}@{model.revision}"
    texts = ", ".join(f"LICENSES/{name}" for name in licences["base"]) or "none came with it"
    return found | {"properties": _properties({
        "hash_of": "names and sha256 of all its files (lineage.json, base.digest)", "licence_texts": texts,
    })}  # fmt: skip


def _adapter(settings: "Config", traced: Mapping[str, Any]) -> dict[str, Any]:
    files = traced["adapter"]["files"]
    return {
        "type": "machine-learning-model", "bom-ref": "adapter", "name": f"{settings.name}-adapter",
        "version": _digest_of(files)[:12],
        "description": f"{settings.method.name} adapter for {settings.model.name}, in PEFT's format.",
        "hashes": [{"alg": "SHA-256", "content": files["adapter_model.safetensors"]}],
        "licenses": _licences(settings.licence),
        "components": _files(files, "adapter"),
    }  # fmt: skip


def _quantised(settings: "Config", scheme: str, found: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "machine-learning-model", "bom-ref": f"model-{scheme}", "name": f"{settings.name}-{scheme}",
        "version": _digest_of(found["files"])[:12], "description": f"The merged model, quantised to {scheme}.",
        "licenses": _licences(settings.model.licence, settings.licence),
        "components": _files(found["files"], f"model-{scheme}"),
    }  # fmt: skip


def _data(
    settings: "Config", documents: Mapping[str, Mapping[str, str]], licences: Mapping[str, Sequence[str]]
) -> Iterator[dict[str, Any]]:
    for name, source in sorted(settings.sources.items()):
        files = documents.get(name, {})
        texts = ", ".join(f"LICENSES/{text}" for text in licences.get(name, ()))
        yield {
            "type": "data", "bom-ref": f"data:{name}", "name": name, "licenses": _licences(source.licence),
            **({"hashes": [{"alg": "SHA-256", "content": _digest_of(files)}]} if files else {}),
            "data": [{"type": "dataset", "name": name}],
            **({"components": _files(files, f"data:{name}")} if files else {}),
            **({"properties": _properties({"licence_texts": texts})} if texts else {}),
        }  # fmt: skip


def _versions(traced: Mapping[str, Any]) -> dict[tuple[str, str], list[str]]:
    """(package, version) -> the stages that had it; the last one is the process that made this bundle."""
    found: dict[tuple[str, str], list[str]] = {}
    for stage in [*traced["stages"], {"stage": "handoff", "made": traced["environment"]}]:
        for package in ((stage["made"] or {}).get("packages") or {}).items():
            found.setdefault(package, []).append(stage["stage"])
    return found


def _libraries(versions: Mapping[tuple[str, str], Sequence[str]]) -> Iterator[dict[str, Any]]:
    for (name, version), stages in sorted(versions.items()):
        purl = f"pkg:pypi/{name.lower().replace('_', '-')}@{version}"
        found: dict[str, Any] = {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}
        licence = _licence_of(name)
        found |= {"licenses": licence} if licence else {}
        yield found | {"properties": _properties({"stages": ", ".join(stages)})}


def _made(made: Mapping[str, Any] | None) -> str:
    """By which commit and on what a stage was made, in one line."""
    if not made:
        return "not recorded"
    code = made["code"]
    dirty = " with uncommitted changes" if code["dirty"] else ""
    return f"commit {code['commit'] or 'unknown'}{dirty}; Python {made['python']}; {made['gpu'] or made['cpu']}"


def _licence_of(package: str) -> list[dict[str, Any]]:
    """As the installed package declares it: an SPDX expression, else its classifier, else the text's first line."""
    try:
        declared = metadata.metadata(package)
    except metadata.PackageNotFoundError:
        return []
    if declared["License-Expression"]:
        return [{"expression": declared["License-Expression"]}]
    for classifier in declared.get_all("Classifier") or ():
        if classifier in _CLASSIFIED:
            return [{"license": {"id": _CLASSIFIED[classifier]}}]
    text = (declared["License"] or "").strip().splitlines()
    return _licences(text[0]) if text else []


def _metrics(facts: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for task in facts["tasks"]:
        yield {"type": task["metric"], "value": _number(task["tuned"]), "slice": f"held-out rows of {task['name']}"}
        low, high = task["ci95"]
        yield {
            "type": f"gain in {task['metric']} over the best of base and majority",
            "value": _number(task["difference"]), "slice": f"held-out rows of {task['name']}",
            "confidenceInterval": {"lowerBound": _number(low), "upperBound": _number(high)},
        }  # fmt: skip
    for kind, value in facts["general"]["perplexity_tuned"].items():
        yield {"type": "perplexity", "value": _number(value), "slice": f"general text: {kind}"}
    yield {
        "type": "mean KL(adapter || merged), nats a position", "value": _number(facts["parity"]["kl_mean"]),
        "slice": "the adapter's own answers",
    }  # fmt: skip


def _gates(facts: Mapping[str, Any]) -> Iterator[str]:
    for gate in facts["gates"]:
        yield f"{gate['name']}: {_number(gate['value'])} against a limit of {gate['limit']}: {gate['status']}"


def _number(value: Any) -> str:
    return "not measured" if value is None else f"{float(value):.6g}"


def _licences(*texts: str) -> list[dict[str, Any]]:
    named = [_SPDX.get(text.lower()) for text in texts]
    return [
        {"license": {"id": known} if known else {"name": text}}
        for text, known in dict(zip(texts, named, strict=True)).items()
    ]


def _files(files: Mapping[str, str], owner: str) -> list[dict[str, Any]]:
    return [
        {"type": "file", "bom-ref": f"{owner}/{name}", "name": name, "hashes": [{"alg": "SHA-256", "content": digest}]}
        for name, digest in sorted(files.items())
    ]


def _digest_of(files: Mapping[str, str]) -> str:
    return hashlib.sha256(canonical_json(dict(files)).encode()).hexdigest()


def _properties(values: Mapping[str, Any]) -> list[dict[str, str]]:
    return [{"name": f"finetune:{name}", "value": str(value)} for name, value in values.items() if value is not None]
