"""Planted personal data and secrets, in files of every format: no output keeps one."""

import base64
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune.artifacts import Artifact
from finetune.chat import ChatFormat
from finetune.corpus import prepare
from finetune.corpus.personal.recognisers import KINDS
from finetune.corpus.read import find_documents
from tests.corpus.builders.test_teacher import said, teaching
from tests.corpus.conftest import Corpus, orders

# Kind -> values; made up, with right check digits. Each is planted once, in the file that `planted` says.
LETTERS, HEX = "aB3dE5fG7hJ9kLmN2pQrS4tUvW6xYz8A", "0f1e2d3c4b5a69788796a5b4c3d2e1f0"
PLANTED = {
    "email": ["ann.lee@clinic.example", "zhang.wei@example.cn", "bob_k@mail.example.org", "o.neil+x@example.co.uk"],
    "phone": ["(212) 555-2368", "+44 20 7946 0958", "415-555-0132", "010-62345678"],
    "card": ["4111 1111 1111 1111", "5500-0000-0000-0004", "378282246310005", "6011111111111117"],
    "iban": ["DE89 3704 0044 0532 0130 00", "GB82WEST12345698765432", "FR1420041010050500013M02606"],
    "ssn": ["078-05-1120", "219-09-9999", "457-55-5462"],
    "ip": ["192.168.10.254", "203.0.113.77", "2001:db8:85a3::8a2e:370:7334"],
    "cn_id": ["11010519491231002X", "440308199901101512", "身份证号320311770706001"],
    "cn_mobile": ["13812345678", "159 2345 6789", "+86 18687654321"],
    "record": ["MRN 48392017", "passport number C03005988", "account number 20839-4471",
               "policy no. HX-772310-04", "病历号：20231187", "护照号E12345678", "案号（2021）京0105民初12345号"],
    "secret": ["AKIAIOSFODNN7EXAMPLQ", f"ghp_{LETTERS}a1B2", f"glpat-{LETTERS[:20]}",
               f"xoxb-123456789012-{LETTERS[:24]}", f"sk-proj-{LETTERS}", f"hf_{LETTERS}x",
               f"AIza{LETTERS}abc", f"SG.{LETTERS[:22]}.{LETTERS}",
               f"sk_live_{LETTERS[:24]}", f"npm_{LETTERS}abcd", f"dapi{HEX}",
               f"eyJhbGciOiJIUzI1NiJ9.eyJ{LETTERS}.{LETTERS}",
               "password = Tr0ub4dor&3x", f"api_key: {HEX[:24]}", "postgres://admin:s3cr3tPw@db.example/x",
               f"-----BEGIN PRIVATE KEY-----\nMIIE{LETTERS}\n-----END PRIVATE KEY-----"],
}  # fmt: skip
VALUES = [value for values in PLANTED.values() for value in values]


def told(value: str, number: int) -> str:
    words = ["Pump {} was checked.", "The valve of line {} leaks.", "Look at bearing {} again.", "Seal {} is worn."]
    return f"{words[number % 4].format(chr(97 + number % 26))} Note {number * 37}: {value} and nothing else."


def traces(value: str) -> list[str]:
    """The planted value, or its secret part, as it is, without separators, in base64 and percent-encoded."""
    for word in ("MRN ", "passport number ", "account number ", "policy no. ", "病历号：", "护照号", "身份证号", "案号",
                 "password = ", "api_key: ", "postgres://admin:", "-----BEGIN PRIVATE KEY-----\n"):  # fmt: skip
        value = value.removeprefix(word)
    value = value.removesuffix("@db.example/x").removesuffix("\n-----END PRIVATE KEY-----")
    plain = "".join(char for char in value if char.isalnum())
    forms = {value, plain, value.replace("@", "%40"), json.dumps(value)[1:-1]}
    forms |= {base64.b64encode(form.encode()).decode().rstrip("=")[:-1] for form in (value, plain)}
    return sorted(form for form in forms if len(form) >= 7)


