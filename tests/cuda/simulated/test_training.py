"""Training steps on the simulated device give what they give on the CPU, wait once and launch so much."""

import os
from dataclasses import replace
from itertools import product

import pytest
import torch

from model.dro import OBJECTIVES
from model.families import FAMILIES
from model.losses import LOSSES
from tests.cuda.device import simulated_cuda
from tests.cuda.simulated import bounds
from tests.cuda.simulated.steps import CPU, READINGS, Setting, assert_alike, batches_of, make_step, trained

ALL = os.environ.get("ANCE_CUDA_VARIANTS") == "all"  # else each value of each option, not their product
CUDA = torch.device("cuda", 0)
TYPES = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.03}

FEW = [
    *(Setting(family, reading) for family, reading in zip(FAMILIES, [*READINGS, *READINGS], strict=False)),
    *(Setting(objective=name, loss=loss) for name, loss in product(OBJECTIVES, LOSSES)),
    *(Setting(reading="mean", loss=loss, dtype=dtype) for loss, dtype in product(LOSSES, TYPES)),
    Setting(accumulation=3, batch_size=4),
    Setting(accumulation=3, batch_size=4, dtype=torch.float16),
    Setting(checkpointing=True),
    Setting(checkpointing=True, dtype=torch.bfloat16),
    Setting(sketch=64),
    Setting(chunk_length=5),
    Setting(optimizer="lamb"),
    Setting(optimizer="adamW"),
]
ANY = [
    Setting(*chosen, dtype=dtype, checkpointing=checkpointing, sketch=sketch, chunk_length=chunk_length)
    for *chosen, dtype, checkpointing, sketch, chunk_length in product(
        FAMILIES, READINGS, OBJECTIVES, LOSSES, TYPES, (False, True), (None, 64), (None, 5)
    )
    if sketch is None or chosen[2].startswith("idro")
]


def on_the_cpu(setting: Setting) -> dict[str, torch.Tensor]:
    """The same there; float16's, which has a scaler and other rounding, in float32."""
    return trained(replace(setting, dtype=torch.float32) if setting.dtype == torch.float16 else setting, CPU)


@pytest.mark.parametrize("setting", ANY if ALL else FEW, ids=str)
def test_steps_are_those_of_the_cpu(setting):
    expected = on_the_cpu(setting)
    with simulated_cuda():
        got = trained(setting, CUDA)
    assert not got["skipped"].any()
    assert_alike(got, expected, TYPES[setting.dtype])


@pytest.mark.parametrize("loss", LOSSES)
def test_one_kernel_for_all_groups_gives_what_one_a_group_gives(loss):
    setting = Setting(loss=loss, dtype=torch.bfloat16)
    with simulated_cuda((8, 0)) as device:
        expected = trained(setting, CUDA)
        assert not device.launches["_grouped_mm"]
    with simulated_cuda((9, 0)) as device:
        got = trained(setting, CUDA)
        assert device.launches["_grouped_mm"]
    assert_alike(got, expected, 0.02)


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_the_kernel_for_sequences_of_any_lengths_gives_what_padded_blocks_give(family):
    setting = Setting(family, dtype=torch.float16)
    with simulated_cuda((7, 5)) as device:
        expected = trained(setting, CUDA)
        assert not device.launches["_varlen_attn"]
    with simulated_cuda((8, 0)) as device:
        got = trained(setting, CUDA)
        assert device.launches["_varlen_attn"] == device.launches["_varlen_attn_backward"] > 0
    assert_alike(got, expected, 0.02)


def test_float16_steps_that_overflow_are_skipped_and_the_others_are_those_of_float32():
    setting = Setting(dtype=torch.float16, init_scale=2.0**23, steps=8)
    with simulated_cuda():
        got = trained(setting, CUDA)
    skipped = got.pop("skipped").tolist()
    assert skipped[0]
    assert not skipped[-1]
    expected = trained(replace(setting, dtype=torch.float32), CPU, without=skipped)
    taken = ~torch.tensor(skipped)
    for name in ("losses", "cluster_losses", "norms", "weights"):
        got[name] = got[name][taken]
    assert_alike(got, expected, TYPES[torch.float16])


def test_dropout_draws_from_the_devices_own_numbers_also_in_layers_that_are_computed_again():
    setting = Setting(dropout=0.2)
    with simulated_cuda():
        first, again = trained(setting, CUDA), trained(setting, CUDA)
        recomputed = trained(replace(setting, checkpointing=True), CUDA)
    assert torch.equal(first["after"], again["after"])
    assert_alike(recomputed, first, 1e-4)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("objective", ["erm", "idro"])
def test_a_step_waits_and_launches_no_more_than_so_often(objective, dtype):
    for accumulation in (1, 2):
        own = {"batch_size": 6, "accumulation": accumulation}
        setting = Setting("bert", "mean", objective, "contrastive", dtype, **own)
        with simulated_cuda() as device:
            step, (first, second) = make_step(setting, CUDA), batches_of(setting, CUDA)
            step(first.batches, 1e-2)
            device.clear()
            step(second.batches, 1e-2)
        assert len(device.synchronisations) <= bounds.WAITS, device.synchronisations
        if accumulation == 1:
            assert device.launches.total() <= bounds.LAUNCHES[objective, dtype], device.launches
