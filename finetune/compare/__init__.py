"""`finetune compare RUN RUN ...`: what differs between runs, what came of it, and how sure that is."""

import argparse
import json
import sys
from pathlib import Path

from finetune.errors import RecipeError


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="a work folder, an offline W&B run (folder or .wandb file), or "
        "entity/project/run; the others are compared with the first",
    )  # fmt: skip
    parser.add_argument("--html", type=Path, metavar="FILE", help="write one self-contained page")
    parser.add_argument("--json", action="store_true", help="print the same facts as JSON")


def run(chosen: argparse.Namespace) -> int:
    """Print the comparison, or write it as a page; raises RecipeError for what cannot be read."""
    from finetune.artifacts import explained, write_whole
    from finetune.compare import page, terminal
    from finetune.compare.differences import compare
    from finetune.compare.reading import read

    if len(chosen.runs) < 2:
        raise RecipeError.one("finetune compare", chosen.runs[0], "is one run", "name two or more")
    found = compare([read(name) for name in chosen.runs])
    if chosen.html is not None:
        with explained(chosen.html.parent):
            write_whole(chosen.html, page.render(found))
        print(f"page: {chosen.html}", file=sys.stderr)
    if chosen.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        terminal.show(found, sys.stdout)
    return 0
