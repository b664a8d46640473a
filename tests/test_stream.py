"""One file of merged weights: what a disk refuses is never lost, and threads share their buffers."""

import os

import pytest
import torch
from checkpoints import make_base

from finetune import shards, stream


def entries_of(tmp_path) -> list[stream.Entry]:
    base = make_base(tmp_path / "base")
    (name,) = shards.shard_names(base)
    return [stream.Entry(tensor.name, tensor) for tensor in shards.read_header(base / name).values()]


def test_a_write_that_the_disk_refused_while_more_was_made_is_not_forgotten(tmp_path, monkeypatch):
    """Linux reports a write-back error once for each descriptor: the flushes after it succeed, and so does fsync."""
    entries, asked = entries_of(tmp_path), []

    def refuse_once(descriptor: int) -> None:
        asked.append(descriptor)
        if len(asked) == 1:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(stream, "_FLUSH_BYTES", 1)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", refuse_once)
        with pytest.raises(OSError, match="Input/output"):
            stream.write_shard(tmp_path / "out", entries, add=lambda count: None, block_bytes=1024)
    stream.write_shard(tmp_path / "out", entries, add=lambda count: None, block_bytes=1024)


def test_a_buffer_that_another_thread_took_first_is_replaced_by_a_new_one(tmp_path):
    class TakenMeanwhile(list[torch.Tensor]):
        """It held a buffer when it was looked at and holds none when one is taken."""

        def __bool__(self) -> bool:
            return True

        def __len__(self) -> int:
            return 1

    entry = entries_of(tmp_path)[0]
    block, _ = stream._read(entry, 0, entry.source.shape[0], TakenMeanwhile())
    assert block.nbytes == entry.source.bytes
