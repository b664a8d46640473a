"""A bundle as its receiver meets it: any change is found and named, and it checks itself without this repository."""

import json
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from test_handoff import bundle, made  # noqa: F401 - the bundle that HANDOFF really makes

from finetune import signing
from finetune.cli import main
from finetune.errors import RecipeError
from finetune.findings import Finding
from finetune.verify import bundle as rules
from finetune.verify import standalone, verify

PACKAGE = Path(standalone.__file__).parents[1]


def quiet(_: str) -> None:
    pass


def found(directory: Path, **options: Any) -> list[Finding]:
    return list(verify(directory, say=quiet, **options))


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> tuple[Path, Path]:
    return signing.keygen(tmp_path_factory.mktemp("keys"), demo=True)


@pytest.fixture(scope="module")
def signed(bundle, keys, tmp_path_factory) -> Path:  # noqa: F811
    """A signed copy, which tests spoil and mend again; `fresh` gives copies of their own."""
    folder = tmp_path_factory.mktemp("signed") / "bundle"
    shutil.copytree(bundle, folder)
    signing.sign(folder, keys[0])
    assert found(folder, key=keys[1]) == []
    return folder


@pytest.fixture
def fresh(signed, tmp_path) -> Path:
    return Path(shutil.copytree(signed, tmp_path / "bundle"))


def files_of(directory: Path) -> list[Path]:
    return [path for path in sorted(directory.rglob("*")) if path.is_file()]


def test_one_byte_changed_anywhere_is_found_and_named(signed, keys):
    """Every file, SHA256SUMS, model.sig and the verifier included: its first, middle and last byte."""
    for path in files_of(signed):
        content = path.read_bytes()
        for place in {0, len(content) // 2, len(content) - 1} if content else ():
            path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            hits = [finding for finding in found(signed, key=keys[1]) if finding.path.startswith(str(path))]
            assert hits, f"{path.name}: byte {place} of {len(content)}"
        path.write_bytes(content)
    assert found(signed, key=keys[1]) == []


def test_without_signature_and_key_too_one_byte_changed_in_any_file_is_found_and_named(fresh):
    (fresh / "model.sig").unlink()
    for path in files_of(fresh):
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert any(finding.path.startswith(str(path)) for finding in found(fresh, deep=True)), path
        path.write_bytes(content)


def test_every_byte_of_the_list_of_sums_counts(fresh):
    file = fresh / "SHA256SUMS"
    content = b"".join(file.read_bytes().splitlines(keepends=True)[:3])
    file.write_bytes(content)
    listed, problems = rules.read_sums(file)
    assert (problems, len(listed)) == ([], 3)
    for place in range(len(content)):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        changed, problems = rules.read_sums(file)
        assert problems or changed != listed, f"byte {place}"


def test_each_file_that_is_removed_is_named(signed, keys):
    for path in files_of(signed):
        kept = path.rename(signed.parent / "kept")
        named = {finding.path for finding in found(signed, key=keys[1])}
        assert any(name.startswith(str(path)) or name == str(path.parent) for name in named), path
        kept.rename(path)


def _link_in_place(bundle: Path) -> None:  # noqa: F811
    (bundle / "REPORT.md").rename(bundle.parent / "REPORT.md")
    (bundle / "REPORT.md").symlink_to(bundle.parent / "REPORT.md")


PLANTED = {
    "a file": (lambda b: (b / "extra.txt").write_text("x"), "unlisted-file"),
    "a hidden file": (lambda b: (b / "model/.x").write_text("x"), "unlisted-file"),
    "an empty folder": (lambda b: (b / "model/x").mkdir(), "unlisted-file"),
    "a pickle": (lambda b: (b / "adapter/optimizer.pt").write_text("x"), "pickle"),
    "an array file": (lambda b: (b / "x.npy").write_text("x"), "pickle"),
    "a link": (lambda b: (b / "link").symlink_to("/etc/hostname"), "link"),
    "a link in place of a file": (_link_in_place, "link"),
    "a link to a folder": (lambda b: (b / "more").symlink_to("/etc"), "link"),
    "a pipe": (lambda b: os.mkfifo(b / "pipe"), "special-file"),
    "a file for its owner only": (lambda b: (b / "README.md").chmod(0o600), "private-file"),
    "a folder for its owner only": (lambda b: (b / "adapter").chmod(0o700), "private-file"),
    "a file that anybody may change": (lambda b: (b / "README.md").chmod(0o666), "open-mode"),
    "a folder that anybody may fill": (lambda b: (b / "adapter").chmod(0o777), "open-mode"),
    "a program of another user": (lambda b: (b / "README.md").chmod(0o4755), "open-mode"),
    "a paper that runs": (lambda b: (b / "README.md").chmod(0o755), "runnable-file"),
    "no paper": (lambda b: (b / "lineage.json").unlink(), "missing-paper"),
    "no model config": (lambda b: (b / "model/config.json").unlink(), "model-file"),
    "no licence": (lambda b: next((b / "LICENSES").iterdir()).unlink(), "missing-file"),
    "an adapter that is none": (
        lambda b: (b / "adapter/adapter_model.safetensors").write_text("x"), "adapter-unreadable"),
    "an adapter without config": (lambda b: (b / "adapter/adapter_config.json").unlink(), "adapter-unreadable"),
    "an adapter saved ungathered": (
        lambda b: (b / "adapter/adapter_model.safetensors").write_bytes(
            (80).to_bytes(8, "little") + b'{"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}'.ljust(80)),
        "adapter-empty"),
    "an adapter whose places are no whole numbers": (
        lambda b: (b / "adapter/adapter_model.safetensors").write_bytes(
            (80).to_bytes(8, "little") + b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0.0, 4.0]}}'.ljust(80)
            + b"1234"),
        "adapter-unreadable"),
    "a thousand million layers": (
        lambda b: (b / "model/config.json").write_text(
            (b / "model/config.json").read_text().replace('"num_hidden_layers": ', '"num_hidden_layers": 100000000')),
        "missing-tensor"),
    "a path of this machine": (
        lambda b: (b / "adapter/adapter_config.json").write_text('{"base_model_name_or_path": "/me"}'), "local-path"),
    "sums in another order": (
        lambda b: (b / "SHA256SUMS").write_text("".join(reversed((b / "SHA256SUMS").read_text().splitlines(True)))),
        "sums-format"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "rule"), PLANTED.values(), ids=PLANTED.keys())
