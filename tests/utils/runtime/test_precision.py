"""Mixed precision by what the hardware has."""

import pytest
import torch

from utils.runtime.precision import choose_precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("device", "has_bfloat16", "expected"),
    [
        (CPU, True, torch.bfloat16),
        (CPU, False, torch.float32),
        (CUDA, True, torch.bfloat16),
        (CUDA, False, torch.float16),
    ],
)
def test_mixed_precision_is_bfloat16_where_the_hardware_has_it(monkeypatch, capsys, device, has_bfloat16, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bfloat16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bfloat16)
    assert choose_precision(False, device).dtype == torch.float32
    precision = choose_precision(True, device)
    assert precision.dtype == expected
    assert precision.needs_scaler == (expected == torch.float16)
    assert precision.encoding_weights == (expected if expected == torch.bfloat16 else torch.float32)
    assert ("warning" in capsys.readouterr().out) == (expected == torch.float32)
