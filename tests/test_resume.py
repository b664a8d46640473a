"""A checkpoint counts when it is whole, of this layout, and exactly what was sealed."""

from pathlib import Path

import pytest

from finetune import resume
from finetune.resume import Layout

OWNER = "sft-0123456789abcdef"
LAYOUT = Layout(world=1, per_device=4, accumulation=2, kind="single")


def make(root: Path, step: int, *, layout: Layout = LAYOUT, sealed: bool = True) -> Path:
    folder = root / f"checkpoint-{step}"
    (folder / "global").mkdir(parents=True)
    (folder / "optimizer.pt").write_bytes(b"state" * step)
    (folder / "global" / "shard").write_bytes(b"shard")
    if sealed:
        resume.seal(folder, layout, owner=OWNER)
    return folder


def test_the_newest_whole_checkpoint_is_taken(tmp_path: Path) -> None:
    make(tmp_path, 9)
    newest = make(tmp_path, 10)
    said: list[str] = []
    assert resume.newest(tmp_path, LAYOUT, said.append, owner=OWNER) == newest
    assert not said


def test_an_unsealed_checkpoint_is_removed_with_a_message(tmp_path: Path) -> None:
    good, torn = make(tmp_path, 5), make(tmp_path, 10, sealed=False)
    said: list[str] = []
    assert resume.newest(tmp_path, LAYOUT, said.append, owner=OWNER) == good
    assert "step 10" in said[0]
    assert "never finished" in said[0]
    assert not torn.exists()


@pytest.mark.parametrize("name", ["optimizer.pt", "global/shard"])
def test_a_changed_a_cut_and_a_missing_file_all_disqualify(tmp_path: Path, name: str) -> None:
    for step, harm in ((5, "change"), (6, "cut"), (7, "remove")):
        file = make(tmp_path, step) / name
        if harm == "change":
            file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
        elif harm == "cut":
            file.write_bytes(file.read_bytes()[:-1])
        else:
            file.unlink()
    said: list[str] = []
    assert resume.newest(tmp_path, LAYOUT, said.append, owner=OWNER) is None
    assert all(name in line for line in said)
    assert len(said) == 3


def test_a_file_that_was_put_there_later_disqualifies(tmp_path: Path) -> None:
    (make(tmp_path, 5) / "rng_state_1.pth").write_bytes(b"pickle")
    assert resume.newest(tmp_path, LAYOUT, lambda line: None, owner=OWNER) is None


def test_another_layout_starts_again_and_says_so(tmp_path: Path) -> None:
    make(tmp_path, 5, layout=Layout(world=2, per_device=4, accumulation=1, kind="ddp"))
    said: list[str] = []
    assert resume.newest(tmp_path, LAYOUT, said.append, owner=OWNER) is None
    assert "2 processes" in said[0]
    assert "starts again" in said[0]


@pytest.mark.parametrize("whose", ["another run", "another step", "only the marker"])
def test_a_checkpoint_of_another_run_is_never_loaded(tmp_path: Path, whose: str) -> None:
    """The same layout and whole files are not enough: another learning rate has another key."""
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    make(theirs, 5)
    if whose == "another run":
        mine.mkdir()
        (theirs / "checkpoint-5").rename(mine / "checkpoint-5")
    elif whose == "another step":
        make(mine, 4).rename(mine / "checkpoint-5")
    else:
        make(mine, 5, sealed=False).joinpath("optimizer.pt").write_bytes(b"other")
        (mine / "checkpoint-5" / resume.COMPLETE).write_bytes((theirs / "checkpoint-5" / resume.COMPLETE).read_bytes())
    said: list[str] = []
    owner = "sft-fedcba9876543210" if whose == "another run" else OWNER
    assert resume.newest(mine, LAYOUT, said.append, owner=owner) is None
    assert ("optimizer.pt is not the file" if whose == "only the marker" else "somebody else") in said[0]
    assert not list(mine.iterdir())


def test_a_garbled_marker_is_a_message_not_a_crash(tmp_path: Path) -> None:
    for step, text in ((1, "{"), (2, "[]"), (3, '{"files": {}}'), (4, '{"files": {}, "layout": {"world": 1}}')):
        (make(tmp_path, step) / resume.COMPLETE).write_text(text)
    assert resume.newest(tmp_path, LAYOUT, lambda line: None, owner=OWNER) is None


def test_two_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in (2, 4, 10):
        make(tmp_path, step)
        resume.keep_last(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-4"]
