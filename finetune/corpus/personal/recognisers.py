"""The table of recognisers, and `find_personal`: where in a text which kind of personal data or secret stands."""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

from finetune.corpus.personal import checksums, labels, names, secrets


def _always(_: str) -> bool:
    return True


@dataclass(frozen=True)
class Finding:
    start: int
    end: int
    kind: str


@dataclass(frozen=True)
class Recogniser:
    kind: str
    pattern: re.Pattern[str]
    """A group called `value...` is what is replaced, the whole match where there is none; a group `not` refuses it."""
    holds: Callable[[str], bool]
    sign: str
    """What must be in a text (a key of _SIGNS) for the pattern to be worth a try."""


_BEFORE, _AFTER = r"(?<![A-Za-z0-9])(?<!\d[.,])", r"(?![A-Za-z0-9])"
_LETTERS = r"(?:" + _AFTER + r"|(?=[a-z]{2,}(?![a-z]*\d)))"
"""Chinese chat glues words of letters to a number."""
_NUMBER = r"(?:[ \t_-]*(?:numbers?|num\b|no\b\.?|nr\b\.?|nbr\b\.?|#|id\b|identifier|code))"
_IS = r"[\"']?[ \t]{0,3}(?:[:=#(]|\bis\b|\bwas\b|\bof\b|\breads?\b)?[ \t:#\"'(]{0,3}"
_CODE = r"(?P<value>[A-Z0-9](?:[A-Z0-9]|[-/.](?=[A-Z0-9])| (?=\d{2,4}\b)){3,28})" + _AFTER
_HELD = (
    r"mrn|medical[ _-]record|(?:patient|member|subscriber|beneficiary|employee|student|voter|customer|client)[ _-]?"
    r"|hospital|health (?:card|plan|insurance|record)|insurance(?: policy| card| member)?|policy(?:holder)?|claim|case"
    r"|passport|driv(?:er'?s?|ing) licen[sc]e|licen[sc]e plate|national insurance|nhs|(?:bank )?account|acct|a/c"
    r"|routing|sort|tax(?:payer)?|identity card|id card|card|visa|aadhaar|pan"
)
_NAMED = (
    r"mrn|medical[ _-]record|passport|driv(?:er'?s?|ing) licen[sc]e|nhs|bank account|itin|nino|aadhaar"
    r"|steuer-?id|rrn|acct|patient[_ -]?id|member[_ -]?id|account(?=[: =#\t\"']{1,4}[\d#])"
)
_HAN_HELD = (
    r"病历|病案|住院|门诊|就诊|诊疗|医保|社保|社会保障|护照|通行证|军官证|士兵证|驾驶证"
    r"|驾照|档案|银行卡|信用卡|储蓄卡|卡号|账号|帐号|账户|帐户|保单|客户编|学号|学籍"
    r"|マイナンバー|個人番号|工号|员工编"
    r"|会员|身份证|证件|纳税人识别"
)
_PHONE = r"(?P<value>(?:\+ ?)?\(?\d(?:[ ().\/-]{0,2}\d){6,16}(?: ?(?:x|ext\.?|转|分机) ?\d{1,6})?)" + _AFTER
_NUMBERED = r"(?:\b(?:sections?|sec|clauses?|chapter|versions?|ver|release|rev|firmware|build|art(?:icle)?|v)\b|§)"
_CALL = (
    r"(?:tele)?phone|(?<![a-z])(?:tel|fax|mobile|mob|hotline|mobil|handy|telefon|whatsapp|wechat)(?![a-z])"
    r"|(?<![a-z])(?:desk:|office:|answering at)"
    r"|(?<![a-z])cell(?:phone|ular)?(?= ?(?:no|num|is|:|phone))"
    r"|(?<![a-z])(?:call|dial|ring|reach|contact|text)(?= (?:me|us|him|her|them|at|on|number|no)\b|:| [(+]?\d)"
    r"|电话|電話|携帯|전화|연락처|手机|座机|热线|传真|微信|联系方式|致电|拨打"
)


def _find(
    kind: str, sign: str, pattern: str, holds: Callable[[str], bool] = _always, flags: re.RegexFlag = re.ASCII
) -> Recogniser:
    return Recogniser(kind, re.compile(pattern, flags), holds, sign)


