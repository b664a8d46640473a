"""verify.pyz: these very checks as one file that a bundle carries, for a machine that has Python and nothing else.

A zip application and not one long text, because its modules are ours byte for byte: what is tested here is what runs
there. They are stored uncompressed, so that a pager and grep read them, and `python -m zipfile -e` takes them out.
"""

import zipfile
from pathlib import Path

NAME = "verify.pyz"
PARTS = (
    "__init__.py", "errors.py", "findings.py", "shards.py", "signing.py", "template.py", "verify/__init__.py",
    "verify/bundle.py", "verify/command.py", "verify/model.py", "verify/quantised.py", "verify/reading.py",
    "verify/settings.py", "verify/text.py", "verify/weights.py",
)  # fmt: skip
_START = '''"""Checks the bundle that this file lies in: python3 verify.pyz [FOLDER] [--deep] [--key PUB] [--json]"""

import sys

if sys.version_info < (3, 11):
    sys.exit("verify.pyz: needs Python 3.11 or newer")

from pathlib import Path

from finetune.verify.command import main

sys.exit(main(here=Path(sys.argv[0]).resolve().parent))
'''


def write(folder: Path) -> Path:
    """Write `verify.pyz` into `folder`; the same bytes for every bundle that this version makes."""
    file = folder / NAME
    sources = Path(__file__).resolve().parents[1]
    with file.open("wb") as handle:
        handle.write(b"#!/usr/bin/env python3\n")
        with zipfile.ZipFile(handle, "w", zipfile.ZIP_STORED) as archive:
            _add(archive, "__main__.py", _START.encode())
            for part in PARTS:
                _add(archive, f"finetune/{part}", (sources / part).read_bytes())
    file.chmod(0o755)
    return file


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """With one date for all, so that equal sources give equal files."""
    entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    entry.external_attr = 0o644 << 16
    archive.writestr(entry, content)
