"""Secrets: keys and tokens that carry their issuer's mark, and values after words that announce one.

The marks are facts that issuers publish; gitleaks, detect-secrets, trufflehog and secretlint know the same ones.
"""

import math
import re
from collections import Counter
from itertools import pairwise

PRIVATE_KEY = (
    r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----[\s\S]*?"
    r"(?:-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----|\Z)|PuTTY-User-Key-File-\d:[\s\S]*?(?:Private-MAC: \w+|\Z)"
)
_MARKS = {
    "clouds": r"""
        (?:AKIA|ASIA|ABIA|ACCA|A3T[A-Z0-9])[A-Z0-9]{16}(?![A-Z0-9]) LTAI[A-Za-z0-9]{12,26} AKID[A-Za-z0-9]{32}
        ALTAK[A-Za-z0-9]{20,} AIza[\w-]{35} GOCSPX-[\w-]{28} ya29\.[\w-]{20,}
        [A-Za-z0-9_~.]{3}\dQ~[A-Za-z0-9_~.-]{31,34} do[opr]_v1_[a-f0-9]{64} HRKU-[\w-]{20,} fo1_[\w-]{43}
        fm[12][ar]?_[\w-]{80,} tskey-[a-z]+-[\w-]{10,} dapi[A-Fa-f0-9]{32}(?:-\d)? v1\.0-[a-f0-9]{24}-[a-f0-9]{146}
        cf(?:ut|k|at)_[\w-]{32,} ocid1\.[a-z]+\.[\w-]*\.[\w-]*\.[\w-]{40,}
    """,
    "code and packages": r"""
        gh[pousr]_[A-Za-z0-9]{36,} github_pat_\w{22,}
        gl(?:pat|dt|rt|ptt|cbt|imt|agent|ft|soat|ffct|oas|rtr)-[\w.-]{20,}
        GR1348941[\w-]{20} npm_[A-Za-z0-9]{36} pypi-[\w-]{50,} rubygems_[a-f0-9]{48} oy2[a-z0-9]{43}
        dckr_(?:pat|oat)_[\w-]{27,} cio[A-Za-z0-9]{32} AKCp[A-Za-z0-9]{60,} cmVmdGtu[A-Za-z0-9]{50,} ATATT3[\w=-]{60,}
        ATBB[A-Za-z0-9]{32} bkua_[a-z0-9]{40} CCIPAT_[A-Za-z0-9]{22}_[a-f0-9]{40} sq[pua]_[a-f0-9]{40}
        sgp_(?:[A-Fa-f0-9]{16}_|local_)?[A-Fa-f0-9]{40} sntr(?:ys|yu)_[A-Za-z0-9_=+/-]{40,}
        API-[A-Z0-9]{26}(?![A-Z0-9])
        pul-[a-f0-9]{40} [A-Za-z0-9]{14}\.atlasv1\.[\w-]{60,} hv[sbr]\.[\w-]{24,}
        dp\.(?:pt|st|ct|sa|scim|audit)\.[A-Za-z0-9.]{40,} pnu_[a-zA-Z0-9]{36} vc[pkiar]_[A-Za-z0-9]{24,}
        nfp_[A-Za-z0-9]{36} sbp_[a-f0-9]{40} sb_secret_[\w-]{20,} pscale_(?:pw|tkn|oauth)_[\w.-]{32,}
        napi_[a-z0-9]{40,}
        sha256~[\w-]{43}
    """,
    "models": r"""
        sk-[\w-]{20,} hf_[A-Za-z0-9]{30,} gsk_[A-Za-z0-9]{40,} pplx-[A-Za-z0-9]{40,} r8_[A-Za-z0-9]{37}
        xai-[A-Za-z0-9]{60,} lsv2_(?:pt|sk)_[a-f0-9]{32}_[a-f0-9]{10} pcsk_[A-Za-z0-9_]{40,}
    """,
    "payment, mail, messages": r"""
        (?:sk|rk|pk)_(?:live|test|prod)_[A-Za-z0-9]{10,} whsec_[A-Za-z0-9+/=]{24,} SG\.[\w-]{16,}\.[\w-]{16,}
        key-[a-f0-9]{32} [a-f0-9]{32}-us\d{1,2}(?!\d) (?:SK|AC)[a-f0-9]{32}(?![A-Za-z0-9])
        xkeysib-[a-f0-9]{64}-[A-Za-z0-9]{16} xox[abeprs]-[A-Za-z0-9-]{10,}
        xox[os]-\d[\d-]{8,}-[a-f0-9]{20,} xoxe\.xox[bp]-\d-[A-Za-z0-9]{100,}
        xapp-\d-[A-Za-z0-9-]{20,} [MNO][\w-]{23,25}\.[\w-]{6}\.[\w-]{27,38} \d{8,10}:AA[\w-]{33}
        PMAK-[a-f0-9]{24}-[a-f0-9]{34} shp(?:at|ca|pa|ss)_[A-Za-z0-9]{32,} sq0(?:atp|csp)-[\w-]{22,43} EAAA[\w-]{56,}
        EAA[A-Za-z0-9]{80,} FLW(?:SECK|PUBK)(?:_TEST)?-[A-Za-z0-9]{12,}(?:-X)? EZ[AT]K[A-Za-z0-9]{54}
        shippo_(?:live|test)_[a-fA-F0-9]{40} access-(?:sandbox|development|production)-[a-f0-9-]{36}
        duffel_(?:live|test)_[\w=-]{43}
    """,
    "tools": r"""
        lin_api_[A-Za-z0-9]{40} secret_[A-Za-z0-9]{43} ntn_[A-Za-z0-9]{40,} fig[dour]{1,2}_[\w-]{40,}
        pat[A-Za-z0-9]{14}\.[a-f0-9]{64} gl(?:sa|c)_[A-Za-z0-9_+/=]{32,} NR(?:AK|II|JS|IQ)-[A-Za-z0-9-]{19,}
        dt0[a-z]\d\d\.[A-Z0-9]{24}\.[A-Z0-9]{64} sl\.[\w=-]{100,} ico-[A-Za-z0-9]{32} CFPAT-[\w-]{43} rdme_[a-z0-9]{70}
        s-s4t2(?:ud|af)-[a-f0-9]{64} \d{15,16}\|[\w-]{27,40}
        tk-us-[\w-]{48} sm_(?:aat|pat|sat)_[A-Za-z0-9]{16,} fio-u-[\w=-]{64} aio_[A-Za-z0-9]{28}
        dnkey-[a-z0-9=_-]{20,}
        snyk_[a-z]+\.[\w.-]{20,} phc_[A-Za-z0-9]{40,} ops_eyJ[A-Za-z0-9+/=]{100,} AGE-SECRET-KEY-1[A-Z0-9]{58}
        A3-[A-Z0-9]{6}-[A-Z0-9-]{29,34} (?:pk|sk|tk)\.eyJ[\w-]{20,}\.[\w-]{20,}
        eyJ[\w-]{10,}\.eyJ[\w-]{10,}(?:\.[\w-]*)? eyJrIjoi[A-Za-z0-9+/=]{60,} AQVN[\w-]{35,38} y[0-3]_[\w-]{55,}
    """,
}
"""Issuers -> the forms of their keys (regular expressions, parted by white space)."""
TOKEN = r"(?<![A-Za-z0-9])(?:" + "|".join(" ".join(_MARKS.values()).split()) + r")"
WEBHOOK = (
    r"https?://hooks\.slack\.com/(?P<value>(?:services|workflows|triggers)/[\w+/]{20,})"
    r"|https://(?:\w+\.)?discord(?:app)?\.com/api/(?P<value2>webhooks/\d{10,}/[\w-]{40,})"
)
IN_URL = r"(?i)\b[a-z][a-z0-9+.-]{0,20}://[^\s/:@]{0,100}:(?P<value>[^\s/@\[<{$][^\s/@]{2,})@"

