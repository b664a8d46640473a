"""What makes a number one of its kind: check digits, lengths by country, real dates. All take the value as written."""

import datetime as dt
import ipaddress
import re

_SEPARATORS = re.compile(r"[ -]")
_CARD = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|5[1-5]\d{14}|2[2-7]\d{14}|3[47]\d{13}|3(?:0[0-5]|[689]\d)\d{11}|35\d{14}"
    r"|(?:1800|2131)\d{11}|6(?:011|5\d\d|4[4-9]\d)\d{12}|62\d{14,17}"
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
_DATE = re.compile(r"(?:19|20)\d\d[-/. ]\d{1,2}[-/. ]\d{1,2}|\d{1,2}[-/. ]\d{1,2}[-/. ](?:19|20)\d\d")
_COMPACT = r"(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])"
_NO_PHONE = re.compile(rf"{_DATE.pattern}|{_COMPACT}|[+-]?\d+\.\d+")
_SMALL = 32
"""Below it, four numbers with dots are rather a version or a section than the address of a machine."""


def luhn_holds(digits: str) -> bool:
    """The check digit of payment cards (ISO/IEC 7812)."""
    total = sum(sum(divmod(int(digit) * (1 + i % 2), 10)) for i, digit in enumerate(reversed(digits)))
    return total % 10 == 0


def card_holds(text: str) -> bool:
    """A network's prefix and length, and the check digit."""
    digits = _SEPARATORS.sub("", text)
    return _CARD.fullmatch(digits) is not None and luhn_holds(digits)


def named_card_holds(text: str) -> bool:
    """The check digit alone: for numbers that follow the word card (Maestro and banks' own cards share no prefix)."""
    return luhn_holds(_SEPARATORS.sub("", text))


def iban_holds(text: str) -> bool:
    """ISO 13616: the country's length and the remainder 1 modulo 97."""
    iban = _SEPARATORS.sub("", text).upper()
    if _IBAN_LENGTHS.get(iban[:2]) != len(iban):
        return False
    return int("".join(str(int(char, 36)) for char in iban[4:] + iban[:4])) % 97 == 1


def cn_id_holds(text: str) -> bool:
    """GB 11643-1999: a real birth date and the check character modulo 11."""
    text = text.replace(" ", "")
    try:
        dt.date(int(text[6:10]), int(text[10:12]), int(text[12:14]))
    except ValueError:
        return False
    total = sum(int(digit) * weight for digit, weight in zip(text[:17], _CN_WEIGHTS, strict=True))
    return "10X98765432"[total % 11] == text[17].upper()


def ip_holds(text: str) -> bool:
    """An address that may stand for a machine: no mask, no loopback, no four small numbers (a version, a section)."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if address.is_unspecified or address.is_loopback or address.is_multicast:
        return False
    return address.version == 6 or (not text.startswith("255.") and any(part >= _SMALL for part in address.packed))


def named_ip_holds(text: str) -> bool:
    """An IPv4 address that follows a word such as host: small numbers too."""
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return not (address.is_unspecified or address.is_loopback or text.startswith("255."))


def phone_holds(text: str) -> bool:
    """7 to 15 digits (E.164) that are no date and no decimal number."""
    number = re.split(r"(?i)\s?(?:x|ext)", text)[0]
    return 7 <= sum(char.isdigit() for char in number) <= 15 and not _NO_PHONE.fullmatch(number.strip())


def record_holds(text: str) -> bool:
    """At least five digits, and no date with separators: hospitals number by the day."""
    return sum(char.isdigit() for char in text) >= 5 and not _DATE.fullmatch(text)
