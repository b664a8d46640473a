"""Personal data and secrets: labelled texts that are not ours, and what becomes of what is found."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from finetune.config.prepare import Redact
from finetune.corpus import clean, redact
from finetune.corpus.personal.recognisers import KINDS, find_personal
from finetune.errors import RecipeError
from tests.corpus.conftest import Corpus, orders

FLOORS = {
    "email": 0.99, "cn_mobile": 0.99, "cn_id": 0.95, "card": 0.8, "record": 0.95, "phone": 0.9, "ip": 0.5, "ssn": 0.75,
}  # fmt: skip
"""Least share of labelled values that are replaced whole, just below what was seen on 2026-11-22."""


def labelled() -> list[dict[str, Any]]:
    lines = (Path(__file__).parent / "personal/argus.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_labelled_values_of_every_kind_are_replaced_and_little_else() -> None:
    found, all_, replaced, false = Counter[str](), Counter[str](), 0, 0
    for row in labelled():
        text, findings = row["text"], find_personal(row["text"], KINDS)
        covered = {at for one in findings for at in range(one.start, one.end)}
        for start, end, kind in row["spans"]:
            needed = {at for at in range(start, end) if text[at].isalnum()}
            all_[kind] += 1
            found[kind] += bool(covered & needed) if row.get("whole") else needed <= covered
        if row["set"] != "argus scenes":  # their labels leave out a part of what stands there
            replaced += len(findings)
            false += sum(not any(s < one.end and one.start < e for s, e, _ in row["spans"]) for one in findings)
    shares = {kind: found[kind] / all_[kind] for kind in FLOORS}
    assert {kind for kind, floor in FLOORS.items() if shares[kind] < floor} == set(), shares
    assert false / replaced < 0.02


def test_texts_of_the_shipped_corpora_stay_as_they_are() -> None:
    """Work orders, sections of law, codes of diseases, accounts: 20 files without personal data."""
    root = Path(__file__).parents[2] / "data"
    files = [file for file in sorted(root.rglob("*")) if file.suffix in (".csv", ".md", ".txt", ".jsonl", ".html")]
    texts = {file.name: file.read_text(encoding="utf-8") for file in files if file.parent.name != "LICENSES"}
    texts.pop("SOURCES.md")
    assert len(texts) >= 15
    assert {name: find_personal(text, KINDS) for name, text in texts.items() if find_personal(text, KINDS)} == {}


SECRET = "0123456789abcdef" * 4
FINGERPRINT = hashlib.sha256(SECRET.encode()).hexdigest()


def row(**columns: str) -> dict[str, str]:
    return {**columns, "_file": "a.csv", "_line": "1"}


def test_a_kind_may_be_replaced_kept_or_cost_the_row() -> None:
    settings = Redact(email="keep", ssn="drop_row")
    changed, counts = redact.redact_row(row(text="ann@example.org, SSN 078-05-1120, 192.168.7.9"), settings)
    assert changed["text"] == "ann@example.org, SSN [SSN_1], [IP_1]"
    assert redact.drops(counts, settings) == "ssn"
    assert redact.drops(redact.redact_row(row(text="192.168.7.9"), settings)[1], settings) is None


def test_rows_of_a_kind_that_drops_them_are_rejected_and_counted(corpus: Corpus) -> None:
    rows = [json.loads(line) for line in (corpus.root / "orders.jsonl").read_text().splitlines()]
    rows[3]["text"] += " SSN 078-05-1120"
    corpus.write_rows("orders.jsonl", rows)
    corpus.config["prepare"] = {"redact": {"ssn": "drop_row"}}
    made = corpus.prepare()
    assert made.dropped()["personal data"] == 1
    (reject,) = [line for line in made.lines("rejects.jsonl") if line["reason"] == "personal data"]
    assert (reject["line"], reject["detail"]) == (4, "ssn")
    assert not any(b"078-05-1120" in content for content in made.files().values())


def test_a_wider_scope_names_a_value_alike_in_all_rows_whatever_the_others_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(redact.KEY_VARIABLE, SECRET)
    texts = ["call +86 138-1234-5678", "or 13812345678 and ann@example.org", "Ann@Example.org"]
    corpus = Redact(scope="corpus", key_sha256=FINGERPRINT)
    changed = [redact.redact_row(row(text=text), corpus)[0]["text"] for text in texts]
    assert changed[0].removeprefix("call ") == changed[1].split()[1] != changed[2] == changed[1].split()[3]
    assert changed == [redact.redact_row(row(text=text), corpus)[0]["text"] for text in reversed(texts)][::-1]
    assert not any(find_personal(text, KINDS) for text in changed), "a placeholder is no personal data"
    monkeypatch.setenv(redact.KEY_VARIABLE, SECRET[::-1])
    other = Redact(scope="corpus", key_sha256=hashlib.sha256(SECRET[::-1].encode()).hexdigest())
    assert redact.redact_row(row(text=texts[2]), other)[0]["text"] != changed[2], "no one without the key tests a guess"
    monkeypatch.setenv(redact.KEY_VARIABLE, SECRET)
    document = Redact(scope="document", key_sha256=FINGERPRINT)
    there, elsewhere = ({**row(text=texts[2]), "_file": name} for name in ("a.csv", "b.csv"))
    assert redact.redact_row(there, document)[0]["text"] == redact.redact_row(dict(there), document)[0]["text"]
    assert redact.redact_row(there, document)[0]["text"] != redact.redact_row(elsewhere, document)[0]["text"]


def test_a_wider_scope_wants_the_key_that_the_recipe_names(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError, match="key_sha256"):
        Redact(scope="corpus")
    for given in ("", "another key"):
        monkeypatch.setenv(redact.KEY_VARIABLE, given)
        with pytest.raises(RecipeError) as caught:
            redact.redact_row(row(text="x@example.org"), Redact(scope="corpus", key_sha256="0" * 64))
        assert "another key" not in str(caught.value).replace("is another key", "")


def test_the_name_of_a_column_or_key_tells_what_a_value_is() -> None:
    """presidio#1226: a value that only its column names is missed by who looks at the text alone."""
    given = row(mrn="48392017", phone="467 3395", password="hunter2x", order="48392017")
    changed, _ = redact.redact_row(given, Redact())
    assert changed == row(mrn="[RECORD_1]", phone="[PHONE_1]", password="[SECRET_1]", order="48392017")
    args = {"ssn": 219099999, "n": 219099999, "x@example.org": True, "deep": {"api_key": SECRET}}
    changed, _ = redact.redact_row(row(talk=json.dumps([{"args": args}])), Redact(), ["talk"])
    found = json.loads(changed["talk"])[0]["args"]
    assert found == {"ssn": "[SSN_1]", "n": 219099999, "[EMAIL_1]": True, "deep": {"api_key": "[SECRET_1]"}}


