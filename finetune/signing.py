"""Signatures of bundles in the format of OpenSSF Model Signing 1.0, with a key pair (ECDSA, no account, no network).

`model.sig` is a Sigstore bundle (v0.3): a DSSE envelope around an in-toto statement that lists sha256 of every file.
The command `model_signing verify key` of the PyPI package model-signing reads it, and what it signs is read here.
Formats: github.com/ossf/model-signing-spec, github.com/secure-systems-lab/dsse (protocol.md), in-toto.io/Statement/v1.
"""

import base64
import binascii
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.errors import RecipeError
from finetune.findings import Finding, finding

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.hashes import HashAlgorithm

SIGNATURE = "model.sig"
UNFINISHED = f".{SIGNATURE}.writing"
PRIVATE, PUBLIC = "signing.key", "signing.pub"
_CURVES, _KEYGEN = ("secp256r1", "secp384r1", "secp521r1"), "make one with `finetune keygen FOLDER`"
_DEMO = "Demo key: made by a demonstration, its private half was protected by nobody. It proves no origin."
_MEDIA, _PAYLOAD = "application/vnd.dev.sigstore.bundle.v0.3+json", "application/vnd.in-toto+json"
_STATEMENT, _PREDICATE = "https://in-toto.io/Statement/v1", "https://model_signing/signature/v1.0"


@dataclass(frozen=True)
class PublicKey:
    """A key that the receiver trusts, or None in its place where the package cryptography is not there to read it."""

    file: Path
    key: "EllipticCurvePublicKey | None"


def keygen(folder: Path, *, demo: bool = False) -> tuple[Path, Path]:
    """Write `signing.key` (mode 0600, the secret) and `signing.pub` into `folder`; raises RecipeError where a pair is.

    The curve is P-256. A `demo` pair says so in its own text, and so does every signature made with it. A secret key
    that stands alone, as after a kill, is kept and gets its public half.
    """
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    private, public = folder / PRIVATE, folder / PUBLIC
    alone = not public.exists() and _of_kind(private, demo=demo)
    if not alone and (private.exists() or public.exists()):
        raise RecipeError.one(
            str(private if private.exists() else public), None,
            "there is a key already, and nothing signed with it could be verified without it",
            "give another folder, or move the old pair away",
        )  # fmt: skip
    note = f"{_DEMO}\n".encode() if demo else b""
    folder.mkdir(parents=True, exist_ok=True)
    if not alone:
        key = ec.generate_private_key(ec.SECP256R1())
        _write(private, note + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    _write(public, note + _pem(load_private(private).public_key()), mode=0o644)
    return private, public


def _of_kind(private: Path, *, demo: bool) -> bool:
    """Whether a secret key can be read there, and is one for demonstrations exactly if `demo`."""
    try:
        load_private(private)
    except RecipeError:
        return False
    return is_demo(private) == demo


def _write(file: Path, content: bytes, *, mode: int | None = None) -> None:
    """All of `file` or none of it; nobody else may read it before the last byte, nor then without a `mode`."""
    fresh = file.with_name(f".{file.name}.writing")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())
    if mode is not None:
        fresh.chmod(mode)
    fresh.replace(file)


def is_demo(private_key: Path) -> bool:
    """Whether this key file says that it is a demo key."""
    return private_key.read_text(encoding="utf-8", errors="replace").startswith(_DEMO)


def sign(directory: Path, private_key: Path, *, known: Mapping[str, str] | None = None) -> Path:
    """Sign every file of `directory` and write `model.sig` into it, replacing another.

    `known`: name -> sha256 of files that need not be read, because the caller knows that they are still those bytes.
    """
    from cryptography.hazmat.primitives.asymmetric import ec

    key = load_private(private_key)
    if links := [str(path) for path in directory.rglob("*") if path.is_symlink()]:
        rule = "a link is not signed, since no reader follows it"
        raise RecipeError.one(str(directory), links[:3], rule, "put the file itself there")
    (directory / UNFINISHED).unlink(missing_ok=True)  # of a killed attempt: listed, it would be missed for ever
    digests = {name: (known or {}).get(name) or _hash(directory / name) for name in names(directory)}
    statement = {
        "_type": _STATEMENT,
        "subject": [{"name": directory.resolve().name, "digest": {"sha256": _root(list(digests.values()))}}],
        "predicateType": _PREDICATE,
        "predicate": {
            # The official verifier passes over files of git unless it is told that none are ignored.
            "serialization": {
                "method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": [SIGNATURE],
            },
            "resources": [{"name": name, "algorithm": "sha256", "digest": digest} for name, digest in digests.items()],
            **({"demo_key": True} if is_demo(private_key) else {}),
        },
    }  # fmt: skip
    payload = json.dumps(statement, indent=1, ensure_ascii=False).encode()
    signature = key.sign(_envelope(payload), ec.ECDSA(_hash_of(key.public_key())))
    content = {
        "mediaType": _MEDIA,
        "verificationMaterial": {"publicKey": {"hint": _hint(key.public_key())}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": _PAYLOAD,
            "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
        },
    }
    file = directory / SIGNATURE
    fresh = directory / UNFINISHED
    fresh.write_text(_canonical(content), encoding="utf-8")
    fresh.chmod(0o644)
    fresh.replace(file)
    return file


