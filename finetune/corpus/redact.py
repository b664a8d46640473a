"""Personal data and secrets become placeholders, `[EMAIL_1]`, as the recipe's policy says for each kind.

Scope `row` (the default): equal values of a row share a placeholder and numbers start anew in each row, so that rows
cannot be linked through them and the result does not depend on which other rows are there. Scopes `document` and
`corpus`: the number is a keyed hash of the value (and of the file), so that equal values share a placeholder in all
rows of a file or of the corpus, whatever the order or number of rows. Such rows can be linked to one another: that
is what the scopes are for, and their risk. Who has the key can also test a guessed value.
"""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import count
from typing import Any

from finetune.config.prepare import Redact
from finetune.corpus.personal.recognisers import PLACEHOLDER, RECOGNISERS, Finding, find_personal
from finetune.corpus.tables import OURS, Row
from finetune.errors import Problem, RecipeError

__all__ = [
    "RECOGNISERS", "drops", "find_personal", "hide_files", "hide_paths", "hide_words",
    "missing_key", "redact_key", "redact_row", "redact_texts",
]  # fmt: skip

KEY_VARIABLE = "FINETUNE_REDACT_KEY"
_KEY = re.compile("[0-9a-fA-F]{64}")
_FINGERPRINT = f'printf %s "${KEY_VARIABLE}" | sha256sum'
_DIGITS = 12
"""Of a keyed placeholder: among 100,000 different values two share one in one corpus of 200."""
_PATHS = ("path", "hub", "files", "file")
"""Keys of a source and of a glossary that hold them."""
_TYPED = ("sources", "prepare.repair")
_EXACT = ("secret", "name", "address")
Naming = Callable[[str, str], str]
"""(kind, value) -> placeholder."""


def redact_texts(
    texts: Sequence[str], kinds: Iterable[str], *, labels: Sequence[str] = (), naming: Naming | None = None
) -> tuple[list[str], Counter[str]]:
    """The texts of one row with placeholders, and how many values of each kind were replaced.

    labels[i] is the name of the column or key that texts[i] stands under: `password` tells what the text is.
    """
    kinds = frozenset(kinds)
    naming = naming or _numbered(texts)
    counts: Counter[str] = Counter()
    redacted = []
    for at, text in enumerate(texts):
        label = labels[at] if labels else ""
        # Replacing one value may bare the edge of the next, so that it is looked at again until nothing is left.
        while findings := find_personal(text, kinds, label):
            counts.update(finding.kind for finding in findings)
            text = _replaced(text, findings, naming)
        redacted.append(text)
    return redacted, counts


def redact_row(
    row: Row, settings: Redact, nested: Collection[str] = (), only: Collection[str] | None = None
) -> tuple[Row, Counter[str]]:
    """Every column but our own with placeholders; of `nested` ones (JSON) what stands inside, keys too.

    `only`: the columns that are looked at, where the others were before; new numbers start above theirs.
    """
    names = [name for name in row if name not in OURS and (only is None or name in only)]
    labels, texts = [], []
    parsed = {name: json.loads(row[name]) for name in names if name in nested}
    for name in names:
        for label, text in _leaves(name, parsed[name]) if name in nested else [(name, row[name])]:
            labels.append(label)
            texts.append(text)
    if settings.scope == "row":
        naming = _numbered(texts if only is None else [*row.values()])
    else:
        naming = _keyed(settings, row["_file"] if settings.scope == "document" else "")
    redacted, counts = redact_texts(texts, settings.kinds, labels=labels, naming=naming)
    rest = iter(redacted)
    changed = {name: _dumped(_with_leaves(parsed[name], rest)) if name in nested else next(rest) for name in names}
    return {**row, **changed}, counts


def drops(counts: Counter[str], settings: Redact) -> str | None:
    """The first kind found in a row that the policy does not let be trained on even as a placeholder, else None."""
    return next((kind for kind in sorted(counts) if getattr(settings, kind) == "drop_row"), None)


def redact_key(key: str, settings: Redact, seed: int, columns: Mapping[str, str] | None = None) -> str:
    """An id, group or file name without personal data that still tells two of them apart: a hash takes its place.

    `columns` is the row as it was read: a number that only its column's name tells from others is found through it.
    Keyed by the recipe's key where it has one. By the seed alone, who knows the recipe can test guessed values: rows
    whose ids hold numbers that can be counted through (SSN, mobile) want the key, or another column as id.
    """

    def name(kind: str, value: str) -> str:
        secret = _secret(settings.key_sha256) if settings.key_sha256 else f"{seed}".encode()
        # The value as it is written, not its one form: two ids that differ in capitals are two.
        digest = hashlib.blake2b(value.encode(), digest_size=6, key=secret).hexdigest()
        return f"[{kind.upper()}:{digest}]"

    for label, value in (columns or {}).items():
        if value and value in key and label not in OURS:
            key = key.replace(value, _replaced(value, find_personal(value, settings.kinds, label), name))
    return _replaced(key, find_personal(key, settings.kinds), name)


def hide_files(files: Mapping[str, Mapping[str, str]], settings: Redact, seed: int) -> dict[str, dict[str, str]]:
    """Source -> file -> sha256, the files with names as the rows have them."""
    return {name: {redact_key(file, settings, seed): found[file] for file in found} for name, found in files.items()}