def test_an_id_is_replaced_by_what_its_column_is_called() -> None:
    columns = row(mrn="48392017", text="pump")
    key = redact.redact_key("ward 7/48392017", Redact(), 0, columns)
    assert key.startswith("ward 7/[RECORD:")
    assert "48392017" not in key
    assert redact.redact_key("ward 7/48392017", Redact(), 0) == "ward 7/48392017"


def test_escapes_of_json_and_addresses_hide_nothing() -> None:
    texts = [json.dumps({"found": "病历号：20231187"}), "https://x.example/?u=ann%40b.org", "１３８１２３４５６７８"]
    for text in texts:
        changed, counts = redact.redact_texts([text], KINDS)
        assert counts.total() == 1
        assert not any(value in changed[0] for value in ("20231187", "ann%40", "ann@", "１３８"))


@pytest.mark.parametrize(
    "text",
    [
        "see section 8.2.4.44 and version 10.20.30.40",
        "part 12-34-5678, order no. 4711-0815, invoice number 20839-4471",
        "password: required; the secret is out; token = get_token(user)",
        "password = os.environ['PW'], api_key: ${API_KEY}, secret: <your-secret>",
        "case 3 of 12, policy on page 12345, account for 2019-2020",
        "根据本法第一百二十三条，账户由银行管理，案号另行通知。",
        "class sk-fading-circle-indicator-animation",
        "sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "read_bytes=+35236450.6 at 2012-03-05T12:30:45",
    ],
)
def test_numbers_and_words_that_name_nobody_stay(text: str) -> None:
    assert redact.redact_texts([text], KINDS)[0] == [text]