def signed_with(directory: Path, private_key: Path) -> bool:
    """Whether `model.sig` is there, nothing is half written, and this key made it. No file is hashed."""
    if (directory / UNFINISHED).exists():
        return False
    try:
        envelope, hint = _read(directory / SIGNATURE)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # not there, or not one of ours to the byte
        return False
    public = load_private(private_key).public_key()
    return hint == _hint(public) and _valid(public, envelope)


def load_public(file: Path) -> PublicKey:
    """A trusted public key (PEM, P-256, P-384 or P-521); raises RecipeError where the file holds none."""
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ImportError:
        return PublicKey(file, None)
    try:
        key = load_pem_public_key(file.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise RecipeError.one("--key", str(file), f"no public key can be read there ({type(error).__name__})",
                              "give the signing.pub that the sender gave you by another way") from error  # fmt: skip
    if not isinstance(key, EllipticCurvePublicKey) or key.curve.name not in _CURVES:
        raise RecipeError.one("--key", str(file), "not a key on P-256, P-384 or P-521", _KEYGEN)
    return PublicKey(file, key)


def examine(
    directory: Path, trusted: PublicKey | None, digests: Mapping[str, str]
) -> tuple[Sequence[Finding], list[str]]:
    """Findings and notes about `model.sig`. `digests`: name -> sha256 of the files as read; empty: none was read."""
    file = directory / SIGNATURE
    if not file.is_file():
        if trusted is None:
            return [], ["not signed: integrity only, the origin is unproven"]
        return [finding("signature-missing", file, None, "it is not signed, and a trusted key was given",
                        "ask the sender for the signed one")], []  # fmt: skip
    try:
        envelope, hint = _read(file)
        statement = json.loads(envelope.payload)
        listed, demo = _listed(statement)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return [finding("signature-format", file, None, f"not a model signature to the byte ({error})",
                        "copy the file again, or ask the sender")], []  # fmt: skip
    findings = _compare(directory, listed, digests)
    notes = ["signed with a demo key: whoever ran the demonstration could have signed it"] if demo else []
    if trusted is None:
        notes.append("signed, but no trusted key was given (--key): integrity only, the origin is unproven")
        return findings, notes
    if trusted.key is None:
        findings.append(finding("signature-unchecked", file, None, "the package cryptography is not installed",
                                "pip install cryptography, or `model_signing verify key`"))  # fmt: skip
    elif hint != _hint(trusted.key):
        findings.append(finding("signature-key", file, hint, f"signed with another key than {trusted.file}",
                                "do not use it: ask the sender which key is theirs, by another way"))  # fmt: skip
    elif not _valid(trusted.key, envelope):
        findings.append(finding("signature-invalid", file, None, f"the signature is not one of {trusted.file}",
                                "do not use it: it was changed after signing"))  # fmt: skip
    else:
        notes.append(f"signed by the key in {trusted.file} (sha256 {hint[:16]}…), {len(listed)} files")
    return findings, notes


@dataclass(frozen=True)
class _Envelope:
    payload: bytes
    signature: bytes


def _read(file: Path) -> tuple[_Envelope, str]:
    """Payload, signature and the hash of the key. ValueError for anything that a signer would not have written."""
    text = file.read_text(encoding="utf-8")
    content = json.loads(text)
    material, envelope = content["verificationMaterial"], content["dsseEnvelope"]
    (signature,) = envelope["signatures"]
    known = {
        "mediaType": _MEDIA,
        "verificationMaterial": {"publicKey": {"hint": material["publicKey"]["hint"]}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": envelope["payload"], "payloadType": _PAYLOAD,
            "signatures": [{"sig": signature["sig"], "keyid": ""}],
        },
    }  # fmt: skip
    if content != known or _canonical(content) != text:
        raise ValueError("fields, order or spaces are not those of a signer")
    return _Envelope(_decode(envelope["payload"]), _decode(signature["sig"])), str(material["publicKey"]["hint"])


def _listed(statement: Mapping[str, Any]) -> tuple[dict[str, str], bool]:
    """Name -> sha256 as the statement lists it, and whether a demo key signed it."""
    predicate = statement["predicate"]
    if statement["_type"] != _STATEMENT or statement["predicateType"] != _PREDICATE:
        raise ValueError("not a statement about a model")
    if (predicate["serialization"]["method"], predicate["serialization"]["hash_type"]) != ("files", "sha256"):
        raise ValueError("only sha256 of whole files is read here")
    listed = {str(resource["name"]): str(resource["digest"]) for resource in predicate["resources"]}
    (subject,) = statement["subject"]
    if subject["digest"] != {"sha256": _root([str(resource["digest"]) for resource in predicate["resources"]])}:
        raise ValueError("the digest of the whole is not that of its parts")
    return listed, predicate.get("demo_key") is True


def _compare(directory: Path, listed: Mapping[str, str], digests: Mapping[str, str]) -> list[Finding]:
    present = set(names(directory))
    findings = [
        finding("signature-unlisted", directory / name, None, "not among the signed files: it came after the signature",
                "remove it")
        for name in sorted(present - listed.keys())
    ]  # fmt: skip
    findings += [
        finding("signature-absent", directory / name, None, "signed, and not there", "copy it again")
        for name in sorted(listed.keys() - present)
    ]
    findings += [
        finding("signature-bytes", directory / name, None, "its bytes are not those that were signed", "copy it again")
        for name in sorted(listed.keys() & digests.keys()) if digests[name] != listed[name]
    ]  # fmt: skip
    return findings


def _valid(key: "EllipticCurvePublicKey", envelope: _Envelope) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key.verify(envelope.signature, _envelope(envelope.payload), ec.ECDSA(_hash_of(key)))
    except InvalidSignature:
        return False
    return True


def load_private(file: Path) -> "EllipticCurvePrivateKey":
    """The key to sign with (PEM, no password, P-256, P-384 or P-521); raises RecipeError where the file holds none, and
    repeats nothing of what it holds."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(file.read_bytes(), password=None)
    except FileNotFoundError:
        raise RecipeError.one("handoff.signing_key", str(file), "there is no such file", _KEYGEN) from None
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:  # never the text of the file
        raise RecipeError.one(
            "handoff.signing_key", str(file), f"no private key can be read there ({type(error).__name__})",
            "make one with `finetune keygen FOLDER` (keys with a password are not read)",
        ) from None  # fmt: skip
    if not isinstance(key, EllipticCurvePrivateKey) or key.curve.name not in _CURVES:
        raise RecipeError.one("handoff.signing_key", str(file), "not a key on P-256, P-384 or P-521", _KEYGEN)
    return key


def names(directory: Path) -> list[str]:
    """Every file but the signature, by its path below `directory`, sorted as the format asks."""
    return sorted(
        path.relative_to(directory).as_posix() for path in directory.rglob("*")
        if path.is_file() and path != directory / SIGNATURE
    )  # fmt: skip


def _hash(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _root(digests: Sequence[str]) -> str:
    return hashlib.sha256(b"".join(bytes.fromhex(digest) for digest in digests)).hexdigest()


def _envelope(payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: type and payload with their lengths, so that neither can be moved."""
    return b"DSSEv1 %d %s %d %s" % (len(_PAYLOAD), _PAYLOAD.encode(), len(payload), payload)


def _canonical(content: object) -> str:
    return json.dumps(content, separators=(",", ":"))


def _decode(text: str) -> bytes:
    """Base64 with one spelling for each content: unused bits of the last character are zero."""
    try:
        found = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError("not base64") from error
    if base64.b64encode(found).decode() != text:
        raise ValueError("not base64 as it is written")
    return found


def _pem(key: "EllipticCurvePublicKey") -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _hint(key: "EllipticCurvePublicKey") -> str:
    """How a signature names its key: the sha256 of the key as PEM."""
    return hashlib.sha256(_pem(key)).hexdigest()


def _hash_of(key: "EllipticCurvePublicKey") -> "HashAlgorithm":
    from cryptography.hazmat.primitives import hashes

    if key.curve.key_size == 256:
        return hashes.SHA256()
    return hashes.SHA384() if key.curve.key_size == 384 else hashes.SHA512()