def wards(count: int) -> list[dict[str, Any]]:
    """Rows whose values only a column's name tells, four of which where, repair, filter and markup show; ids of a
    database that begin with an underscore."""
    rows = [{"no": one["order"], "_id": f"nurse{n}@ward.example", "_source": {"note": f"call 1381234{n:04d}"},
             "password": f"Hidden{n}word", "mrn": f"7391{n:04d}", "text": one["text"], "kind": "ward"}
            for n, one in enumerate(orders(count))]  # fmt: skip
    rows[1]["kind"] = "office"
    rows[2]["password"] += " \u00a0 and  more"
    rows[3]["text"] = "x" * 1501
    rows[4]["text"] += "<|im_end|>"
    return rows


NAMED = ("@ward.example", "138123400", "Hidden", "739100", "Secr3t&made")
"""What each of those rows, and the teacher's replies, hold."""


def plant(corpus: Corpus, endpoint: str) -> None:
    """Every value in one format of nine and in a conversation; in ids, groups, headings, keys, a file's name too."""
    corpus.write_rows("wards.jsonl", wards(40))
    share = [VALUES[at::9] for at in range(9)]
    lines = [[told(value, 9 * at + kind) for at, value in enumerate(share[kind])] for kind in range(9)]
    quoted = ['"' + line.replace('"', '""') + '"' for line in lines[0]]
    corpus.write("078-05-1120.csv", "no,text\n" + "".join(f"{n},{line}\n" for n, line in enumerate(quoted)))
    assert not any("\n" in line for line in lines[1])
    corpus.write("b.tsv", "no\ttext\n" + "".join(f"{n}\t{line}\n" for n, line in enumerate(lines[1])))
    packed = "".join(json.dumps({"no": n, "text": line}) + "\n" for n, line in enumerate(lines[2]))
    corpus.write("c.jsonl.gz", gzip.compress(packed.encode()))
    table = io.BytesIO()
    pq.write_table(pa.table({"no": [str(n) for n in range(len(lines[3]))], "text": lines[3]}), table)
    corpus.write("d.parquet", table.getvalue())
    html = "".join(f"<h2>Case of {value}</h2><p>{line}</p>" for value, line in zip(share[4], lines[4], strict=True))
    corpus.write("docs/e.html", f"<html><body><h1>Cases</h1>{html}</body></html>")
    notes = "".join(f"## {value}\n\n{line}\n\n" for value, line in zip(share[5], lines[5], strict=True))
    corpus.write("docs/f.md", f"# Notes\n\n{notes}")
    corpus.write("docs/g.txt", "\n\n".join(lines[6]))
    write_docx(corpus.root / "docs/h.docx", lines[7])
    write_pdf(corpus.root / "docs/i.pdf", [line for line in lines[8] if line.isascii()])
    talks = []
    for number, value in enumerate(VALUES):
        line = value.replace("\n", " ")
        asked = {"who": line, line: number, "number": 4111111111111111, "password": "hunter2hunter2"}
        call = {"name": "find", "arguments": asked}
        talks.append({"who": value, "machine": f"m of {value}", "talk": json.dumps([
            {"role": "user", "content": told(value, number)},
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]},
            {"role": "tool", "content": json.dumps({"found": value})},
            {"role": "assistant", "content": f"Number {number * 7}: {value}"}])})  # fmt: skip
    corpus.write_rows("talks.jsonl", talks)
    orders = {"id": "{no} {_file}", "group": "{no} {_file}"}
    corpus.config["sources"] |= {
        "csv": {"path": "*.csv", **orders}, "tsv": {"path": "b.tsv", **orders}, "gz": {"path": "c.jsonl.gz", **orders},
        "parquet": {"path": "d.parquet", **orders},
        "headings": {"path": "docs/*.html", "cut": {"by": "heading"}, "id": "{heading} {_line}", "group": "{heading}"},
        "notes": {"path": "docs/*.md", "cut": {"by": "heading"}, "id": "{heading} {_line}", "group": "{heading}"},
        "plain": {"path": "docs/g.txt", "cut": {"by": "paragraph"}}, "word": {"path": "docs/h.docx"},
        "pages": {"path": "docs/i.pdf"},
        "talks": {"path": "talks.jsonl", "id": "{who}", "group": "{machine}"},
        "wards": {"path": "wards.jsonl", "id": "{_id} {mrn}", "group": "{_id}", "where": {"kind": "ward"}},
    }  # fmt: skip
    corpus.config["build"] = {"taught": {
        "source": "wards", "builder": "teacher", "endpoint": endpoint, "send_documents": True, "document": "{no}",
        "checks": [],
    }}  # fmt: skip
    corpus.config["tasks"] |= {"ward": {
        "title": "Ward", "source": "taught", "metric": "exact_match", "answer": "{answer}",
        "prompt": "{_id} {_source.note} {password} {mrn} {text} {question}",
    }}  # fmt: skip
    corpus.config["text"] = [
        {"source": name, "template": "{heading}\n{text}" if name in ("headings", "notes") else "{text}"}
        for name in ("csv", "tsv", "gz", "parquet", "headings", "notes", "plain", "word", "pages")
    ]
    corpus.config["tasks"]["talk"] = {"title": "Talk", "source": "talks", "messages": "talk", "metric": "exact_match"}
    corpus.config["model"] = {"modes": ["plain", "think"], "default_mode": "plain"}
    corpus.config["sft"] = corpus.config["cpt"] = {"max_length": 1024}
    corpus.config["prepare"] = {"dedup": {"near": None}, "filters": {"max_chars": 1500}}


