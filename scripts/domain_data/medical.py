"""data/medical: the ICD-10-CM tabular list as page and table, a glossary."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

from domain_data.documents import Block, write_csv, write_html, write_pdf
from domain_data.heldout import is_code_held_out
from domain_data.sources import Shipped
from domain_data.wordnet import MEMBER, Nouns

TABULAR = "simple_icd_10_cm/data/icd10c-tabular-April-1-2026.xml"
CODES_IN_TABLE_PER_CATEGORY = 2
MEDICAL_TOPICS = ("06043075", "06055946", "06060845", "06057539", "06080522")
"""medicine, psychiatry, pathology, anatomy, physiology"""
MEDICAL_ROOTS = ("14061805", "14299637", "00658082", "03739693")
"""illness, symptom, treatment, medical instrument"""
CODE = re.compile(r"\s*\([A-Z][0-9][0-9A-Z][^)]*\)")


def build(unpacked: dict[str, Path], out: Path) -> list[Shipped]:
    folder = out / "medical"
    root = ET.parse(unpacked["simple-icd-10-cm"] / TABULAR).getroot()  # noqa: S314 - a file whose hash was checked
    page, table = _page(root), _table(root)
    write_html(folder / "icd10cm_tabular.html", "ICD-10-CM tabular list: categories", page)
    write_csv(folder / "icd10cm_terms.csv", table)
    nouns = Nouns(unpacked["wordnet-base"])
    glossary = nouns.choose(MEDICAL_ROOTS, MEDICAL_TOPICS)
    blocks: list[Block] = [("h1", "Medical terms"), ("p", "Glosses of WordNet 3.0.")]
    blocks += [("p", f"{synset.words[0]} — {synset.gloss} [{synset.offset}]") for synset in glossary]
    write_pdf(folder / "medical_terms.pdf", "Medical terms", blocks)
    return [
        Shipped(
            "medical/icd10cm_tabular.html", "simple-icd-10-cm", TABULAR,
            sum(kind == "h3" for kind, _ in page),
            "chapters, blocks and three-character categories with their inclusion terms; code ranges in headings, "
            "instructional and exclusion notes left out; held-out categories left out",
        ),
        Shipped(
            "medical/icd10cm_terms.csv", "simple-icd-10-cm", TABULAR, len(table),
            f"at most {CODES_IN_TABLE_PER_CATEGORY} terms of each category (first and last code); held-out categories "
            "left out; `chapter` is the chapter's title without its code range",
        ),
        Shipped(
            "medical/medical_terms.pdf", "wordnet-base", MEMBER, len(glossary),
            "topics medicine, psychiatry, pathology, anatomy, physiology, hyponyms of illness, symptom, treatment and "
            "medical instrument; definition without examples; held-out offsets left out",
        ),
    ]


def _page(root: ET.Element) -> list[Block]:
    blocks: list[Block] = [("h1", "ICD-10-CM tabular list, April 2026: categories")]
    for chapter in root.findall("chapter"):
        blocks.append(("h2", f"Chapter {_text(chapter, 'name')}: {_title(chapter)}"))
        for section in chapter.findall("section"):
            blocks.append(("p", f"Block: {_title(section)}"))
            for category in _kept(section):
                blocks.append(("h3", f"{_text(category, 'name')} {_text(category, 'desc')}"))
                terms = [CODE.sub("", note.text or "") for note in category.findall("inclusionTerm/note")]
                names = [_text(code, "desc") for code in category.findall("diag")]
                blocks += [("p", text) for text in (terms + names)[:6]]
    return blocks


def _table(root: ET.Element) -> list[dict[str, str]]:
    rows = []
    for chapter in root.findall("chapter"):
        for section in chapter.findall("section"):
            for category in _kept(section):
                leaves = [code for code in category.iter("diag") if code.find("diag") is None]
                rows += [
                    {
                        "code": _text(code, "name"),
                        "category": _text(category, "name"),
                        "term": _text(code, "desc"),
                        "block": _title(section),
                        "chapter": _title(chapter),
                    }
                    for code in {id(leaf): leaf for leaf in (leaves[0], leaves[-1])}.values()
                ]
    assert not any(is_code_held_out(row["code"]) for row in rows)
    return rows


def _kept(section: ET.Element) -> list[ET.Element]:
    return [category for category in section.findall("diag") if not is_code_held_out(_text(category, "name"))]


def _title(element: ET.Element) -> str:
    return CODE.sub("", _text(element, "desc")).strip()


def _text(element: ET.Element, tag: str) -> str:
    return re.sub(r"\s+", " ", element.findtext(tag) or "").strip()