# In order of precedence: where two overlap, the earlier one wins.
RECOGNISERS = (
    _find("secret", "key block", secrets.PRIVATE_KEY),
    _find("secret", "run", secrets.TOKEN, secrets.token_holds),
    _find("secret", "url", secrets.WEBHOOK),
    _find("secret", "url", secrets.IN_URL, secrets.url_password_holds),
    _find("secret", "key word", secrets.HEADER, secrets.key_holds),
    _find("secret", "key word", secrets.PASSWORD, secrets.password_holds),
    _find("secret", "key word", secrets.KEY, secrets.key_holds),
    _find("secret", "key word", secrets.FLAG, secrets.password_holds),
    _find("secret", "user", secrets.CURL),
    _find("email", "@", r"(?<![A-Za-z0-9_.+-])[A-Za-z0-9_](?:[A-Za-z0-9_.+%'-]{0,62}[A-Za-z0-9_+-])?@"
          r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,24}(?![A-Za-z0-9])"),
    _find("email", "(at)", r"(?i)(?<![A-Za-z0-9_.+-])[A-Za-z0-9_.+-]{1,64} ?[\[({] ?at ?[\])}] ?[A-Za-z0-9.-]{1,60}"
          r"(?:\.| ?[\[({] ?dot ?[\])}] ?)[A-Za-z]{2,24}(?![A-Za-z0-9])"),
    _find("iban", "code", r"(?i)" + _BEFORE + r"[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]{4}){2,7}(?:[ -]?[A-Z0-9]{1,4})?" + _AFTER,
          checksums.iban_holds),
    _find("cn_id", "digits", _BEFORE + r"[1-9]\d{5} ?(?:18|19|20)\d{6} ?\d{3}[\dXx]" + _LETTERS, checksums.cn_id_holds),
    _find("cn_id", "digits", r"身份证[^\d\n]{0,12}(?P<value>[1-9]\d{14})" + _LETTERS),
    _find("card", "digits", _BEFORE + r"\d(?:[ -]?\d){12,18}" + _AFTER, checksums.card_holds),
    _find("card", "digits", r"(?i)(?:card|visa|maestro|amex|卡号?|卡)[^\d\n]{0,24}" + _BEFORE
          + r"(?P<value>\d(?:[ -]?\d){11,18})" + _AFTER, checksums.named_card_holds),
    _find("ssn", "digits", _BEFORE + r"(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![-\d])" + _AFTER),
    _find("ssn", "digits", r"(?i)(?:\bssn|social security)[^\d\n]{0,24}" + _BEFORE
          + r"(?P<value>(?!000|666)\d{3}[ .-]?(?!00)\d{2}[ .-]?(?!0000)\d{4})(?![-\d])" + _AFTER),
    _find("cn_mobile", "digits", _BEFORE + r"(?:\+?(?:00)?86[ -]?)?1[3-9]\d(?:[ -]?\d{4}){2}" + _LETTERS),
    _find("phone", "digits", r"(?<![\w+])\+[1-9](?:[ .()/-]{0,2}\d){7,14}(?: ?(?:x|ext\.?) ?\d{1,6})?" + _AFTER,
          checksums.phone_holds),
    _find("phone", "digits", _BEFORE + r"(?:(?:\+?1|001)[ .-])?(?:\([2-9]\d{2}\) ?|[2-9]\d{2}(?P<sep>[.-]))\d{3}"
          r"(?(sep)(?P=sep)|[ .-])\d{4}(?: ?(?:x|ext\.?) ?\d{1,6})?(?![-\d])" + _AFTER),
    _find("phone", "digits", r"(?<![A-Za-z0-9.,-])0\d{1,2}-\d{3,4}-\d{4}(?![-A-Za-z0-9])"),
    _find("phone", "digits", r"(?<![A-Za-z0-9.,-])0(?:10|2\d|[3-9]\d{2})[ -]\d{7,8}(?:-\d{1,5})?" + _AFTER),
    _find("record", "named code", r"(?i)(?:\bnino|national insurance)[^\d\n]{0,20}?"
          r"(?P<value>(?<![A-Za-z])[A-Z]{2}(?: ?\d\d){3} ?[A-D])" + _AFTER),
    _find("record", "named code", rf"(?i)(?<![A-Za-z])(?:(?:{_HELD}){_NUMBER}|(?:{_NAMED})){_IS}{_CODE}",
          checksums.record_holds),
    _find("record", "number", rf"(?i)(?:{_HAN_HELD})(?:编?号码?|卡号?|号|码)?[ :=#是为(（]{{0,4}}{_CODE}",
          checksums.record_holds),
    _find("record", "digits", r"护照[^\dA-Za-z\n]{0,8}(?P<value>[A-Z]{1,2}\d{7,8})" + _AFTER),
    _find("record", "digits", r"卡[^\d\n]{0,8}(?P<value>\d{4}(?: ?\d{4}){3}(?: ?\d{1,3})?)" + _AFTER),
    _find("record", "digits", _BEFORE + r"62\d{14,17}(?=[ ,，]{0,2}[\u4e00-\u9fff]{0,8}卡)"),
    _find("record", "digits", r"(?<![A-Za-z0-9.,-])\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])-[1-4]\d{6}"
          r"(?![-A-Za-z0-9])"),
    _find("record", "number", r"案号[ :：]{0,2}(?P<value>[（(]\d{4}[）)][\u4e00-\u9fff]{1,3}\d{0,4}"
          r"[\u4e00-\u9fff]{1,4}\d{1,6}号)"),
    _find("phone", "digits", rf"(?i)(?:{_CALL})[^\d+(]{{0,20}}{_PHONE}", checksums.phone_holds),
    _find("phone", "digits", _BEFORE + rf"{_PHONE}(?= ?-? ?(?:office|fax|mobile|cell|desk)\b)", checksums.phone_holds,
          re.ASCII | re.IGNORECASE),
    _find("ip", "dots", rf"(?i)(?P<not>{_NUMBERED}[^\w\n]{{0,3}})?(?<![\w.])"
          r"(?P<value>(?:\d{1,3}\.){3}\d{1,3})(?![\w.]*\d)", checksums.ip_holds),
    _find("ip", "dots", r"(?i)(?:\bip(?:v4)?\b|\bhost\b|\bserver\b|address|gateway|://|地址)[^\w\n]{0,4}(?:is )?"
          r"(?P<value>(?:\d{1,3}\.){3}\d{1,3})(?![\w.]*\d)", checksums.named_ip_holds),
    _find("ip", "colons", r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])", checksums.ip_holds),
)  # fmt: skip
KINDS = tuple(dict.fromkeys(recogniser.kind for recogniser in RECOGNISERS))
"""What is replaced unless a recipe says otherwise."""
OPT_IN = (
    _find("name", "", names.TITLED, flags=re.RegexFlag(0)),
    _find("name", "", names.SAID, flags=re.RegexFlag(0)),
    _find("name", "han", names.CHINESE, flags=re.RegexFlag(0)),
    _find("address", "digit", names.STREET, flags=re.RegexFlag(0)),
    _find("address", "digit", names.CHINESE_STREET, flags=re.RegexFlag(0)),
)