_SAYS = r"""["'\]]{0,2}\s{0,3}(?::=|=>|==?|[:：＝]|\bis\b|\bwas\b|是|为)[ \t]{0,3}["'`]{0,2}"""
_FIRST, _MORE = r"[A-Za-z0-9+/_!@#$^&*.~-]", r"[!#-&(-+.-:<-Z^-_a-z|~\\\-]"
PASSWORD = (
    rf"(?i)(?:passw(?:or)?ds?|passphrase|passcode|passwd|(?<![a-z])(?:pass|pwd|pw)|密码|口令|暗号){_SAYS}"
    rf"(?P<value>{_FIRST}{_MORE}{{3,199}})"
)
KEY = (
    r"(?i)(?:(?:api|access|secret|private|auth|app|client|encryption|signing|account|session|refresh|shared|storage"
    r"|service|master|consumer|webhook|deploy|license|subscription|bearer|oauth|instrumentation)[ _.-]{0,2}"
    r"(?:access[ _.-]?)?(?:key|token|secret)(?:[ _.-]?(?:id|base))?|secret|token|credentials?"
    r"|sharedaccesskey|密钥|秘钥|令牌)"
    rf"{_SAYS}(?:(?:bearer|basic|token)\s+)?(?P<value>{_FIRST}{_MORE}{{7,399}})"
)
HEADER = (
    r"(?i)(?:\b(?:bearer|basic)\s{1,3}|\bauthorization[\"']?[:=] {0,2}[\"']?(?:[\w-]{1,20} )?)"
    r"(?P<value>[A-Za-z0-9+/=_.~-]{16,})"
)
CURL = r"(?<![\w-])(?:-u|--user)[ =]?[\"']?[^\s\"':]{1,60}:(?P<value>[^\s\"':$<{\[][^\s\"']{3,})"
FLAG = (
    r"(?i)(?<![\w-])--?(?:password|passwd|pass|token|secret|api-?key|auth)(?:=|\s{1,3})[\"']?"
    r"(?P<value>[^\s\"'\[<{$-][^\s\"']{4,})"
)

