"""Vectors, and attention in each of its ways, on a GPU and on the CPU."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model import attention
from model.attention import Window, packed_attention
from model.encoders import Encoder
from model.families import FAMILIES
from tests.cuda.simulated.steps import CPU, READINGS
from tests.tiny_models import random_store, tiny_config, tiny_model
from utils.batching import PackedTokens, Sequences, pack
from utils.mining.encoding import cut_batches, encode, order_by_length, share_of_rows
from utils.runtime.precision import Precision

pytestmark = pytest.mark.gpu

# Norms of differences, relative. Were float32 multiplied as TF32, it would be off by about 1e-3.
TYPES = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.03}


def distance(got: np.ndarray | Tensor, expected: np.ndarray | Tensor) -> float:
    got, expected = (torch.as_tensor(one).cpu().double() for one in (got, expected))
    return float((got - expected).norm() / expected.norm())


def encoder_of(family: str, reading: str) -> Encoder:
    encoder = Encoder(tiny_model(tiny_config(family)), READINGS[reading])
    for parameter in encoder.head.parameters():
        torch.nn.init.normal_(parameter)
    return encoder.eval()


def vectors_of(encoder: Encoder, sequences: Sequences, dtype: torch.dtype, device: torch.device, shards: int = 1):
    """The vectors of all sequences, each shard encoded by itself as a process would."""
    vectors = np.full((len(sequences), encoder.embedding_dim), np.nan, np.float32)

    def write(numbers: np.ndarray, of_batch: np.ndarray) -> None:
        vectors[numbers] = of_batch

    for shard in range(shards):
        first, last = share_of_rows(sequences.offsets, shard, shards)
        lengths = np.diff(sequences.offsets[first : last + 1])
        order = order_by_length(lengths)
        batches = (first + order[cut] for cut in cut_batches(lengths[order], 16, 200))
        encode(encoder.to(device), sequences, batches, device, Precision(device.type, dtype), write)
    return vectors


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(("family", "reading"), [*zip(FAMILIES, [*READINGS, *READINGS], strict=False)])
def test_vectors_are_those_of_the_cpu_in_one_process_and_in_two_shards(family, reading, dtype, device, tmp_path):
    encoder, sequences = encoder_of(family, reading), Sequences(random_store(tmp_path / "passages", 50, seed=5))
    expected = vectors_of(encoder, sequences, torch.float32, CPU)
    got = vectors_of(encoder, sequences, dtype, device)
    assert distance(got, expected) < TYPES[dtype]
    assert distance(vectors_of(encoder, sequences, dtype, device, shards=2), got) < TYPES[dtype] / 2


def plain_attention(
    query: Tensor, key: Tensor, value: Tensor, tokens: PackedTokens, first_only: bool, window: int | None
) -> Tensor:
    """By its definition: all tokens at once, those of other sequences and those out of the window masked."""
    sequence = torch.arange(len(tokens)).repeat_interleave(torch.tensor(tokens.lengths))
    seen = sequence[:, None] == sequence
    if window is not None:
        seen &= (tokens.positions[:, None] - tokens.positions).abs() <= window
    seen = seen[tokens.first] if first_only else seen
    scores = torch.einsum("ihd,jhd->hij", query, key) / query.shape[-1] ** 0.5
    return torch.einsum("hij,jhd->ihd", scores.masked_fill(~seen, -torch.inf).softmax(-1), value)


@pytest.mark.parametrize(
    ("way", "first_only", "window"),
    [
        case
        for case in product(["varlen", "padded", "padded, float32"], [False, True], [None, 3])
        if case != ("varlen", True, 3)  # which the kernel cannot do, see `_fits_varlen`
    ],
)
def test_attention_and_its_gradients_are_what_the_definition_says(
    way, first_only, window, device, tmp_path: Path, monkeypatch
):
    if way == "varlen" and not attention.has_varlen(device):
        pytest.skip("this GPU has no kernel for sequences of any lengths")
    if way != "varlen":
        monkeypatch.setattr(attention, "has_varlen", lambda device: False)
    dtype = torch.float32 if way == "padded, float32" else torch.bfloat16
    sequences = Sequences(random_store(tmp_path / "passages", 12, longest=40, seed=1))
    tokens = pack([(sequences, np.arange(12))])
    generator = torch.Generator().manual_seed(0)
    count = len(tokens.input_ids)
    key, value, query, weights = (
        torch.randn(lines, 2, 32, generator=generator).to(dtype)  # the same numbers on both
        for lines in (count, count, *[len(tokens) if first_only else count] * 2)
    )
    own = [one.double().requires_grad_() for one in (query, key, value)]
    expected = plain_attention(*own, tokens, first_only, window)
    expected_gradients = torch.autograd.grad((expected * weights).sum(), own)

    there = tokens.to(device)
    own = [one.to(device).requires_grad_() for one in (query, key, value)]
    masks = None if window is None else Window(there, window)
    assert attention._fits_varlen(*own, there, 0.0, masks) == (way == "varlen")
    got = packed_attention(*own, there, masks=masks)
    gradients = torch.autograd.grad((got * weights.to(device)).sum(), own)
    for one, other in zip((got, *gradients), (expected, *expected_gradients), strict=True):
        assert distance(one.detach(), other.detach()) < (1e-5 if dtype == torch.float32 else 0.01)
