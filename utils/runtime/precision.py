"""Mixed precision by what the machine can do."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from utils.runtime.logs import say

PRECISIONS = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Precision:
    """The type that matrix products run in; weights that are trained, losses and vectors stay in float32."""

    device_type: str
    dtype: torch.dtype

    @property
    def mixed(self) -> bool:
        return self.dtype != torch.float32

    @property
    def needs_scaler(self) -> bool:
        """float16 has too few exponent bits for gradients as they come; bfloat16 has float32's."""
        return self.dtype == torch.float16

    @property
    def encoding_weights(self) -> torch.dtype:
        """The type of the layers' weights where nothing is trained.

        On a CPU it is also what they hand on. float16 has the range for products, but not for the sums that go from
        layer to layer of any encoder.
        """
        return torch.bfloat16 if self.dtype == torch.bfloat16 else torch.float32

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device_type, dtype=self.dtype) if self.mixed else nullcontext()


def choose_precision(fp16: bool, device: torch.device) -> Precision:
    """bfloat16 where the hardware multiplies it, float16 on an older GPU, float32 on an older CPU (and said)."""
    if not fp16:
        return Precision(device.type, torch.float32)
    if device.type == "cuda":
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return Precision(device.type, torch.bfloat16 if has_bfloat16 else torch.float16)
    if torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported():
        return Precision(device.type, torch.bfloat16)
    say("warning: --fp16 was asked for and this CPU has neither AMX nor AVX512-BF16: running in float32")
    return Precision(device.type, torch.float32)