PLACEHOLDER = re.compile(r"\[([A-Z_]+)_(\d{1,12})\]")
_SHORT = 64
_ESCAPE = re.compile(r"\\u(?!005[cC])[0-9A-Fa-f]{4}|%40")
_ODD = re.compile(r"[\u00a0\u00ad\u2000-\u200d\u2010-\u2015\u202f\u2060\u2212\u3000\ufeff\uff01-\uff5e]")
_PLAIN = {
    **{0xFF01 + i: 0x21 + i for i in range(94)},
    **dict.fromkeys([0xA0, 0xAD, *range(0x2000, 0x200E), 0x202F, 0x2060, 0x3000, 0xFEFF], 0x20),
    **dict.fromkeys([*range(0x2010, 0x2016), 0x2212], 0x2D),
}
"""Full-width signs, odd spaces and odd hyphens as ASCII, one for one: a number written with them is the same number."""
_KEY_WORD = re.compile("pass|pwd|pw|authoriz|secret|token|key|credential|bearer|basic|密码|口令|暗号|密钥|秘钥|令牌")
"""In small letters: four times as fast as a pattern that does not mind them."""
_HAN = re.compile(r"[\u4e00-\u9fff]")
_SIGNS: dict[str, Callable[[str], object]] = {
    "": _always,
    "@": lambda text: "@" in text,
    "(at)": re.compile(r"(?i)[\[({] ?at ?[\])}]").search,
    "key block": lambda text: "-----BEGIN " in text or "PuTTY-User-Key-File" in text,
    "run": re.compile(r"[A-Za-z0-9_/+=.:~-]{18}").search,
    "user": re.compile(r"(?:-u|--user)[ =]?[\"']?[^\s:]{1,60}:").search,
    "url": lambda text: "://" in text,
    "key word": lambda text: _KEY_WORD.search(text.lower()),
    "code": re.compile(r"(?i)(?<![A-Za-z0-9])[a-z]{2}\d\d[ -]?[a-z0-9]{4}").search,
    "digits": re.compile(r"\d(?:[ ().\-/]{0,3}\d){6}").search,
    "number": re.compile(r"\d(?:[ ().\-/]{0,3}\d){6}|\d{5}|案号").search,
    "named code": re.compile(r"\d(?:[A-Za-z]{0,2}[-/. ]?\d){4}").search,
    "dots": re.compile(r"\d\.\d{1,3}\.\d").search,
    "colons": re.compile(r"::|:[0-9A-Fa-f]{1,4}:").search,
    "digit": re.compile(r"\d").search,
    "han": _HAN.search,
}