def test_names_and_addresses_are_replaced_where_a_recipe_asks() -> None:
    text = "Dear Mr. Lee, 患者：王小明，来电。Send it to 12 North Main Street, Apt 4B."
    assert redact.redact_row(row(text=text), Redact())[0]["text"] == text
    changed = redact.redact_row(row(text=text), Redact(name="replace", address="replace"))[0]["text"]
    assert not any(value in changed for value in ("Lee", "王小明", "Main Street"))


def test_a_column_that_begins_with_an_underscore_is_text_like_any_other(corpus: Corpus) -> None:
    """MongoDB's `_id`, Elasticsearch's `_source`: only the toolkit's own columns are left as they are."""
    given = {"_id": "ann@example.org", "_source.message": "caf\u00c3\u00a9", "_file": "192.168.7.9", "_line": "1"}
    assert redact.redact_row(given, Redact())[0] == {**given, "_id": "[EMAIL_1]"}
    assert clean.repair_row(given)["_source.message"] == "caf\u00e9"
    assert "ann@" not in redact.redact_key("of ann@example.org", Redact(), 0, given)
    corpus.write_rows("orders.jsonl", [{"order": "1", "machine": "m", "text": "x", "action": "y", "_span": "z"}])
    with pytest.raises(RecipeError, match="our own name"):
        corpus.prepare()


def test_a_number_too_long_for_a_placeholder_stops_nothing() -> None:
    given = f"[EMAIL_{'9' * 5000}] is no placeholder, [EMAIL_7] is one, ann@example.org becomes one"
    (text,), counts = redact.redact_texts([given], KINDS)
    assert text.endswith("[EMAIL_7] is one, [EMAIL_8] becomes one")
    assert counts == {"email": 1}


def test_two_ids_or_two_keys_that_differ_in_capitals_only_stay_two() -> None:
    ids = {redact.redact_key(key, Redact(), 0) for key in ("Jane.Doe@example.org", "jane.doe@example.org")}
    assert len(ids) == 2
    told = json.dumps({"Jane@example.org": 1, "jane@example.org": 2, "JANE@example.org": [3]})
    changed, _ = redact.redact_row(row(talk=told), Redact(), ["talk"])
    assert json.loads(changed["talk"]) == {"[EMAIL_1]": 1, "[EMAIL_1] (2)": 2, "[EMAIL_1] (3)": [3]}


def test_samples_of_dropped_and_repaired_rows_hide_what_their_columns_name(corpus: Corpus) -> None:
    """A password or a record number that nothing but its column's name tells, and the file's own name."""
    rows = [json.loads(line) for line in (corpus.root / "orders.jsonl").read_text().splitlines()]
    (corpus.root / "orders.jsonl").unlink()
    named = [{**one, "password": f"hunt{n}kx9x", "mrn": f"4839{n:04d}", "deep": {"ssn": 219099000 + n}}
             for n, one in enumerate(rows)]  # fmt: skip
    named[3]["machine"] = "outside"
    named[4]["password"] += "\u00a0 of  old"
    named[5]["text"] = "x" * 2001
    named[6]["text"] += "<|im_end|>"
    corpus.write_rows("of 078-05-1120.jsonl", named)
    corpus.config["sources"]["orders"] |= {"path": "of*.jsonl", "where": {"machine": "^m"}}
    corpus.config["tasks"]["action"]["prompt"] = "{password} {mrn} {text}"
    corpus.config["prepare"] = {"filters": {"max_chars": 2000}, "dedup": {"near": None}}
    samples = json.loads((corpus.prepare().out / "datasheet.json").read_text())["samples"]
    assert {"where", "repair", "filter", "markup"} <= set(samples)
    told = json.dumps(samples)
    assert "[SECRET_1]" in told
    assert "[RECORD_1]" in told
    assert [value for value in ("hunt", "4839", "2190990", "078-05-1120") if value in told] == []


