"""Personal data and secrets, found by checksummed recognisers where the kind has a checksum, become placeholders.

The same value within one row gives the same placeholder, `[EMAIL_1]`; numbers start anew in each row, so that rows
cannot be linked through them and the result does not depend on which other rows are there.
"""

import datetime as dt
import hashlib
import ipaddress
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from finetune.corpus.conversations import texts_in, with_texts
from finetune.corpus.tables import Row

_BEFORE, _AFTER = r"(?<![A-Za-z0-9])(?<!\d[.,])", r"(?![A-Za-z0-9])"
_NEW = r"(?!\[SECRET_\d+\])"
_CARD = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|5[1-5]\d{14}|2[2-7]\d{14}|3[47]\d{13}|3(?:0[0-5]|[689]\d)\d{11}|35\d{14}"
    r"|6(?:011|5\d\d|4[4-9]\d)\d{12}|62\d{14,17}"
)
"""Prefix and length of Visa, Mastercard, American Express, Diners, JCB, Discover and UnionPay."""
_IBAN_LENGTHS = {
    code: length
    for length, codes in {
        15: "NO", 16: "BE", 18: "DK FI FO GL NL SD", 19: "MK SI", 20: "AT BA EE KZ LT LU MN XK", 21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA", 23: "AE GI IL IQ OM SO TL", 24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST", 26: "IS TR", 27: "BI DJ FR GR IT MC MR SM", 28: "AL AZ BY CY DO GT HU LB NI PL SV",
        29: "BR EG PS QA UA", 30: "JO KW MU YE", 31: "MT SC", 32: "LC", 33: "RU",
    }.items()
    for code in codes.split()
}  # fmt: skip
_CN_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)


def luhn_holds(digits: str) -> bool:
    """The check digit of payment cards (ISO/IEC 7812)."""
    total = sum(sum(divmod(int(digit) * (1 + i % 2), 10)) for i, digit in enumerate(reversed(digits)))
    return total % 10 == 0


def iban_holds(text: str) -> bool:
    """ISO 13616: the country's length and the remainder 1 modulo 97."""
    iban = re.sub(r"[ -]", "", text).upper()
    if _IBAN_LENGTHS.get(iban[:2]) != len(iban):
        return False
    return int("".join(str(int(char, 36)) for char in iban[4:] + iban[:4])) % 97 == 1


def cn_id_holds(text: str) -> bool:
    """GB 11643-1999: a real birth date and the check character modulo 11."""
    try:
        dt.date(int(text[6:10]), int(text[10:12]), int(text[12:14]))
    except ValueError:
        return False
    total = sum(int(digit) * weight for digit, weight in zip(text[:17], _CN_WEIGHTS, strict=True))
    return "10X98765432"[total % 11] == text[17].upper()


def _card_holds(text: str) -> bool:
    digits = re.sub(r"[ -]", "", text)
    return _CARD.fullmatch(digits) is not None and luhn_holds(digits)


