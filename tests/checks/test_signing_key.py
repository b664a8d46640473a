"""A signing key is read before the run, not after it."""

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from finetune import signing
from finetune.checks.training import check_release
from finetune.config import load


def test_a_key_that_cannot_sign_is_refused_before_anything_is_trained_and_its_text_is_not_repeated(tmp_path):
    private, public = signing.keygen(tmp_path / "keys")
    key = serialization.load_pem_private_key(private.read_bytes(), None)
    pem = {"encoding": serialization.Encoding.PEM, "format": serialization.PrivateFormat.PKCS8}
    locked = key.private_bytes(**pem, encryption_algorithm=serialization.BestAvailableEncryption(b"x"))
    open_ = serialization.NoEncryption()
    written = {
        "password": locked,
        "rsa": rsa.generate_private_key(65537, 2048).private_bytes(**pem, encryption_algorithm=open_),
        "torn": private.read_bytes()[:100], "public": public.read_bytes(), "empty": b"",
    }  # fmt: skip
    for name, content in written.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "unreadable").symlink_to("/proc/self/mem")
    recipe = load(["recipe=legal", "model=smollm2_135m", "machine=cpu"])
    for name in (*written, "unreadable", "keys"):
        handoff = recipe.handoff.model_copy(update={"signing_key": str(tmp_path / name)})
        (problem,) = check_release(recipe.model_copy(update={"handoff": handoff}), {})
        assert problem.path == "handoff.signing_key", name
        assert "finetune keygen" in problem.fix
        lines = written.get(name, b"").decode().splitlines()
        assert not [line for line in lines if len(line) > 30 and line in str(problem)]