def find_personal(text: str, kinds: Iterable[str], label: str = "") -> list[Finding]:
    """Findings in `text` in order, none overlapping another or a placeholder.

    `label` is the name of the column or key that the text stands under: it counts as a context word before the text.
    JSON's escapes (`\\u8eab`) and `%40` are read as what they mean: tool results and addresses of pages hold them.
    """
    wanted = frozenset(kinds)
    # Columns of categories repeat the same few short words a million times.
    return list(_known(text, wanted, label)) if len(text) <= _SHORT else _findings(text, wanted, label)


@lru_cache(8192)
def _known(text: str, kinds: frozenset[str], label: str) -> tuple[Finding, ...]:
    return tuple(_findings(text, kinds, label))


def _findings(text: str, kinds: frozenset[str], label: str) -> list[Finding]:
    if _ESCAPE.search(text):
        text, places = _unescaped(text)
        return [Finding(places[one.start], places[one.end], one.kind) for one in _findings(text, kinds, label)]
    words = labels.words_of(label)
    if "secret" in kinds and labels.is_password(words, text):
        return [] if PLACEHOLDER.fullmatch(text) else [Finding(0, len(text), "secret")]
    ahead = f"{words}: " if words else ""
    text = ahead + text
    if _ODD.search(text):
        text = text.translate(_PLAIN)
    recognisers = _chosen(kinds, tuple(sign for sign, search in _SIGNS.items() if search(text)))
    if not recognisers:
        return []
    found: list[Finding] = [Finding(0, len(ahead), "")] if ahead else []
    if "[" in text:
        found += [Finding(*match.span(), "") for match in PLACEHOLDER.finditer(text, len(ahead))]
    for recogniser in recognisers:
        for match in recogniser.pattern.finditer(text):
            group = match.lastgroup if match.lastgroup and match.lastgroup.startswith("value") else 0
            start, end = match.span(group)
            at = bisect_left(found, start, key=_start)
            free = (at == 0 or found[at - 1].end <= start) and (at == len(found) or end <= found[at].start)
            refused = "not" in recogniser.pattern.groupindex and match["not"]
            if free and not refused and recogniser.holds(text[start:end]):
                found.insert(at, Finding(start, end, recogniser.kind))
    return [Finding(one.start - len(ahead), one.end - len(ahead), one.kind) for one in found if one.kind]


def _unescaped(text: str) -> tuple[str, list[int]]:
    """The text without escapes, and for each of its places (the end too) the place in `text`."""
    pieces: list[str] = []
    places: list[int] = []
    at = 0
    for match in _ESCAPE.finditer(text):
        pieces += [text[at : match.start()], chr(int(match[0][-4:], 16)) if match[0][0] == "\\" else "@"]
        places += range(at, match.start() + 1)
        at = match.end()
    return "".join([*pieces, text[at:]]), [*places, *range(at, len(text) + 1)]


def _start(finding: Finding) -> int:
    return finding.start


@lru_cache(4096)
def _chosen(kinds: frozenset[str], signs: tuple[str, ...]) -> tuple[Recogniser, ...]:
    return tuple(one for one in (*RECOGNISERS, *OPT_IN) if one.kind in kinds and one.sign in signs)