def _ip_holds(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return not address.is_unspecified


def _always(_: str) -> bool:
    return True


@dataclass(frozen=True)
class Recogniser:
    kind: str
    pattern: re.Pattern[str]
    """Group `value` is what is replaced, the whole match where there is no such group."""
    holds: Callable[[str], bool] = _always
    hint: str = ""
    """A character of this set must be in the text for the pattern to be worth a try; empty: always."""


def _find(kind: str, pattern: str, holds: Callable[[str], bool] = _always, hint: str = "0123456789") -> Recogniser:
    return Recogniser(kind, re.compile(pattern), holds, hint)


# In order of precedence: where two overlap, the earlier one wins.
RECOGNISERS = (
    _find("secret", r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", hint="-"),
    _find("secret", _BEFORE + r"(?:(?:AKIA|ASIA)[A-Z0-9]{16}|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{22,}"
          r"|glpat-[\w-]{20,}|xox[abeoprs]-[A-Za-z0-9-]{10,}|AIza[\w-]{35}|sk-[A-Za-z0-9_-]{20,}|hf_[A-Za-z0-9]{30,}"
          r"|(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{16,}|SG\.[\w-]{16,}\.[\w-]{16,}|npm_[A-Za-z0-9]{36}"
          r"|pypi-[\w-]{50,}|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]+)", hint=""),
    _find("secret", r"(?i)(?:api[_ -]?key|access[_ -]?key|secret[_ -]?key|auth[_ -]?token|access[_ -]?token|passwo?r?d"
          r"|passwd|client[_ -]?secret)[\"']?\s*[:=]\s*[\"']?(?P<value>" + _NEW + r"[^\s\"',;]{8,})", hint=":="),
    _find("secret", r"(?i)\b[a-z][a-z0-9+.-]{0,20}://[^\s/:@]{1,100}:(?P<value>" + _NEW + r"[^\s/@]{3,})@", hint="@"),
    _find("email", r"(?<![A-Za-z0-9_.+-])[A-Za-z0-9](?:[A-Za-z0-9_.+%-]{0,62}[A-Za-z0-9_+-])?@"
          r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,24}(?![A-Za-z0-9])", hint="@"),
    _find("iban", _BEFORE + r"[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]{4}){2,7}(?:[ -]?[A-Z0-9]{1,4})?" + _AFTER, iban_holds),
    _find("cn_id", _BEFORE + r"[1-9]\d{5}(?:19|20)\d{9}[\dXx]" + _AFTER, cn_id_holds),
    _find("card", _BEFORE + r"\d(?:[ -]?\d){12,18}" + _AFTER, _card_holds),
    _find("ssn", _BEFORE + r"(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![-\d])" + _AFTER),
    _find("cn_mobile", _BEFORE + r"(?:\+?86[ -]?)?1[3-9]\d(?:[ -]?\d{4}){2}" + _AFTER),
    _find("phone", r"(?<![\w+])\+[1-9](?:[ .()-]{0,2}\d){7,14}" + _AFTER),
    _find("phone", _BEFORE + r"(?:1[ .-])?(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[ .-])[2-9]\d{2}[ .-]\d{4}(?![-\d])" + _AFTER),
    _find("ip", r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.]*\d)", _ip_holds, hint="."),
    _find("ip", r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){3,7}[0-9A-Fa-f]{0,4}(?![\w:])", _ip_holds, hint=":"),
)  # fmt: skip

_PLACEHOLDER = re.compile(r"\[([A-Z_]+)_(\d+)\]")


@dataclass(frozen=True)
class Finding:
    start: int
    end: int
    kind: str


def find_personal(text: str, kinds: Iterable[str]) -> list[Finding]:
    """Findings in `text` in order, none overlapping another."""
    wanted = set(kinds)
    found: list[Finding] = []
    for recogniser in RECOGNISERS:
        if recogniser.kind not in wanted or (recogniser.hint and not any(char in text for char in recogniser.hint)):
            continue
        for match in recogniser.pattern.finditer(text):
            group = "value" if "value" in recogniser.pattern.groupindex else 0
            start, end = match.span(group)
            free = all(end <= other.start or other.end <= start for other in found)
            if free and recogniser.holds(text[start:end]):
                found.append(Finding(start, end, recogniser.kind))
    return sorted(found, key=lambda finding: finding.start)


def redact_texts(texts: Sequence[str], kinds: Iterable[str]) -> tuple[list[str], Counter[str]]:
    """The texts of one row with placeholders, and how many values of each kind were replaced."""
    kinds = tuple(kinds)
    numbers: dict[tuple[str, str], int] = {}
    # A text that already holds placeholders keeps them: new numbers start above.
    last: Counter[str] = Counter()
    for text in texts:
        for kind, number in _PLACEHOLDER.findall(text):
            last[kind] = max(last[kind], int(number))
    counts: Counter[str] = Counter()
    redacted = []
    for text in texts:
        # Replacing one value may bare the edge of the next, so that it is looked at again until nothing is left.
        while findings := find_personal(text, kinds):
            pieces, at = [], 0
            for finding in findings:
                kind, value = finding.kind.upper(), text[finding.start : finding.end]
                if (kind, value) not in numbers:
                    last[kind] += 1
                    numbers[kind, value] = last[kind]
                pieces += [text[at : finding.start], f"[{kind}_{numbers[kind, value]}]"]
                at = finding.end
                counts[finding.kind] += 1
            text = "".join([*pieces, text[at:]])
        redacted.append(text)
    return redacted, counts


def redact_row(row: Row, kinds: Iterable[str], nested: Collection[str] = ()) -> tuple[Row, Counter[str]]:
    """Every column but `_file` and `_line` redacted, one numbering for the row; of `nested` ones the texts inside."""
    names = [name for name in row if not name.startswith("_")]
    found = {name: list(texts_in(json.loads(row[name]))) if name in nested else [row[name]] for name in names}
    texts, counts = redact_texts([text for name in names for text in found[name]], kinds)
    rest = iter(texts)
    changed = {name: with_texts(row[name], rest) if name in nested else next(rest) for name in names}
    return {**row, **changed}, counts


def redact_key(key: str, kinds: Iterable[str], seed: int) -> str:
    """An id or group without personal data that still tells two of them apart: a hash takes the value's place."""
    pieces, at = [], 0
    for finding in find_personal(key, kinds):
        digest = hashlib.blake2b(f"{seed}\0{key[finding.start : finding.end]}".encode(), digest_size=6).hexdigest()
        pieces += [key[at : finding.start], f"[{finding.kind.upper()}:{digest}]"]
        at = finding.end
    return "".join([*pieces, key[at:]])
