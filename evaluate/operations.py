"""The floating point operations that encoding and training cannot do without, from a BERT's shape.

A product of matrices takes 2 operations an entry and multiplication. A BERT layer multiplies every token with
12 width² weights (4 width² in attention, 8 width² after it), and attention takes two products of length · length ·
width. Where a text's vector is its first token's, the last layer needs keys and values (2 width²) of every token, the
other 10 width² of first tokens alone, and attention of length · width. Padding, second encodings of a text,
embeddings, norms, means and the optimizer count for nothing.
"""

import numpy as np


def encoding_operations(lengths: np.ndarray, layers: int, width: int, pooling: str = "cls") -> float:
    """The operations of a forward pass over texts of these lengths, in tokens; `pooling` is cls or mean."""
    tokens, squares = lengths.sum(), (lengths**2).sum()
    weights, attention = 12 * width**2 * tokens * layers, 2 * width * squares * layers
    if pooling == "cls":
        weights -= 10 * width**2 * (tokens - len(lengths))
        attention -= 2 * width * (squares - tokens)
    return float(2 * (weights + attention))


def useful_operations(lengths: np.ndarray, layers: int, width: int, pooling: str = "cls") -> float:
    """The operations of a training step over distinct texts of these lengths: 3 forward passes' worth.

    The backward pass multiplies twice for each product of the forward one.
    """
    return 3 * encoding_operations(lengths, layers, width, pooling)
