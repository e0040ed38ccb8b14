"""A short program that reads a checkpoint with transformers alone, for its model card.

It has the lines that the checkpoint's reading takes and no others, and gives the vectors that sentence-transformers'
`encode_query` and `encode_document` give.
"""

from model.reading import HeadLayer, Reading
from model.saving import WEIGHT_PREFIXES

POOLING_LINES = {
    "cls": ["    vectors = model(**tokens).last_hidden_state[:, 0]"],
    "mean": [
        '    hidden, mask = model(**tokens).last_hidden_state, tokens["attention_mask"].unsqueeze(-1)',
        "    vectors = (hidden * mask).sum(1) / mask.sum(1)",
    ],
}


def transformers_program(
    reading: Reading, head: tuple[HeadLayer, ...], path: str, query_length: int, passage_length: int
) -> str:
    """The program, which encodes a query and a passage of up to so many tokens and prints their score.

    `path` is the checkpoint, a folder or a hub name, and `head` all layers that follow the pooling: a published type
    has some that its reading does not list.
    """
    text, parameter, prompts = "text", "", ("", "")
    if reading.query_prompt or reading.passage_prompt:
        text, parameter = "prompt + text", ", prompt"
        prompts = f", {reading.query_prompt!r}", f", {reading.passage_prompt!r}"
    if reading.lowercase:
        text = f"({text}).lower()" if parameter else f"{text}.lower()"
    lines = [
        "import torch",
        *(["from safetensors.torch import load_file"] if head else []),
        "from transformers import AutoModel, AutoTokenizer",
        *(["from transformers.utils import cached_file"] if head else []),
        "",
        f'path = "{path}"',
        "model, tokenizer = AutoModel.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)",
    ]
    if head:
        folders = ", ".join(f'"{layer.folder}"' for layer in head)
        lines += [
            f"folders = [{folders}]",
            'layers = [load_file(cached_file(path, f"{folder}/model.safetensors")) for folder in folders]',
        ]
    lines += ["", "@torch.inference_mode()", f"def encode(texts, length{parameter}):"]
    if text != "text":
        lines.append(f"    texts = [{text} for text in texts]")
    lines += [
        '    tokens = tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")',
        *POOLING_LINES[reading.pooling],
        *(f"    vectors = {call}" for number, layer in enumerate(head) for call in layer_calls(layer, number)),
    ]
    if reading.normalized:
        lines.append("    vectors = torch.nn.functional.normalize(vectors, dim=-1)")
    lines += [
        "    return vectors",
        "",
        f'queries = encode(["how do I sort a list"], {query_length}{prompts[0]})',
        f'passages = encode(["Return a new sorted list."], {passage_length}{prompts[1]})',
        "print(queries @ passages.T)",
    ]
    return "\n".join(lines)


def layer_calls(layer: HeadLayer, number: int) -> list[str]:
    """What is called of torch for a layer of the head, whose weights are `layers[number]`."""
    prefix = WEIGHT_PREFIXES[layer.kind]
    weight, bias = (f'layers[{number}]["{prefix}.{name}"]' for name in ("weight", "bias"))
    if layer.kind == "LayerNorm":
        return [f"torch.nn.functional.layer_norm(vectors, [{layer.out_features}], {weight}, {bias})"]
    linear = f"torch.nn.functional.linear(vectors, {weight}{f', {bias}' if layer.bias else ''})"
    return [linear, *(["torch.tanh(vectors)"] if layer.activation == "Tanh" else [])]
