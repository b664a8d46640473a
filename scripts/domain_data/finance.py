"""data/finance: a glossary of finance and commerce, US-GAAP tags with statement and section."""

import json
import re
from pathlib import Path

from domain_data.documents import Block, write_csv, write_html, write_markdown
from domain_data.heldout import is_held_out
from domain_data.sources import Shipped
from domain_data.wordnet import MEMBER, Nouns

TAGS = "edgar/xbrl/standardization/gaap_mappings.json"
LINKAGES = "edgar/entity/data/concept_linkages.json"
NOT_AN_AMOUNT = re.compile(r"(Abstract|Axis|Member|Domain|Table|LineItems|TextBlock|Line Items)$")
FAMILY_WORDS = 4
"""Tags that begin alike stay on one side of a split."""
FINANCE_TOPICS = ("01098698", "01134037", "06150633", "01100273", "01100658", "06149484", "04323026", "00618734")
"""finance (three senses), banking (two), economics, stock market, accounting"""
FINANCE_ROOTS = (
    "00032613", "06472025", "08054721", "06685754", "06516595", "06516955", "13416345", "13353607",
    "09761403", "10090020", "05145118", "01134037",
)
"""possession, commercial document, financial institution, surety, financial statement, bill, certificate,
capital, accountant, financier, price, finance"""


def build(unpacked: dict[str, Path], out: Path) -> list[Shipped]:
    folder = out / "finance"
    nouns = Nouns(unpacked["wordnet-base"])
    glossary = nouns.choose(FINANCE_ROOTS, FINANCE_TOPICS)
    blocks: list[Block] = [("h1", "Finance glossary"), ("p", "WordNet 3.0: term, definition, broader term, entry.")]
    for synset in glossary:
        definition = synset.gloss.replace("[", "(").replace("]", ")")
        blocks.append(("p", f"{synset.words[0]} — {definition} [{nouns.broader(synset)}; {synset.offset}]"))
    write_html(folder / "finance_glossary.html", "Finance glossary", blocks)
    tags = _tags(unpacked["edgartools"] / TAGS)
    write_csv(folder / "gaap_tags.csv", tags)
    items = _line_items(unpacked["edgartools"] / LINKAGES)
    write_csv(folder / "line_items.csv", items)
    lines = sorted({(tag["statement"], tag["section"], tag["line"]) for tag in tags})
    outline: list[Block] = [("h1", "Standard lines of the financial statements")]
    above = ("", "")
    for statement, section, line in lines:
        if statement != above[0]:
            outline.append(("h2", statement))
        if (statement, section) != above:
            outline.append(("h3", section))
        above = (statement, section)
        outline.append(("p", f"- {line}"))
    write_markdown(folder / "statement_lines.md", outline)
    return [
        Shipped(
            "finance/finance_glossary.html", "wordnet-base", MEMBER, len(glossary),
            "topics finance, banking, economics, stock market, accounting; below possession, commercial document, "
            "financial institution and so on; definition without examples; held-out offsets left out",
        ),
        Shipped(
            "finance/gaap_tags.csv", "edgartools", TAGS, len(tags),
            "tags (US-GAAP, and IFRS ones that the mapping lists without a prefix) with one standard line, a statement "
            "and a section; ambiguous, prefixed and held-out tags left out; "
            "`words` is the tag cut at its capitals",
        ),
        Shipped(
            "finance/line_items.csv", "edgartools", LINKAGES, len(items),
            "how companies word a line of a statement, and the tag they filed it under; of a wording filed under "
            "several tags the most common; abstract and held-out tags left out; `words` as above, `family` their first "
            f"{FAMILY_WORDS}, `overlap` the share of words that wording and tag have in common (Dice)",
        ),
        Shipped(
            "finance/statement_lines.md", "edgartools", TAGS, len(lines),
            "the distinct statement, section and line of gaap_tags.csv as an outline",
        ),
    ]


def _line_items(path: Path) -> list[dict[str, str]]:
    """One row for each wording in each statement, by tag."""
    best: dict[tuple[str, str], tuple[int, str]] = {}
    content = json.loads(path.read_text(encoding="utf-8"))
    for entry in content["multi_statement_concepts"] + content["linkage_concepts"]:
        tag = entry["concept"]
        if not re.fullmatch(r"[A-Z][A-Za-z0-9]+", tag) or NOT_AN_AMOUNT.search(tag) or is_held_out(tag):
            continue
        for statement, detail in entry["statement_details"].items():
            label = re.sub(r"\s+", " ", detail["label"] or "").strip()
            if detail["is_abstract"] or not re.search(r"[a-z]{3}", label) or re.search(r"\d|\[|Parent Company", label):
                continue
            key, found = (statement, label.lower()), (detail["company_count"], tag)
            best[key] = max(best.get(key, found), found)
    spelled = _spelling(content)
    rows = [
        {
            "item": f"{tag}/{statement}/{index}",
            "statement": _spaced(statement),
            "label": spelled[label],
            "tag": tag,
            "words": " ".join(_words(tag)),
            "family": " ".join(_words(tag)[:FAMILY_WORDS]),
            "overlap": f"{_overlap(spelled[label], ' '.join(_words(tag))):.2f}",
        }
        for index, (tag, statement, label) in enumerate(
            sorted((tag, statement, label) for (statement, label), (_, tag) in best.items()), start=1
        )
    ]
    assert not any(is_held_out(row["tag"]) for row in rows)
    return rows


def _spelling(content: dict[str, list[dict[str, dict[str, dict[str, str]]]]]) -> dict[str, str]:
    entries = content["multi_statement_concepts"] + content["linkage_concepts"]
    labels = [detail["label"] or "" for entry in entries for detail in entry["statement_details"].values()]
    tidy = [re.sub(r"\s+", " ", label).strip() for label in labels]
    return {label.lower(): label for label in sorted(tidy)}


def _words(tag: str) -> list[str]:
    return re.findall(r"[A-Z]+(?![a-z])|[A-Z][a-z]+|[a-z]+|\d+", tag)


def _overlap(one: str, other: str) -> float:
    """Dice coefficient of the words: 1.0 where copying the wording would already give the tag."""
    words = [set(re.findall(r"[a-z0-9]+", text.lower())) for text in (one, other)]
    return 2 * len(words[0] & words[1]) / (len(words[0]) + len(words[1]))


def _spaced(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)


def _tags(path: Path) -> list[dict[str, str]]:
    rows = []
    for tag, entry in sorted(json.loads(path.read_text(encoding="utf-8")).items()):
        usable = re.fullmatch(r"[A-Z][A-Za-z0-9]+", tag) and entry.get("statement") and entry.get("section")
        if not usable or entry.get("ambiguous") or len(entry["standard_tags"]) != 1 or is_held_out(tag):
            continue
        rows.append({
            "tag": tag,
            "words": " ".join(_words(tag)),
            "statement": _spaced(entry["statement"]),
            "section": entry["section"],
            "line": entry["display_name"],
        })
    return rows
