"""What is saved of a reading, so that sentence-transformers gives an encoder's own vectors.

    modules.json                         Transformer, Pooling, then a folder each for what follows: Dense, LayerNorm,
                                         Normalize
    sentence_bert_config.json            lengths, and whether texts are lowercased
    config_sentence_transformers.json    prompts, similarity, and under a key of our own scale and model type

`SentenceTransformer(folder).encode_query` and `encode_document` then put the prompts before a text, and cut it. All
versions since 2.0 read these names, but for `query_length` and `document_length`. One of them is written where
queries and passages are not cut alike, and versions before 6 cannot load what has it.
"""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedConfig

from model.reading import ACTIVATIONS, LEGACY_POOLINGS, OWN_KEY, SETTINGS, TEXTS, HeadLayer, Reading
from utils.stores.checkpoint import WEIGHTS
from utils.stores.pretrained import longest_sequence

WEIGHT_PREFIXES = {"Dense": "linear", "LayerNorm": "norm"}  # of the names of a module's weights
Layers = list[tuple[HeadLayer, dict[str, Tensor]]]  # with their weights


def write_sentence_files(
    folder: Path,
    reading: Reading,
    config: PreTrainedConfig,
    layers: Layers,
    max_seq_length: int,
    max_query_length: int,
) -> None:
    """Writes the files into a checkpoint's folder, in which config.json and the encoder's weights are.

    A text is cut to the positions that there are: of a document that training cut into chunks, the beginning is
    encoded. Where texts are lowercased, the name of a special token in one, like [SEP], is an ordinary word.
    """

    def write(name: str, content: Any) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    longest = longest_sequence(config)
    passage_length, query_length = min(max_seq_length, longest), min(max_query_length, longest)
    lengths = {"max_seq_length": max(passage_length, query_length)}
    for name, length in (("query_length", query_length), ("document_length", passage_length)):
        lengths |= {name: length} if length < lengths["max_seq_length"] else {}
    reads = {"do_lower_case": reading.lowercase, "tokenizer_args": {"split_special_tokens": reading.lowercase}}
    write(TEXTS, lengths | reads)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    pooling = {key: mode == reading.pooling for key, mode in LEGACY_POOLINGS.items()}
    write("1_Pooling/config.json", {"word_embedding_dimension": config.hidden_size, **pooling})
    for layer, weights in layers:
        modules.append((f"{len(modules)}_{layer.kind}", layer.kind))
        write(f"{modules[-1][0]}/config.json", _layer_config(layer))
        prefix = WEIGHT_PREFIXES[layer.kind]
        named = {f"{prefix}.{name}": weight.contiguous() for name, weight in weights.items()}
        save_file(named, folder / modules[-1][0] / WEIGHTS)
    if reading.normalized:
        modules.append((f"{len(modules)}_Normalize", "Normalize"))
        write(f"{modules[-1][0]}/config.json", {})
    write(
        "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(modules)
        ],
    )
    write(
        SETTINGS,
        {
            "similarity_fn_name": "cosine" if reading.normalized else "dot",
            "prompts": {"query": reading.query_prompt, "document": reading.passage_prompt},
            "default_prompt_name": None,
            OWN_KEY: {"scale": reading.scale, "model_type": reading.model_type},
        },
    )


def _layer_config(layer: HeadLayer) -> dict[str, Any]:
    if layer.kind == "LayerNorm":
        return {"dimension": layer.out_features}
    return {
        "in_features": layer.in_features,
        "out_features": layer.out_features,
        "bias": layer.bias,
        "activation_function": ACTIVATIONS[layer.activation],
    }