def hide_paths(shown: Mapping[str, Any]) -> dict[str, Any]:
    """A dumped recipe whose paths of files hold no personal data: a hash takes its place, as in the rows."""
    settings = Redact.model_validate(shown["prepare"]["redact"])

    def hidden(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: hidden(one) if name in _PATHS else one for name, one in value.items()}
        if isinstance(value, list):
            return [hidden(one) for one in value]
        return redact_key(value, settings, shown["seed"]) if isinstance(value, str) else value

    prepare, texts = shown["prepare"], shown.get("handoff", {}).get("licence_files", {})
    repair = {**prepare["repair"], "glossary": hidden(prepare["repair"]["glossary"])}
    found = {
        **shown, "prepare": {**prepare, "repair": repair},
        "sources": {name: hidden(source) for name, source in shown["sources"].items()},
    }  # fmt: skip
    if texts:
        found["handoff"] = {**shown["handoff"], "licence_files": {name: hidden(text) for name, text in texts.items()}}
    return found


def hide_words(words: Iterable[str], settings: Redact, seed: int) -> list[str]:
    """What was typed, the same way."""
    return [redact_key(word, settings, seed) if word.lstrip("+~").startswith(_TYPED) else word for word in words]


def canonical(kind: str, value: str) -> str:
    """One form for a value however it was written: `+86 138-1234-5678` and `13812345678` are one number."""
    if kind in _EXACT:
        return value
    if kind in ("email", "ip"):
        return value.casefold()
    plain = re.sub(r"[^0-9A-Za-z]", "", value).upper()
    return plain[-11:] if kind == "cn_mobile" else plain


def _replaced(text: str, findings: Sequence[Finding], naming: Naming) -> str:
    pieces, at = [], 0
    for finding in findings:
        pieces += [text[at : finding.start], naming(finding.kind, text[finding.start : finding.end])]
        at = finding.end
    return "".join([*pieces, text[at:]])


def _numbered(texts: Sequence[str]) -> Naming:
    """Numbers in order of appearance. Texts that already hold placeholders keep them: new numbers start above."""
    numbers: dict[tuple[str, str], int] = {}
    last: Counter[str] = Counter()
    for text in texts:
        for kind, number in PLACEHOLDER.findall(text):
            last[kind.lower()] = max(last[kind.lower()], int(number))

    def name(kind: str, value: str) -> str:
        known = (kind, canonical(kind, value))
        if known not in numbers:
            last[kind] += 1
            numbers[known] = last[kind]
        return f"[{kind.upper()}_{numbers[known]}]"

    return name


def _keyed(settings: Redact, document: str) -> Naming:
    assert settings.key_sha256 is not None, "the section asks for a key"
    secret = _secret(settings.key_sha256)

    def name(kind: str, value: str) -> str:
        said = "\0".join([document, kind, canonical(kind, value)])
        number = int.from_bytes(hashlib.blake2b(said.encode(), key=secret).digest()) % 10**_DIGITS
        return f"[{kind.upper()}_{number:0{_DIGITS}d}]"

    return name


def missing_key(settings: Redact, environment: Mapping[str, str] = os.environ) -> Problem | None:
    """What is wrong with the key that the recipe names by its sha256; None where it is there, or none is asked for."""
    wanted, given = settings.key_sha256, environment.get(KEY_VARIABLE, "")
    if wanted is None or (_KEY.fullmatch(given) and hashlib.sha256(given.encode()).hexdigest() == wanted):
        return None
    path, fix = "prepare.redact.key_sha256", f"export {KEY_VARIABLE}=... with the key whose sha256 the recipe names"
    if not given:
        return Problem(path, wanted, f"{KEY_VARIABLE} is not set", fix)
    if given == wanted:
        fix = f"make another key (openssl rand -hex 32) and name the sha256 of it: {_FINGERPRINT}"
        return Problem(path, None, "is the key itself, which nobody but its owner may read", fix)
    if not _KEY.fullmatch(given):
        rule = f"{KEY_VARIABLE} holds {len(given)} characters and not the 64 hex digits of a key"
        return Problem(path, wanted, rule, f"{fix}; a new one is made by: openssl rand -hex 32")
    return Problem(path, wanted, f"{KEY_VARIABLE} is another key", f"{fix}; that of the one given: {_FINGERPRINT}")


@lru_cache
def _secret(fingerprint: str) -> bytes:
    """The key from the environment, 64 bytes. The recipe holds its fingerprint only: no output holds the key."""
    if problem := missing_key(Redact(key_sha256=fingerprint)):
        raise RecipeError([problem])
    return hashlib.sha512(os.environ[KEY_VARIABLE].encode()).digest()


def _leaves(label: str, value: Any) -> Iterator[tuple[str, str]]:
    """(nearest key, text) of everything in a JSON value that can hold personal data: keys, strings and numbers."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield "", key
            yield from _leaves(key, inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(label, inner)
    elif isinstance(value, str):
        yield label, value
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield label, json.dumps(value)


def _with_leaves(value: Any, changed: Iterator[str]) -> Any:
    """The JSON value with its keys, strings and numbers replaced, in the order of `_leaves`."""
    if isinstance(value, dict):
        known: dict[str, Any] = {}
        for inner in value.values():
            key = _apart(next(changed), known)
            known[key] = _with_leaves(inner, changed)
        return known
    if isinstance(value, list):
        return [_with_leaves(inner, changed) for inner in value]
    if isinstance(value, str):
        return next(changed)
    if isinstance(value, int | float) and not isinstance(value, bool):
        text = next(changed)
        return value if text == json.dumps(value) else text
    return value


def _apart(key: str, known: Collection[str]) -> str:
    """The key, numbered where two keys became the same placeholder: the value of the first must stay."""
    if key not in known:
        return key
    return next(other for number in count(2) if (other := f"{key} ({number})") not in known)


def _dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
