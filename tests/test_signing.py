"""Signatures: the official verifier reads ours, ours reads its, and nothing else passes."""

import io
import json
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from finetune import signing
from finetune.cli import main
from finetune.errors import RecipeError


@pytest.fixture
def folder(tmp_path) -> Path:
    made = tmp_path / "bundle"
    (made / "sub").mkdir(parents=True)
    (made / "README.md").write_text("# a\n")
    (made / "sub/weights.safetensors").write_bytes(bytes(range(256)))
    return made


@pytest.fixture
def keys(tmp_path) -> tuple[Path, Path]:
    return signing.keygen(tmp_path / "keys")


def names(folder: Path, public: Path) -> list[str]:
    """The rules of signatures that `finetune verify FOLDER --key PUB` names, exit code and all."""
    said = io.StringIO()
    with redirect_stdout(said):
        code = main(["verify", str(folder), "--key", str(public), "--json"])
    found = [finding["rule"] for finding in json.loads(said.getvalue())["findings"]]
    assert code == (2 if found else 0)
    return [name for name in found if name.startswith("signature-")]


def official(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "model_signing", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_official_verifier_accepts_what_is_signed_here(folder, keys):
    private, public = keys
    file = signing.sign(folder, private)
    done = official("verify", "key", folder, "--signature", file, "--public_key", public)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "README.md").write_text("# b\n")
    assert official("verify", "key", folder, "--signature", file, "--public_key", public).returncode != 0