_FILLER = re.compile(
    r"(?i)^[$][A-Z_({]|^%\w+%$|[<>{}]|x{5,}|\*{3,}|\.{3,}|^(?:your|my|the|some|an?|no|not)[ _-]|changeme|redacted"
    r"|^null|^none|^undefined|^os\.|^env|^process|^self\.|^config|^settings|^params|^request|getenv|\(\)?$|^[a-z_][\w.]*\("
)
_MASKED = re.compile(r"(?i)x{6,}|\*{4,}|#{4,}")
_EXAMPLE = re.compile(
    r"(?i)(?:your|my|the|some|replace|with|_|-)*(?:pass(?:word|wd)?|pwd|secret|token)|[x*.]+|%s|\w*[<>{}]\w*"
)
ENTROPY = 2.8
"""Bits a character from which a value after a key word is taken for a secret: English words lie at 2.0 to 2.8."""


def entropy(text: str) -> float:
    """Shannon entropy of the characters, in bits each."""
    return -sum(n / len(text) * math.log2(n / len(text)) for n in Counter(text).values())


def token_holds(value: str) -> bool:
    """Not words joined by hyphens (sk-fading-circle-indicator), not a mark followed by a row of X."""
    return any(char.isdigit() or char.isupper() for char in value) and not _MASKED.search(value)


def url_password_holds(value: str) -> bool:
    """Not the word password itself, as in examples of addresses."""
    return not _EXAMPLE.fullmatch(value)


def key_holds(value: str) -> bool:
    """A value after a key word that looks drawn, not written: letters and digits, many different ones."""
    if _FILLER.search(value) or re.fullmatch(r"[\d.,:/-]+|[A-Za-z_.-]+", value):
        return bool(re.fullmatch(r"[A-Za-z]{16,}", value)) and _mixed(value) and entropy(value) >= 3.5
    return entropy(value) >= ENTROPY


def password_holds(value: str) -> bool:
    """A value after the word password that is no plain word: passwords need not look drawn."""
    if _FILLER.search(value):
        return False
    return not re.fullmatch(r"[A-Za-z]?[a-z]+[.:]?|[A-Z]+[.:]?|[A-Za-z_.]+\(?|\d{1,3}[.:]?", value)


def _mixed(value: str) -> bool:
    turns = sum(a.islower() != b.islower() for a, b in pairwise(value))
    return turns > len(value) / 4
