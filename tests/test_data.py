"""What is in data/, and what must not be: the rules are written out here again, not imported from the builder."""

import csv
import hashlib
import json
import re
from pathlib import Path

import docx
import pypdf
import pytest
import yaml

DATA = Path(__file__).resolve().parent.parent / "data"
DOCUMENTS = sorted(path for path in DATA.rglob("*") if path.is_file())


def held_out(key: str) -> bool:
    return int(hashlib.sha256(f"heldout-7f3a{key}".encode()).hexdigest(), 16) % 10 == 0


def read(path: Path) -> str:
    if path.suffix == ".docx":
        return "\n".join(paragraph.text for paragraph in docx.Document(str(path)).paragraphs)
    if path.suffix == ".pdf":
        return "\n".join(page.extract_text() for page in pypdf.PdfReader(path).pages)
    return path.read_text(encoding="utf-8")


def rows(name: str) -> list[dict[str, str]]:
    path = DATA / name
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_hash_rule_holds_back_one_key_in_ten() -> None:
    share = sum(held_out(str(key)) for key in range(10_000)) / 10_000
    assert 0.09 < share < 0.11


def test_articles_of_the_constitution_end_before_308() -> None:
    page = read(DATA / "legal/constitution_of_india.html")
    numbers = [int(number) for number in re.findall(r"<h3>Article (\d+)[A-Z]*\. ", page)]
    assert len(numbers) == page.count("<h3>") > 300
    assert max(numbers) < 308
    assert min(numbers) > 0


def test_work_orders_come_from_excavators_a_c_d_and_e_only() -> None:
    orders = rows("maintenance/work_orders.csv")
    assert {order["asset"] for order in orders} == {"A", "C", "D", "E"}
    assert len(orders) > 4000


def test_speeches_are_later_than_2000() -> None:
    for name in ("general/speeches.jsonl", "general/replay_speeches.jsonl"):
        passages = rows(name)
        assert len(passages) > 100
        assert all(int(row["year"]) > 2000 and row["speech"].startswith(row["year"]) for row in passages)


def test_no_held_out_accounting_tag_is_shipped() -> None:
    tags = [row["tag"] for name in ("gaap_tags", "line_items") for row in rows(f"finance/{name}.csv")]
    assert len(tags) > 2000
    assert not [tag for tag in tags if held_out(tag)]


def test_no_code_of_a_held_out_icd_category_stands_anywhere_in_the_medical_folder() -> None:
    codes = [row["code"] for row in rows("medical/icd10cm_terms.csv")]
    page = read(DATA / "medical/icd10cm_tabular.html")
    categories = re.findall(r"<h3>([A-Z][0-9A-Z]{2}) ", page)
    assert len(categories) == page.count("<h3>") > 1500
    mentioned = re.findall(r"\b([A-TV-Z][0-9][0-9A-Z])(?:\.[0-9A-Z]{1,4}|-[A-Z][0-9][0-9A-Z])\b", page)
    assert not [code for code in [*codes, *categories, *mentioned] if held_out(code[:3])]


@pytest.mark.parametrize(
    "name",
    [
        "legal/legal_terms.docx", "finance/finance_glossary.html", "medical/medical_terms.pdf",
        "maintenance/machine_handbook.pdf",
    ],
)
def test_no_held_out_wordnet_entry_is_in_a_glossary(name: str) -> None:
    offsets = re.findall(r"(\d{8})\]", read(DATA / name))
    assert len(offsets) > 500
    assert not [offset for offset in offsets if held_out(offset) or held_out(offset.lstrip("0"))]


def test_no_held_out_parent_is_among_the_terms_that_the_medical_recipe_reads() -> None:
    recipe = yaml.safe_load((DATA.parent / "recipes/medical.yaml").read_text(encoding="utf-8"))
    rule = recipe["sources"]["hpo"]["where"]["first_parent"]
    assert re.fullmatch(r"\^HP:\((\d{7}\|)*\d{7}\)\$", rule)
    parents = re.findall(r"\d{7}", rule)
    assert len(parents) > 100
    assert not [parent for parent in parents if held_out(f"HP:{parent}")]


def test_what_is_measured_is_never_replayed() -> None:
    measured, replayed = rows("general/speeches.jsonl"), rows("general/replay_speeches.jsonl")
    assert not {row["speech"] for row in measured} & {row["speech"] for row in replayed}
    assert not {row["text"] for row in measured} & {row["text"] for row in replayed}


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("maintenance/work_orders.csv", "order"), ("maintenance/tags.csv", "token"), ("finance/gaap_tags.csv", "tag"),
        ("finance/line_items.csv", "item"),
        ("medical/icd10cm_terms.csv", "code"), ("legal/coded_rules.jsonl", "rule"), ("general/speeches.jsonl", "id"),
        ("general/replay_speeches.jsonl", "id"), ("general/countries.jsonl", "id"),
    ],
)
def test_every_row_has_an_id_of_its_own(name: str, key: str) -> None:
    keys = [row[key] for row in rows(name)]
    assert len(keys) == len(set(keys))
    assert all(keys)


def test_coded_rules_quote_the_regulation_word_for_word() -> None:
    regulation = " ".join((read(DATA / "legal/cfr_34_part_99.txt") + read(DATA / "legal/cfr_34_part_668.txt")).split())
    assert all(" ".join(rule["quote"].split()) in regulation for rule in rows("legal/coded_rules.jsonl"))


def test_every_file_is_listed_with_its_source_and_is_small() -> None:
    listed = (DATA / "SOURCES.md").read_text(encoding="utf-8")
    for path in DOCUMENTS:
        name = path.relative_to(DATA).as_posix()
        assert name == "SOURCES.md" or f"`{name}`" in listed or f"({name})" in listed, name
        assert path.stat().st_size < 1_000_000, name
    assert sum(path.stat().st_size for path in DOCUMENTS) < 6_000_000
    for linked in re.findall(r"\]\((LICENSES/[^)]+)\)", listed):
        assert (DATA / linked).stat().st_size > 300


def test_each_domain_has_documents_beside_tables() -> None:
    for domain in ("legal", "finance", "medical", "maintenance"):
        kinds = {path.suffix for path in (DATA / domain).iterdir()}
        assert kinds & {".csv", ".jsonl"}, domain
        assert kinds & {".pdf", ".html", ".docx", ".txt", ".md"}, domain
