"""How vectors are read off an encoder, and how a model's makers meant it.

A model that is read otherwise is another, worse model: all-MiniLM-L6-v2 has nDCG@10 0.647 on SciFact by the mean of
all its tokens, of length 1, as it was trained, and 0.518 by its first token. What was meant, sentence-transformers'
files beside the weights say: modules.json (Transformer, Pooling, Dense, LayerNorm, Normalize, in this order),
sentence_bert_config.json and config_sentence_transformers.json. Both generations of these files are read, those of
version 2 and of version 6. What they declare and this project cannot do is told by name, never passed over.

Not here: weights and forward passes (model/encoders.py).
"""

from dataclasses import dataclass
from typing import NoReturn

from utils.runtime.errors import InputError
from utils.stores.files import read_json
from utils.stores.sentence_modules import CURE, SentenceModule, checkpoint_file, read_modules

POOLINGS = ("cls", "mean")
ACTIVATIONS = ("Identity", "Tanh")
SIMILARITIES = {"cosine": True, "dot": False, "dot_product": False}  # whether only directions count
LEGACY_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
SETTINGS, TEXTS = "config_sentence_transformers.json", "sentence_bert_config.json"


@dataclass(frozen=True)
class HeadLayer:
    """A layer that follows the pooling: Dense (`in_features` → `out_features`, then `activation`) or LayerNorm.

    `folder` holds its weights, inside the checkpoint.
    """

    kind: str
    in_features: int
    out_features: int
    bias: bool = True
    activation: str = "Identity"
    folder: str = ""

    def __str__(self) -> str:
        if self.kind == "LayerNorm":
            return "LayerNorm"
        return f"Dense {self.in_features} to {self.out_features}" + (", tanh" if self.activation == "Tanh" else "")


@dataclass(frozen=True)
class Reading:
    """How vectors are read off the last layer.

    `pooling` is cls, the first token's vector, or mean, the mean of all tokens' (special ones too); `head` follows,
    where the checkpoint declares one. `normalized` vectors are then scaled to length 1, so that dot products are
    cosines. The prompts stand right before a text; `lowercase` is of both.
    """

    pooling: str = "cls"
    normalized: bool = False
    query_prompt: str = ""
    passage_prompt: str = ""
    lowercase: bool = False
    head: tuple[HeadLayer, ...] = ()

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise InputError(f"--pooling {self.pooling!r} is unknown; there are {', '.join(POOLINGS)}")

    @property
    def vectors(self) -> str:
        """What embeddings follow from beside weights and tokens, as their manifest has it."""
        return f"{self.pooling}, normalized" if self.normalized else self.pooling

    def __str__(self) -> str:
        parts = [{"cls": "first token", "mean": "mean of all tokens"}[self.pooling], *map(str, self.head)]
        parts += ["length 1"] if self.normalized else []
        for name, prompt in (("queries", self.query_prompt), ("passages", self.passage_prompt)):
            parts += [f"{name} after {prompt!r}"] if prompt else []
        return ", ".join([*parts, "lowercased"] if self.lowercase else parts)


def declared_reading(checkpoint: str, cache_dir: str | None = None) -> Reading | None:
    """What the own files of a checkpoint (a folder or a hub name) say; None where it has no modules.json.

    `InputError` names the module, pooling, activation, similarity or setting that cannot be done here.
    """
    modules = read_modules(checkpoint, cache_dir)
    if not modules:
        return None
    kinds = [module.kind for module in modules]
    if kinds[:2] != ["Transformer", "Pooling"]:
        _refuse(modules[0], f"modules.json begins with {' and '.join(kinds[:2])}, not with Transformer and Pooling")
    head, normalized = [], False
    for module in modules[2:]:
        if module.kind == "Normalize" and not normalized:
            normalized = True
        elif module.kind in HEAD_LAYERS and not normalized:
            head.append(HEAD_LAYERS[module.kind](module))
        else:
            _refuse(module, f"the module {module.kind}{' after Normalize' if normalized else ''}")
    query_prompt, passage_prompt, has_cosine = _settings(checkpoint, cache_dir)
    texts = _read(checkpoint, TEXTS, cache_dir)
    return Reading(
        _pooling(modules[1]),
        normalized or has_cosine,
        query_prompt,
        passage_prompt,
        bool(texts.get("do_lower_case", False)),  # else the tokenizer does it, where it is done
        tuple(head),
    )


def _refuse(module: SentenceModule, what: str) -> NoReturn:
    raise InputError(f"{what}: this cannot be done here", module.place)


def _read(checkpoint: str, name: str, cache_dir: str | None) -> dict:
    path = checkpoint_file(checkpoint, name, cache_dir)
    return read_json(path, CURE) if path else {}


def _pooling(module: SentenceModule) -> str:
    """The one pooling that a Pooling module asks for."""
    config = module.config
    if not config.get("include_prompt", True):
        _refuse(module, "the prompt is left out of the pooling (include_prompt: false)")
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for key, mode in LEGACY_POOLINGS.items() if config.get(key)] or ["mean"]
    modes = modes if isinstance(modes, list) else [modes]
    if len(modes) != 1 or modes[0] not in POOLINGS:
        _refuse(module, f"{' + '.join(map(str, modes))} pooling")
    return modes[0]


def _dense(module: SentenceModule) -> HeadLayer:
    config = module.config
    activation = str(config.get("activation_function") or "Identity").rpartition(".")[2]
    if activation not in ACTIVATIONS:
        _refuse(module, f"the activation {activation}")
    if config.get("use_residual") or config.get("module_input_name", "sentence_embedding") != "sentence_embedding":
        _refuse(module, "a layer that reads something else than the pooled vector")
    sizes = _sizes(module, "in_features", "out_features")
    return HeadLayer("Dense", *sizes, bool(config.get("bias", True)), activation, module.folder)


def _layer_norm(module: SentenceModule) -> HeadLayer:
    (size,) = _sizes(module, "dimension")
    return HeadLayer("LayerNorm", size, size, folder=module.folder)


HEAD_LAYERS = {"Dense": _dense, "LayerNorm": _layer_norm}


def _sizes(module: SentenceModule, *names: str) -> list[int]:
    sizes = [module.config.get(name) for name in names]
    if not all(type(size) is int and size > 0 for size in sizes):
        raise InputError(f"its config.json lacks {' or '.join(names)}, a number above 0; {CURE}", module.place)
    return sizes


def _settings(checkpoint: str, cache_dir: str | None) -> tuple[str, str, bool]:
    """The prompts before queries and before passages, and whether vectors are compared by cosine.

    Cosine is the library's own way where nothing is declared. A prompt for passages may have the name document or
    passage.
    """
    settings = _read(checkpoint, SETTINGS, cache_dir)
    place = f"{checkpoint}/{SETTINGS}"
    if settings.get("truncate_dim"):
        raise InputError(f"cuts vectors to {settings['truncate_dim']} dimensions: this cannot be done here", place)
    similarity = str(settings.get("similarity_fn_name") or "cosine")
    if similarity not in SIMILARITIES:
        raise InputError(f"compares vectors by {similarity}: this cannot be done here", place)
    prompts = settings.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
        raise InputError(f"prompts are no texts by their names; {CURE}", place)
    passage = prompts.get("document") or prompts.get("passage") or ""
    return prompts.get("query") or "", passage, SIMILARITIES[similarity]