def test_what_was_planted_or_taken_is_named_without_reading_the_weights(fresh, spoil, rule):
    spoil(fresh)
    assert rule in {finding.name for finding in found(fresh)}


def test_a_changed_byte_of_the_weights_is_named_by_the_sums_and_by_the_signature(fresh, keys):
    file = fresh / "model/model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert found(fresh) == []
    assert {finding.name for finding in found(fresh, key=keys[1])} == {"changed-bytes", "signature-bytes"}


def test_a_quantised_sibling_is_checked_like_the_model(fresh):
    shutil.copytree(fresh / "model", fresh / "model-w4a16")
    _config(fresh, tie_word_embeddings=False, folder="model-w4a16")
    (finding,) = [one for one in found(fresh) if one.name == "tie-flag"]
    assert finding.path.startswith(str(fresh / "model-w4a16"))


def test_a_link_is_no_way_out_of_a_bundle_neither_for_reading_nor_for_signing(fresh, keys):
    (fresh / "way-out").symlink_to("/proc/self/mem")
    assert "link" in {finding.name for finding in found(fresh, deep=True)}
    with pytest.raises(RecipeError, match="link"):
        signing.sign(fresh, keys[0])


def test_the_official_verifier_accepts_the_whole_bundle(signed, keys):
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(signed)]
    command += ["--signature", str(signed / "model.sig"), "--public_key", str(keys[1])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_bundle_that_another_key_signed_is_refused(fresh, keys, tmp_path, capsys):
    stranger, _ = signing.keygen(tmp_path / "stranger")
    signing.sign(fresh, stranger)
    assert main(["verify", str(fresh), "--key", str(keys[1])]) == 2
    assert "[signature-key]" in capsys.readouterr().err


def test_the_command_says_what_it_does_not_prove(fresh, keys, capsys):
    assert main(["verify", str(fresh)]) == 0
    told = capsys.readouterr().out
    assert "integrity only, the origin is unproven" in told
    assert "add --deep" in told
    assert "demo key" in told
    assert main(["verify", str(fresh), "--key", str(keys[1])]) == 0
    told = capsys.readouterr().out
    assert "unproven" not in told
    assert "signed by the key in" in told
    assert "GB read" in told


def test_findings_as_json_name_rule_path_reason_and_cure(fresh, capsys):
    (fresh / "extra.txt").write_text("x")
    assert main(["verify", str(fresh), "--json"]) == 2
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is False
    assert {"rule": "unlisted-file", "path": str(fresh / "extra.txt"), "value": None, "fix": "remove it",
            "why": "not listed in SHA256SUMS: it came after the bundle"} in answer["findings"]  # fmt: skip


# The verifier inside the bundle.


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    """A Python of its own with no package at all, not even pip."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    return folder


@pytest.fixture(scope="module")
def named_packages(bare, tmp_path_factory) -> Path:
    """The packages that the verifier names, and what they need, alone in a folder."""
    import cffi
    import cryptography
    import jinja2
    import markupsafe

    folder = tmp_path_factory.mktemp("packages")
    for module in (cryptography, jinja2, markupsafe, cffi):
        source = Path(str(module.__file__)).parent
        (folder / source.name).symlink_to(source)
    for path in Path(str(cffi.__file__)).parents[1].glob("_cffi_backend*"):
        (folder / path.name).symlink_to(path)
    return folder


def alone(bare: Path, bundle: Path, *words: object, packages: Path | None = None, **more: Any):  # noqa: F811
    """Run the bundle's own verifier, isolated from this repository: no path, no environment, another folder."""
    script = f"import runpy, sys; sys.argv = ['verify.pyz', *{[str(word) for word in words]!r}]; "
    script += f"sys.argv[0] = {str(bundle / 'verify.pyz')!r}; "
    script += f"sys.path.append({str(packages)!r}); " if packages else ""
    script += f"runpy.run_path({str(bundle / 'verify.pyz')!r}, run_name='__main__')"
    command = [str(bare / "bin/python"), "-I", "-B", *more.get("flags", []), "-c", script]
    return subprocess.run(command, cwd="/", env={}, capture_output=True, text=True, check=False)


def test_the_verifier_in_the_bundle_is_this_code_byte_for_byte_and_the_same_in_every_bundle(signed, tmp_path):
    assert standalone.write(tmp_path).read_bytes() == (signed / "verify.pyz").read_bytes()
    with zipfile.ZipFile(signed / "verify.pyz") as archive:
        inside = {name: archive.read(name) for name in archive.namelist()}
        assert all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
    del inside["__main__.py"]
    assert inside == {f"finetune/{part}": (PACKAGE / part).read_bytes() for part in standalone.PARTS}
    own = {str(path.relative_to(PACKAGE)) for path in (PACKAGE / "verify").glob("*.py")} - {"verify/standalone.py"}
    assert own <= set(standalone.PARTS)


def test_it_runs_by_its_name_on_the_bundle_it_lies_in(bare, signed):
    command = [str(bare / "bin/python"), "-I", str(signed / "verify.pyz")]
    done = subprocess.run(command, cwd="/", env={}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{signed.resolve()}: nothing wrong found" in done.stdout


SPOILT = {
    "nothing": lambda b: None,
    "a byte": lambda b: (b / "config.yaml").write_text("x"),
    "the tie flag": lambda b: _config(b, tie_word_embeddings=False),
    "two ropes": lambda b: _config(b, rope_scaling={"rope_type": "yarn", "factor": 4.0}),
    "a template": lambda b: (b / "model/chat_template.jinja").write_text("{% for %}"),
    "weights": lambda b: (b / "model/model.safetensors").write_bytes(b"x" * 100),
}


def _config(bundle: Path, *, folder: str = "model", **changes: Any) -> None:  # noqa: F811
    file = bundle / folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT.keys())
def test_with_its_packages_it_finds_what_finetune_verify_finds(bare, named_packages, fresh, keys, spoil, capsys):
    spoil(fresh)
    words = [str(fresh), "--key", str(keys[1]), "--json"]
    code = main(["verify", *words])
    ours = json.loads(capsys.readouterr().out)
    done = alone(bare, fresh, *words, packages=named_packages)
    assert json.loads(done.stdout) == ours, done.stderr
    assert done.returncode == code


def test_with_no_package_at_all_it_says_what_it_did_not_check(bare, fresh, keys):
    (fresh / "model/chat_template.jinja").write_text("{% for %}")
    (fresh / "config.yaml").write_text("x")
    done = alone(bare, fresh, "--deep", "--json")
    answer = json.loads(done.stdout)
    assert {finding["rule"] for finding in answer["findings"]} == {"changed-bytes", "signature-bytes"}
    assert any("jinja2" in note for note in answer["notes"])
    done = alone(bare, fresh, "--key", keys[1])
    assert done.returncode == 2
    assert "cryptography" in done.stderr
    assert "[signature-unchecked]" in done.stderr


def test_it_loads_nothing_that_could_reach_a_network_and_writes_nothing(bare, named_packages, fresh, keys):
    before = {path: path.stat().st_mtime_ns for path in fresh.rglob("*")}
    done = alone(bare, fresh, "--key", keys[1], packages=named_packages, flags=["-X", "importtime"])
    assert done.returncode == 0, done.stderr[-2000:]
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "finetune.verify.model" in loaded
    assert not loaded & {"_socket", "socket", "ssl", "_ssl", "http.client", "urllib.request", "subprocess", "ctypes"}
    assert {path: path.stat().st_mtime_ns for path in fresh.rglob("*")} == before


def test_the_verifier_names_its_packages_and_where_to_turn(bare, signed):
    done = alone(bare, signed, "--help")
    assert done.returncode == 0
    text = " ".join(done.stdout.split())
    assert "jinja2" in text
    assert "cryptography" in text
    assert "no network" in text


def test_the_verifier_may_be_run_and_changed_by_its_owner_only(signed):
    assert stat.S_IMODE((signed / "verify.pyz").stat().st_mode) in (0o644, 0o755)
