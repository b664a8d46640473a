"""data/maintenance: excavator work orders, the planners' tags and abbreviations, a handbook of machines and tools."""

import csv
import re
from pathlib import Path

from domain_data.documents import Block, write_csv, write_markdown, write_pdf
from domain_data.heldout import KEPT_ASSETS
from domain_data.sources import Shipped
from domain_data.wordnet import MEMBER, Nouns

ORDERS = "nestor/datasets/excavators-cleaned.csv"
TAGS = "nestor/datasets/resources/vocab-excavators2018sexton-1g.csv"
TAG_NAMES = {"I": "item", "P": "problem", "S": "solution", "U": "unknown", "X": "irrelevant"}
MACHINE_ROOTS = ("03699975", "04451818", "03738472")
"""machine, tool, mechanism"""


def build(unpacked: dict[str, Path], out: Path) -> list[Shipped]:
    folder = out / "maintenance"
    orders = _orders(unpacked["nist-nestor"] / ORDERS)
    write_csv(folder / "work_orders.csv", orders)
    words = {word for order in orders for word in re.findall(r"[a-z0-9/&]+", order["text"].lower())}
    tags = _tags(unpacked["nist-nestor-tags"] / TAGS, words)
    write_csv(folder / "tags.csv", [{key: tag[key] for key in ("token", "kind", "meaning")} for tag in tags])
    short = [tag for tag in tags if tag["meaning"].replace("_", "") != tag["token"] and len(tag["token"]) <= 6]
    blocks: list[Block] = [
        ("h1", "Abbreviations and spellings in work orders"),
        ("p", "What planners and fitters write, and what they mean, as tagged by a maintenance engineer."),
    ]
    for kind in ("item", "problem", "solution"):
        blocks.append(("h2", f"{kind.capitalize()}s"))
        blocks += [("p", f"- {tag['token']}: {tag['meaning']}") for tag in short if tag["kind"] == kind]
    write_markdown(folder / "abbreviations.md", blocks)
    nouns = Nouns(unpacked["wordnet-base"])
    machines = nouns.choose(MACHINE_ROOTS)
    handbook: list[Block] = [("h1", "Machines, mechanisms and tools"), ("p", "Glosses of WordNet 3.0.")]
    letter = ""
    for synset in sorted(machines, key=lambda synset: (synset.words[0].lower(), synset.offset)):
        if synset.words[0][0].upper() != letter:
            letter = synset.words[0][0].upper()
            handbook.append(("h2", letter))
        handbook.append(("p", f"{', '.join(synset.words)}: {synset.gloss} [{synset.offset}]"))
    write_pdf(folder / "machine_handbook.pdf", "Machines, mechanisms and tools", handbook)
    return [
        Shipped(
            "maintenance/work_orders.csv", "nist-nestor", ORDERS, len(orders),
            "assets A, C, D, E; rows without text dropped; columns renamed and chosen; NA written as none, "
            "joined labels as `a + b`; `order` is the line in the original; `labels` counts the labels that are set",
        ),
        Shipped(
            "maintenance/tags.csv", "nist-nestor-tags", TAGS, len(tags),
            "tokens that have a tag and occur in the kept work orders; tag letters spelled out",
        ),
        Shipped(
            "maintenance/abbreviations.md", "nist-nestor-tags", TAGS, sum(kind == "p" for kind, _ in blocks) - 1,
            "of tags.csv, the tokens of at most 6 characters whose meaning differs; headings are ours",
        ),
        Shipped(
            "maintenance/machine_handbook.pdf", "wordnet-base", MEMBER, len(machines),
            "hyponyms of machine, tool and mechanism; definition without examples; held-out offsets left out",
        ),
    ]


def _orders(path: Path) -> list[dict[str, str]]:
    rows = []
    with path.open(encoding="utf-8", newline="") as file:
        for line, raw in enumerate(csv.DictReader(file), start=2):
            text = re.sub(r"\s+", " ", raw["OriginalShorttext"]).strip()
            if raw["Asset"] not in KEPT_ASSETS or not text:
                continue
            labels = {
                name: "none" if raw[column] == "NA" else " + ".join(raw[column].strip().split("_"))
                for name, column in (("action", "Action"), ("failure_mode", "FM"), ("location", "Location"))
            }
            rows.append({
                "order": str(line),
                "asset": raw["Asset"],
                "date": raw["BscStartDate"],
                "month": raw["BscStartDate"][:7],
                "text": text,
                "functional_location": re.sub(r"\s+", " ", raw["FuncLocation"]).strip(),
                **labels,
                "labels": str(sum(value != "none" for value in labels.values())),
                "part": raw["Part"].replace("_", " + ") if raw["Part"] != "NA" else "none",
                "cost": raw["Cost"],
            })
    assert {row["asset"] for row in rows} == KEPT_ASSETS
    return rows


def _tags(path: Path, words: set[str]) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [
            {"token": raw["tokens"], "kind": TAG_NAMES[raw["NE"]], "meaning": raw["alias"] or raw["tokens"]}
            for raw in csv.DictReader(file)
            if raw["NE"] in TAG_NAMES and raw["tokens"] in words
        ]
