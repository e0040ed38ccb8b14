"""An encoder of ours as sentence-transformers' own model, which is imported where it is asked for.

So the benchmarks of ours run where the library is not installed.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedTokenizerBase

from model.encoders import Encoder

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

LIBRARY = "sentence-transformers"
FLASH = f"{LIBRARY}, flash attention"  # by the package flash-attn, in 16-bit numbers on a GPU
ATTENTION = {LIBRARY: None, FLASH: "flash_attention_2"}


def load_model(
    folder: Path,
    encoder: Encoder,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    device: torch.device,
    attention: str | None = None,
) -> "SentenceTransformer":
    """The encoder as the library's own model: transformers' forward pass, then the library's modules of its reading.

    `folder` gets the files that it is loaded from. `attention` is transformers' attn_implementation.
    """
    from sentence_transformers import SentenceTransformer

    encoder.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    encoder.save_reading(folder, max_length, max_length)
    options = dict(encoder.family.options) | ({"attn_implementation": attention} if attention else {})
    return SentenceTransformer(str(folder), device=str(device), model_kwargs=options)
