"""What all encoder families have in common: how to pass packed sequences through transformers' own modules.

A family knows where the parts of its architecture are and in which order they are called. Weights, configurations and
initial values are transformers'; pooling and what follows it are no matter of the family.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import PreTrainedModel

from utils.batching import PackedTokens


class Family(ABC):
    """One architecture. In the shapes, T tokens of n sequences are H wide.

    `model_class` is transformers' bare encoder, and `options` what it takes besides its configuration to come without
    a pooler: both `model_class(config, **options)` and `model_class.from_pretrained(name, **options)` work.
    """

    model_class: ClassVar[type[PreTrainedModel]]
    options: ClassVar[dict[str, Any]] = {}

    @abstractmethod
    def layers(self, model: PreTrainedModel) -> nn.ModuleList:
        """The transformer layers, first to last."""

    @abstractmethod
    def embed(self, model: PreTrainedModel, tokens: PackedTokens) -> Tensor:
        """What the first layer gets, (T, H)."""

    def context(self, model: PreTrainedModel, tokens: PackedTokens, hidden: Tensor) -> Any:
        """What the layers of one pass share, beside `hidden`, the embeddings (T, H); made once a pass."""
        return None

    @abstractmethod
    def layer(self, layer: nn.Module, rows: Tensor, hidden: Tensor, tokens: PackedTokens, context: Any) -> Tensor:
        """A layer's output for `rows`, which attend to `hidden` (T, H); the shape is that of `rows`.

        `rows` is `hidden`, or those of `tokens.first` (n, H): the first tokens alone.
        """

    @abstractmethod
    def set_attention_dropout(self, layer: nn.Module, p: float) -> None:
        """Has the layer drop a share `p` of its attention's weights in training."""

    def finish(self, model: PreTrainedModel, hidden: Tensor) -> Tensor:
        """What follows the last layer, in the same shape."""
        return hidden


def split_heads(projected: Tensor, heads: int) -> Tensor:
    """(…, heads · d) → (…, heads, d)."""
    return projected.unflatten(-1, (heads, -1))
