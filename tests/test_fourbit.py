"""A matrix through 4 bit in pieces is what bitsandbytes makes of the whole, bit for bit."""

from itertools import product

import pytest
import torch
from bitsandbytes import functional
from safetensors.torch import load_file, save_file

from finetune import fourbit, shards, stream
from finetune.fourbit import RoundTrip

KINDS = list(product(("nf4", "fp4"), (True, False), (64, 128), ("bfloat16", "float32")))
SHAPES = [(640, 192), (1000, 128), (192, 96), (130, 34), (7, 10)]
"""The first can be cut in blocks of 64, the second also of 128; the last two end within a block."""


@pytest.fixture(autouse=True)
def one_thread():
    """The mean of all scales is a sum, and its order hangs on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def weight_of(shape: tuple[int, int], dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    made = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) * 0.02
    made[:, 0] *= 40  # as in real models: a few columns are far larger
    return made.to(dtype)


def whole(trip: RoundTrip, weight: torch.Tensor) -> torch.Tensor:
    codes, state = functional.quantize_4bit(
        weight.to(getattr(torch, trip.from_dtype)), blocksize=trip.blocksize, quant_type=trip.quant_type,
        compress_statistics=trip.double_quant,
    )  # fmt: skip
    return functional.dequantize_4bit(codes, state).to(weight.dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_in_pieces_as_at_once(monkeypatch, shape):
    monkeypatch.setattr(fourbit, "_CACHED", 1)
    weight = weight_of(shape)
    for quant_type, double, blocksize, dtype in KINDS:
        trip = RoundTrip(frozenset(), quant_type, double, blocksize, dtype)
        assert torch.equal(trip.apply(weight), whole(trip, weight)), trip
        if trip.cuttable(shape):
            assert len(list(trip.pieces(shape, 0, shape[0]))) == max(1, shape[0] // 64)


@pytest.mark.parametrize("block_bytes", [1, 64 << 10, 8 << 20])
def test_a_file_whose_matrices_go_through_4_bit_in_blocks_holds_those_of_the_whole(tmp_path, monkeypatch, block_bytes):
    monkeypatch.setattr(fourbit, "_CACHED", 1 << 14)
    matrices = {f"m{number}.weight": weight_of(shape) for number, shape in enumerate(SHAPES)}
    save_file(matrices, tmp_path / "base.safetensors")
    for double, blocksize in ((True, 64), (False, 128)):
        trip = RoundTrip(frozenset(), "nf4", double, blocksize)
        entries = [
            stream.Entry(name, tensor, trip=None if name == "m1.weight" else trip)
            for name, tensor in shards.read_header(tmp_path / "base.safetensors").items()
        ]
        stream.write_shard(tmp_path / "out.safetensors", entries, add=lambda _: None, block_bytes=block_bytes)
        written = load_file(tmp_path / "out.safetensors")
        for name, weight in matrices.items():
            assert torch.equal(written[name], weight if name == "m1.weight" else whole(trip, weight)), name


def test_the_scales_are_quantised_together_because_their_mean_is_taken_out_first():
    trip, weight = RoundTrip(frozenset()), weight_of((1024, 64))
    apart = torch.cat([trip.apply(half) for half in weight.split(512)])
    assert not torch.equal(trip.apply(weight), apart)