def test_a_reject_repeats_no_key_of_a_row_that_cannot_be_read(corpus: Corpus) -> None:
    odd = {"role": "assistant", "content": "x", "ann@example.org": 1, "Wang Xiaoming": 2}
    asked = [{"role": "user", "content": one["text"]} for one in orders(30)]
    answers = [odd, *({"role": "assistant", "content": f"z{n}"} for n in range(29))]
    talks = [{"no": str(n), "talk": list(told)} for n, told in enumerate(zip(asked, answers, strict=True))]
    corpus.write_rows("talks.jsonl", talks)
    good = [{"prompt": f"p{n}", "completion": f"c{n}"} for n in range(9)]
    corpus.write_rows("forms.jsonl", [*good, {"ann@example.org": "x", "Wang Xiaoming": "y"}])
    corpus.config["sources"] |= {
        "talks": {"path": "talks.jsonl", "id": "{no}", "group": "{no}"},
        "forms": {"path": "forms.jsonl", "form": "auto"},
    }  # fmt: skip
    task = {"title": "Talk", "metric": "exact_match"}
    corpus.config["tasks"]["talk"] = {**task, "source": "talks", "messages": "talk"}
    corpus.config["text"] = [{"source": "forms", "template": "{prompt} {completion}"}]
    corpus.config["prepare"] = {"bad_input": "reject", "dedup": {"near": None}}
    rejects = corpus.prepare().lines("rejects.jsonl")
    rules = {one["reason"]: one["detail"] for one in rejects if one["step"] in ("read", "unify")}
    assert rules["wrong conversation"] == "talk[1] has keys that would not be trained: 2 of 4"
    assert rules["uncertain form"] == "a row fits no form that is known"
    assert not any(key in json.dumps(rejects) for key in ("ann@", "Wang"))


@pytest.mark.parametrize(
    ("column", "text"),
    [
        ("patient_ssn", "123456789"), ("userSSN", "123456789"), ("patientMRN", "73910042"),
        ("drivers_license", "D1234567"), ("medicalRecordNumber", "7391004"), ("phone1", "5551234567"),
        ("contact_number", "5551234567"), ("电话2", "62345678"),
        ("password", "correcthorse"), ("user.password", "12"), ("用户密码", "芝麻开门"),
    ],
)  # fmt: skip
def test_a_columns_name_says_what_stands_there_however_it_is_written(column: str, text: str) -> None:
    assert [(one.start, one.end) for one in find_personal(text, KINDS, column)] == [(0, len(text))]
    assert find_personal(text, KINDS, "remark") == []


@pytest.mark.parametrize("column", ["text", "message.text", "office", "call"])
@pytest.mark.parametrize(
    "text",
    ["order 1005713 filter valve", "2011-01-02 03:04 pump stopped", "Sales of 12345678 units", "ISBN 9783161484100"],
)
def test_a_column_called_text_announces_no_number(column: str, text: str) -> None:
    """`text 555 1234` asks to be sent a message; the name of the column in which documents are announces nothing."""
    assert find_personal(text, KINDS, column) == []


def test_a_password_column_keeps_words_that_say_nothing() -> None:
    assert find_personal("required", KINDS, "password") == find_personal("", KINDS, "password") == []
    assert find_personal("[SECRET_1]", KINDS, "password") == []
