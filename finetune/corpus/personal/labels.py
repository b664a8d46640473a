"""The name of a column or key as words before its value: `patientMRN`, `user_ssn`, `phone1` say what stands there."""

import re
from functools import lru_cache

_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_NUMBERED = re.compile(r"(?<!ipv)(?<=[^\W\d_])\d+$", re.IGNORECASE)
_NO_SIGN = frozenset("text call dial ring reach office desk".split())  # noqa: SIM905
"""In a sentence these announce a number to dial; columns of these names hold anything."""
_PASSWORD = re.compile(r"(?i)(?:(?<![a-z])(?:passwords?|passwd|passphrase|passcode|pwd)|密码|口令)$")
_SAYS_NOTHING = re.compile(r"(?i)[\s*x•-]*|null|none|n/?a|true|false|yes|no|string|text|required|optional")


@lru_cache(1024)
def words_of(label: str) -> str:
    """`patientMRN` -> "patient MRN", `user_ssn` -> "user ssn", `phone1` -> "phone", `message.text` -> "message"."""
    parts = re.split(r"[_.\s]+", _HUMP.sub(" ", label))
    words = (_NUMBERED.sub("", part) for part in parts if not part.isdecimal())
    return " ".join(word for word in words if word and word.casefold() not in _NO_SIGN)


def is_password(words: str, value: str) -> bool:
    """Whether a column of these words holds passwords: then its values are secrets, also those that are plain words."""
    return _PASSWORD.search(words) is not None and _SAYS_NOTHING.fullmatch(value) is None