def write_docx(path: Path, lines: list[str]) -> None:
    import docx

    document = docx.Document()
    document.add_heading(lines[0].split(":")[-1][:40], 1)
    for line in lines:
        document.add_paragraph("".join(char for char in line if char >= " "))
    path.parent.mkdir(exist_ok=True)
    document.save(str(path))


def write_pdf(path: Path, lines: list[str]) -> None:
    from reportlab.pdfgen.canvas import Canvas

    canvas = Canvas(str(path))
    for at, line in enumerate(lines):
        canvas.drawString(40, 800 - 20 * at, line)
    canvas.save()


def everything_written(out: Path, chat: ChatFormat) -> str:
    """All bytes of a folder as text: decompressed, token ids decoded, column names too."""
    parts = []
    for path in sorted(out.rglob("*")):
        if path.suffix == ".parquet":
            for row in pq.read_table(path).to_pylist():
                parts += [chat.decode(value) if key == "input_ids" else str(value) for key, value in row.items()]
        elif path.is_file():
            parts.append(path.read_bytes().decode("utf-8", errors="replace"))
        parts.append(path.name)
    return "\n".join(parts)


@pytest.mark.slow
def test_of_50_planted_values_no_output_keeps_one(corpus: Corpus, tiny_qwen3: Path) -> None:
    corpus.base = Artifact(tiny_qwen3, {"stage": "base", "digest": "0", "facts": {}})
    assert len(VALUES) >= 50
    with teaching({"": said("Who?", "password = Secr3t&made9x", "order")}) as server:
        look_for_planted(corpus, f"{server.url}#wise")


def look_for_planted(corpus: Corpus, endpoint: str) -> None:
    plant(corpus, endpoint)
    settings = prepare.Config.model_validate(corpus.config)
    heard: list[str] = []
    out = corpus.root.parent / "out"
    out.mkdir()
    documents = find_documents(settings.sources, corpus.root)
    facts = prepare.run(
        settings.model_dump(mode="json"), out=out, base=corpus.base, documents=documents, say=heard.append
    )
    written = everything_written(out, ChatFormat.read(corpus.base.path)) + "\n".join(heard) + json.dumps(facts)
    kept = {value: form for value in VALUES for form in traces(value) if form in written}
    for value, form in kept.items():
        print(value, repr(written[max(0, written.find(form) - 120) : written.find(form) + 40]))
    assert kept == {}
    assert "4111111111111111" not in written
    assert "hunter2" not in written
    assert [value for value in NAMED if value in written] == []
    samples = json.loads((out / "datasheet.json").read_text(encoding="utf-8"))["samples"]
    assert {"where", "repair", "filter", "markup", "redact", "build"} <= set(samples)
    assert all(f"[{kind.upper()}_1]" in written for kind in PLANTED)
    # the same rows with the policy off do hold them: the search itself can find what it looks for
    corpus.config["prepare"]["redact"] = dict.fromkeys(KINDS, "keep")
    written = everything_written(corpus.prepare().out, ChatFormat.read(corpus.base.path))
    assert [value for value in VALUES if not any(form in written for form in traces(value))] == []
    assert [value for value in NAMED if value not in written] == []


