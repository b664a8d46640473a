"""What must never be in data/: the material that the release test is made of."""

import hashlib
import re

SALT = "heldout-7f3a"
KEPT_ASSETS = frozenset("ACDE")
FIRST_ARTICLE_HELD_OUT = 308
LAST_SPEECH_HELD_OUT = 2000


def is_held_out(key: str) -> bool:
    """One key in ten: a US-GAAP tag, an ICD-10-CM category, an HPO first parent or a WordNet offset."""
    return int(hashlib.sha256((SALT + key).encode()).hexdigest(), 16) % 10 == 0


def is_synset_held_out(offset: str) -> bool:
    """A WordNet offset is eight digits; its form without leading zeros counts too, so that no reading lets it in."""
    return is_held_out(offset) or is_held_out(str(int(offset)))


def is_code_held_out(code: str) -> bool:
    """An ICD-10-CM code belongs to the category of its first three characters."""
    return is_held_out(code[:3])


def is_article_held_out(number: str) -> bool:
    """Articles of the Indian constitution from 308 on (lettered ones such as 312A included), and the preamble (0)."""
    match = re.match(r"\d+", number)
    return match is None or not 0 < int(match[0]) < FIRST_ARTICLE_HELD_OUT
