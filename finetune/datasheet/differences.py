"""Where two texts differ: words of an alphabet, single characters of Chinese, Japanese and Korean."""

import difflib
import re

Piece = tuple[str, bool]
"""(text, whether the other side lacks it)"""

_CJK = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_TOKEN = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+|\s+|.", re.DOTALL)
_WINDOW = 60


def differing(before: str, after: str) -> tuple[list[Piece], list[Piece]]:
    """Both texts in pieces, equal and differing ones in turn; joined again they are the texts themselves."""
    one, other = _TOKEN.findall(before), _TOKEN.findall(after)
    left: list[Piece] = []
    right: list[Piece] = []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, one, other, autojunk=False).get_opcodes():
        for side, tokens in ((left, one[a:b]), (right, other[c:d])):
            if tokens:
                side.append(("".join(tokens), kind != "equal"))
    return left, right


def around(pieces: list[Piece]) -> list[Piece]:
    """The pieces with long equal passages cut short: what differs, and 60 characters on each side of it."""
    shown: list[Piece] = []
    for index, (text, differs) in enumerate(pieces):
        first, last = index == 0, index == len(pieces) - 1
        if differs or len(text) <= 2 * _WINDOW + 20 or (first and last):
            shown.append((text, differs))
        elif first:
            shown.append((f"… {text[-_WINDOW:]}", False))
        elif last:
            shown.append((f"{text[:_WINDOW]} …", False))
        else:
            shown.append((f"{text[:_WINDOW]} … {text[-_WINDOW:]}", False))
    return shown
