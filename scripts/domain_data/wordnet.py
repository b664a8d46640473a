"""Nouns of WordNet 3.0 by topic and by hyponym closure."""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from domain_data.heldout import is_synset_held_out

MEMBER = "usr/share/wordnet/data.noun"


@dataclass(frozen=True)
class Synset:
    """`offset` is WordNet's own eight-digit key, `gloss` the definition without its examples."""

    offset: str
    words: tuple[str, ...]
    pointers: tuple[tuple[str, str], ...]
    gloss: str

    @property
    def parents(self) -> list[str]:
        return [target for symbol, target in self.pointers if symbol in ("@", "@i")]

    @property
    def topics(self) -> list[str]:
        return [target for symbol, target in self.pointers if symbol == ";c"]


class Nouns:
    """The noun file of WordNet, read once."""

    def __init__(self, folder: Path) -> None:
        self.synsets: dict[str, Synset] = {}
        self._children: dict[str, list[str]] = defaultdict(list)
        for line in (folder / MEMBER).read_text(encoding="utf-8").splitlines():
            if line.startswith("  "):
                continue
            synset = _parse(line)
            self.synsets[synset.offset] = synset
            for symbol, target in synset.pointers:
                if symbol == "@":
                    self._children[target].append(synset.offset)

    def choose(self, roots: Iterable[str] = (), topics: Iterable[str] = ()) -> list[Synset]:
        """Everything below `roots` and everything filed under `topics`, held-out offsets left out, by offset."""
        chosen, queue = set(), list(roots)
        while queue:
            offset = queue.pop()
            if offset not in chosen:
                chosen.add(offset)
                queue += self._children[offset]
        wanted = set(topics)
        chosen |= {offset for offset, synset in self.synsets.items() if wanted & set(synset.topics)}
        kept = [self.synsets[offset] for offset in sorted(chosen) if not is_synset_held_out(offset)]
        return [synset for synset in kept if len(synset.gloss.split()) >= 5 and not _is_name(synset)]

    def broader(self, synset: Synset) -> str:
        """First word of the first hypernym: what keeps near neighbours on one side of a split."""
        return self.synsets[synset.parents[0]].words[0] if synset.parents else synset.words[0]


def _is_name(synset: Synset) -> bool:
    return synset.words[0][0].isupper() or bool(re.search(r"\d", synset.words[0]))


def _parse(line: str) -> Synset:
    head, _, gloss = line.partition(" | ")
    fields = head.split()
    count = int(fields[3], 16)
    words = tuple(fields[4 + 2 * i].replace("_", " ") for i in range(count))
    rest = fields[4 + 2 * count :]
    pointers = tuple((rest[1 + 4 * i], rest[2 + 4 * i]) for i in range(int(rest[0])) if rest[3 + 4 * i] == "n")
    definition = re.split(r';\s*"|:\s*"', gloss.strip())[0].strip().rstrip(";").strip()
    return Synset(fields[0], words, pointers, re.sub(r"\s+", " ", definition))