@pytest.mark.parametrize("curve", ["SECP256R1", "SECP384R1", "SECP521R1"])
def test_what_the_official_tool_signs_is_accepted_here(folder, tmp_path, curve):
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(getattr(ec, curve)())
    (tmp_path / "k").write_bytes(key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()))
    public = tmp_path / "k.pub"
    public.write_bytes(key.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo))
    done = official("sign", "key", folder, "--private_key", tmp_path / "k", "--signature", folder / signing.SIGNATURE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert names(folder, public) == []
    signing.sign(folder, tmp_path / "k")
    assert names(folder, public) == []


def test_one_changed_bit_anywhere_in_the_signature_is_found(folder, keys):
    private, public = keys
    file = signing.sign(folder, private)
    content = file.read_bytes()
    trusted = signing.load_public(public)
    for place in range(len(content)):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        findings, _ = signing.examine(folder, trusted, {})
        assert findings, f"byte {place}: {content[place - 20 : place + 20]!r}"
        assert str(file) in {finding.path for finding in findings}


def test_a_signing_that_was_killed_is_done_again_and_leaves_nothing_behind(folder, keys):
    private, public = keys
    signing.sign(folder, private)
    (folder / ".model.sig.writing").write_text("half")
    assert not signing.signed_with(folder, private)
    signing.sign(folder, private)
    assert names(folder, public) == []
    assert signing.signed_with(folder, private)


def test_another_spelling_of_the_same_signature_is_found(folder, keys):
    private, public = keys
    file = signing.sign(folder, private)
    text = file.read_text()
    for other in (text + "\n", text.replace(":", ": ", 1), json.dumps(json.loads(text), indent=1),
                  json.dumps(json.loads(text) | {"note": 1}, separators=(",", ":"))):  # fmt: skip
        file.write_text(other)
        assert names(folder, public) == ["signature-format"]


@pytest.mark.parametrize(
    ("spoil", "rule"),
    [
        (lambda f: (f / "README.md").write_text("# b\n"), "signature-bytes"),
        (lambda f: (f / "README.md").unlink(), "signature-absent"),
        (lambda f: (f / "sub/more").write_text(""), "signature-unlisted"),
        (lambda f: (f / ".gitattributes").write_text("x"), "signature-unlisted"),
        (lambda f: (f / "model.sig").unlink(), "signature-missing"),
        (lambda f: (f / "model.sig").write_text("[]"), "signature-format"),
    ],
)
def test_each_way_to_change_what_was_signed_is_named(folder, keys, spoil, rule):
    private, public = keys
    signing.sign(folder, private)
    assert names(folder, public) == []
    spoil(folder)
    assert names(folder, public) == [rule]


def test_a_signature_by_another_key_is_refused_also_when_it_borrows_the_name_of_the_trusted_one(folder, keys, tmp_path):
    private, public = keys
    stranger, _ = signing.keygen(tmp_path / "stranger")
    mine = json.loads(signing.sign(folder, private).read_text())
    file = signing.sign(folder, stranger)
    assert names(folder, public) == ["signature-key"]
    theirs = json.loads(file.read_text()) | {"verificationMaterial": mine["verificationMaterial"]}
    file.write_text(json.dumps(theirs, separators=(",", ":")))
    assert names(folder, public) == ["signature-invalid"]


def test_without_a_trusted_key_the_files_are_compared_and_the_origin_is_said_to_be_unproven(folder, keys):
    digests = {"README.md": "0" * 64}
    findings, notes = signing.examine(folder, None, {})
    assert (list(findings), notes) == ([], ["not signed: integrity only, the origin is unproven"])
    signing.sign(folder, keys[0])
    findings, (note,) = signing.examine(folder, None, digests)
    assert "integrity only, the origin is unproven" in note
    assert [finding.name for finding in findings] == ["signature-bytes"]


def test_a_demo_key_says_so_in_itself_and_in_what_it_signs(folder, tmp_path):
    private, public = signing.keygen(tmp_path / "demo", demo=True)
    assert signing.is_demo(private)
    file = signing.sign(folder, private)
    _, notes = signing.examine(folder, signing.load_public(public), {})
    assert any("demo key" in note for note in notes)
    assert official("verify", "key", folder, "--signature", file, "--public_key", public).returncode == 0


def test_the_secret_key_is_private_kept_and_never_told(folder, tmp_path, capsys):
    assert main(["keygen", str(tmp_path / "k")]) == 0
    private = tmp_path / "k" / signing.PRIVATE
    assert private.stat().st_mode & 0o777 == 0o600
    secret = private.read_text().splitlines()[1]
    signing.sign(folder, private)
    told = capsys.readouterr()
    texts = [told.out, told.err, *(path.read_text("latin-1") for path in folder.rglob("*") if path.is_file())]
    assert not any(secret in text for text in texts)
    before = private.read_bytes()
    assert main(["keygen", str(tmp_path / "k")]) == 2
    assert private.read_bytes() == before


@pytest.mark.parametrize("demo", [False, True])
def test_a_keygen_that_was_killed_anywhere_is_done_again_with_a_pair_that_fits(folder, tmp_path, monkeypatch, demo):
    for instant in range(4):
        keys, calls = tmp_path / f"keys{instant}", []

        def dying(real, calls=calls, instant=instant):
            def call(*words: object, **how: bool) -> object:
                calls.append(words)
                if len(calls) > instant:
                    raise KeyboardInterrupt
                return real(*words, **how)

            return call

        with monkeypatch.context() as patched:
            patched.setattr(Path, "replace", dying(Path.replace))
            patched.setattr(Path, "unlink", dying(Path.unlink))
            with pytest.raises(KeyboardInterrupt):
                signing.keygen(keys, demo=demo)
        secret = (keys / signing.PRIVATE).read_bytes() if (keys / signing.PRIVATE).exists() else None
        private, public = signing.keygen(keys, demo=demo)
        assert secret in (None, private.read_bytes()), "a secret key may have signed something already"
        assert {path.name: path.stat().st_mode & 0o777 for path in keys.iterdir()} == {
            signing.PRIVATE: 0o600, signing.PUBLIC: 0o644,
        }  # fmt: skip
        assert signing.is_demo(public) == signing.is_demo(private) == demo
        signing.sign(folder, private)
        assert names(folder, public) == []


def test_a_lone_key_that_is_not_what_is_asked_for_stays_as_it_is(tmp_path):
    for content, demo in ((None, True), (b"torn", False)):
        private, public = signing.keygen(tmp_path / f"keys{demo}")
        public.unlink()
        private.write_bytes(content or private.read_bytes())
        before = private.read_bytes()
        with pytest.raises(RecipeError, match="there is a key already"):
            signing.keygen(private.parent, demo=demo)
        assert (private.read_bytes(), public.exists()) == (before, False)


def test_a_key_that_is_none_is_a_mistake_of_the_user_and_its_text_is_not_repeated(folder, keys, tmp_path):
    bad = tmp_path / "bad"
    bad.write_text("-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----\n")
    for call in (lambda: signing.sign(folder, bad), lambda: signing.load_public(bad),
                 lambda: signing.load_public(keys[0]), lambda: signing.sign(folder, keys[1]),
                 lambda: signing.load_public(tmp_path / "nowhere")):  # fmt: skip
        with pytest.raises(RecipeError) as caught:
            call()
        assert "hunter2" not in str(caught.value)
        assert caught.value.__cause__ is None or "hunter2" not in str(caught.value.__cause__)
