"""`finetune verify` and the verifier inside a bundle: the same words, the same answers."""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from finetune.errors import RecipeError
from finetune.findings import printable
from finetune.verify import examine


def options(parser: argparse.ArgumentParser) -> None:
    """What both commands can be told, beside the folder."""
    parser.add_argument("--deep", action="store_true", help="read every byte: hashes, finite values; with progress")
    parser.add_argument("--key", type=Path, metavar="PUB", help="the public key you trust: signature too, and --deep")
    parser.add_argument("--json", action="store_true", help="findings and notes as JSON on standard output")


def run(chosen: argparse.Namespace) -> int:
    """0 when nothing wrong was found; otherwise 2, and every finding with the name of its rule."""
    say = partial(print, file=sys.stderr if chosen.json else sys.stdout, flush=True)
    directory: Path = chosen.directory
    try:
        findings, notes = examine(directory, deep=chosen.deep, key=chosen.key, say=say)
    except OSError as error:
        rule = f"it cannot be read ({error.strerror})"
        raise RecipeError.one(str(error.filename or directory), None, rule, "read it as a user who may") from error
    if chosen.json:
        answer = {"directory": str(directory), "ok": not findings, "findings": [one.to_json() for one in findings],
                  "notes": notes}  # fmt: skip
        print(json.dumps(answer, indent=1, ensure_ascii=False))
        return 2 if findings else 0
    for note in notes:
        say(f"verify: {printable(note)}")
    if findings:
        raise RecipeError(findings)
    say(f"{directory}: nothing wrong found")
    return 0


def main(words: Sequence[str] | None = None, *, here: Path) -> int:
    """The verifier that travels inside the bundle `here`."""
    parser = argparse.ArgumentParser(
        prog="verify.pyz",
        description="Checks the bundle it lies in, or another folder, as `finetune verify` does. Python 3.11 or newer; "
        "the package jinja2 to render the chat template, the package cryptography for --key; nothing else, no network.",
        epilog="It came with what it judges: to trust it more than the bundle, take it from another place, or check "
        "the signature with `model_signing verify key`.",
    )
    parser.add_argument("directory", type=Path, nargs="?", default=here, help="a bundle or a model directory")
    options(parser)
    try:
        return run(parser.parse_args(words))
    except RecipeError as error:
        print(error, file=sys.stderr)
        return 2
