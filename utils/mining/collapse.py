"""Whether an encoder still tells texts apart: one that has collapsed gives (nearly) the same vector for every text.

It ranks by rounding errors and by row, and its metrics may look good where relevant passages happen to come first.

What decides a ranking of vectors that differ by a share s of their length is of order s²: that a passage's vector is
a little longer, or nearer to all queries, changes the order for all queries alike. Rounding the scores to float32
leaves 2^-24 = 6e-8 of them. Measured on encoders of random weights (2 layers 128 wide, 6 layers 384 wide) whose
attention is scaled down, by how many of the top 10 of 600 passages float32 finds that float64 does: 98 to 100% at
s = 0.014 to 0.07, 95% at 0.007, 33% at 0.0014, 12% at 0.0007, and 2% (chance) below 0.0002. With bfloat16, rounding
inside the encoder alone makes differences of up to 0.0026. Vectors of models that rank are far from that: 0.76 for
all-MiniLM-L6-v2, 0.014 and more for random weights of the usual size.
"""

import numpy as np
import torch

from utils.batching import Sequences
from utils.runtime.logs import say
from utils.stores.embedding_store import EmbeddingMatrix

SAMPLED = 512
LEAST_SPREAD = 1e-3


def spread(sequences: Sequences, embeddings: EmbeddingMatrix) -> float | None:
    """How far apart the vectors of two different texts are, as a share of their length: the median over pairs.

    The pairs are neighbours among up to `SAMPLED` texts from all over the store, each content once. None where there
    are no two different texts.
    """
    rows = np.unique(np.linspace(0, len(sequences) - 1, SAMPLED).astype(np.int64)) if len(sequences) else []
    of_content = {}
    for row in rows:
        content = sequences.tokens[sequences.offsets[row] : sequences.offsets[row + 1]]
        of_content.setdefault(content.tobytes(), row)
    if len(of_content) < 2:
        return None
    vectors = embeddings.take(np.fromiter(of_content.values(), np.int64)).astype(np.float64)
    lengths = np.linalg.norm(vectors, axis=1)
    distances = np.linalg.norm(np.diff(vectors, axis=0), axis=1)
    longer = np.maximum(lengths[1:], lengths[:-1])
    return float(np.median(np.divide(distances, longer, out=np.zeros_like(longer), where=longer > 0)))


def note_collapse(sequences: Sequences, embeddings: EmbeddingMatrix, precision: torch.dtype) -> None:
    """Sets `embeddings.collapsed`, and says so: whether the spread is that of rounding.

    `precision` is the type that matrix products ran in.
    """
    found = spread(sequences, embeddings)
    embeddings.collapsed = found is not None and found < max(LEAST_SPREAD, torch.finfo(precision).eps / 2)
    if embeddings.collapsed:
        say(
            f"warning: THE ENCODER HAS COLLAPSED: different texts of {sequences.store.folder} get the same vector "
            f"(they differ by {found:.1g} of their length, which is rounding). It ranks by chance: its metrics and "
            "negatives mean nothing; take another checkpoint, or an earlier one and a lower --learning_rate"
        )
