"""How a text becomes a vector and two vectors a score, and where that is said.

A model that is read otherwise than its makers meant is another, worse model: all-MiniLM-L6-v2 has nDCG@10 0.647 on
SciFact by the mean of all its tokens, of length 1, as it was trained, and 0.518 by its first token. So all scripts
find the reading alike (`find_reading`): flags come first; then, with --model_type auto, the checkpoint's own files,
as sentence-transformers 2 to 6 write them (modules.json, sentence_bert_config.json,
config_sentence_transformers.json); then the model type. Published types fix all of it:

    rdot_nll               RoBERTa's first token, a linear layer to 768, LayerNorm    (ANCE FirstP, arXiv:2007.00808)
    rdot_nll_multi_chunk   the same; a document is cut into chunks of 512 tokens,     (ANCE MaxP)
                           and its best chunk scores
    rdot_nll_condenser     BERT's first token as it is, of lowercased text            (COCO-DR, arXiv:2210.15212)

What a checkpoint declares and this project cannot do is refused by name, never passed over.

Not here: weights and forward passes (model/encoders.py), and how a reading is saved (model/saving.py).
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from utils.runtime.errors import InputError
from utils.runtime.logs import say_once
from utils.runtime.plain_text import printable
from utils.stores.files import read_json
from utils.stores.pretrained import pretrained_config
from utils.stores.sentence_modules import (
    CURE,
    SentenceModule,
    checkpoint_file,
    declaration,
    read_modules,
    weight_names,
)
from utils.stores.token_store import Preparation

AUTO = "auto"
POOLINGS = ("cls", "mean")
ACTIVATIONS = {"Identity": "torch.nn.modules.linear.Identity", "Tanh": "torch.nn.modules.activation.Tanh"}
SIMILARITIES = {"cosine": True, "dot": False, "dot_product": False}  # whether only directions count
LEGACY_POOLINGS = {  # which all versions still read
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
SETTINGS, TEXTS = "config_sentence_transformers.json", "sentence_bert_config.json"
OLD_TEXTS = [  # what the library called it once, by the architecture, and still reads
    f"sentence_{architecture}_config.json" for architecture in ("roberta", "distilbert", "camembert", "xlm-roberta")
]
TOKENIZER = "tokenizer_config.json"
# Of a tokenizer, those that change no ordinary text's tokens.
HARMLESS_ARGUMENTS = {"split_special_tokens", "trust_remote_code", "use_fast", "revision", "padding_side"}
UNLIMITED = 10**9  # transformers has a length beyond it where a tokenizer has none
OWN_KEY = "ance"  # in SETTINGS: what only this project reads, {"scale": 20.0, "model_type": "auto"}
LARGEST_SIZE = 2**20  # of a vector
COSINE_SCALE = 20.0  # a temperature of 0.05, sentence-transformers' default too


@dataclass(frozen=True)
class ModelType:
    """A published way to read an architecture: by its first token, compared by dot product.

    `chunk_length` (tokens) is where documents are cut, None: never.
    """

    architecture: str  # `model_type` of transformers' configuration
    ance_head: bool = False
    lowercase: bool = False
    chunk_length: int | None = None


MODEL_TYPES = {
    "rdot_nll": ModelType("roberta", ance_head=True),
    "rdot_nll_multi_chunk": ModelType("roberta", ance_head=True, chunk_length=512),
    "rdot_nll_condenser": ModelType("bert", lowercase=True),
}


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
    """How vectors are read off the last layer, and how they are compared.

    `pooling` is cls, the first token's vector, or mean, the mean of all tokens' (special ones too); `head` follows,
    where the checkpoint declares one (that of a published `model_type` is known by the type). `normalized` vectors
    are then scaled to length 1, so that dot products are cosines. The loss multiplies scores with `scale` (1 over the
    temperature), search does not: by default 1, or 20 for normalised vectors. The prompts stand right before a text;
    `lowercase` is of both.
    """

    pooling: str = "cls"
    normalized: bool = False
    query_prompt: str = ""
    passage_prompt: str = ""
    lowercase: bool = False
    head: tuple[HeadLayer, ...] = ()
    scale: float | None = None
    model_type: str = AUTO

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise InputError(f"--pooling {self.pooling!r} is unknown; there are {', '.join(POOLINGS)}")
        if self.scale is None:
            object.__setattr__(self, "scale", COSINE_SCALE if self.normalized else 1.0)
        if not 0 < self.scale < math.inf:
            raise InputError(f"--scale is {self.scale:g}; a number above 0 is needed")
        if self.chunk_length and self.passage_prompt:
            raise InputError(
                f"--model_type {self.model_type} cuts documents into chunks, of which the first alone would have the "
                f"prompt {self.passage_prompt!r}; give no --passage_prompt"
            )

    @property
    def chunk_length(self) -> int | None:
        """The tokens of a passage that are encoded at once, where longer ones are cut; None where none is."""
        return MODEL_TYPES[self.model_type].chunk_length if self.model_type != AUTO else None

    @property
    def vectors(self) -> str:
        """What embeddings follow from beside weights and tokens, as their manifest has it."""
        head = map(str, self.head if self.model_type == AUTO else ())
        return ", ".join([self.pooling, *head, *(["normalized"] if self.normalized else [])])

    @property
    def queries(self) -> Preparation:
        """What is done to a query before it is tokenized."""
        return Preparation(self.query_prompt, self.lowercase)

    @property
    def passages(self) -> Preparation:
        """The same of a passage."""
        return Preparation(self.passage_prompt, self.lowercase)

    def __str__(self) -> str:
        of_type = self.model_type != AUTO and MODEL_TYPES[self.model_type].ance_head
        parts = [{"cls": "first token", "mean": "mean of all tokens"}[self.pooling]]
        parts += ["ANCE's head"] if of_type else map(str, self.head)
        parts += ["length 1"] if self.normalized else []
        parts += [f"scale {self.scale:g}"] if self.scale != 1 else []
        for name, prompt in (("queries", self.query_prompt), ("passages", self.passage_prompt)):
            parts += [f"{name} after {prompt!r}"] if prompt else []
        parts += ["lowercased"] if self.lowercase else []
        parts += [f"documents in chunks of {self.chunk_length} tokens"] if self.chunk_length else []
        return ", ".join(parts)


def find_reading(
    checkpoint: str,
    model_type: str,
    *,
    pooling: str | None = None,
    normalize: bool | None = None,
    scale: float | None = None,
    query_prompt: str | None = None,
    passage_prompt: str | None = None,
    lowercase: bool | None = None,
    cache_dir: str | None = None,
) -> Reading:
    """How a checkpoint (a folder or a hub name) is read: by flags, where they are given, by its files, by its type.

    The reading's `model_type` is auto or a published type: where auto was asked for and the checkpoint declares
    nothing, that is rdot_nll_condenser for a BERT and rdot_nll for a RoBERTa with ANCE's head. `InputError` where the
    checkpoint declares what cannot be done, and where nothing says how it is read.
    """
    if model_type == AUTO:
        declared = declared_reading(checkpoint, cache_dir)
        reading = declared or _undeclared(checkpoint, cache_dir, pooling)
    else:
        reading, declared = published_reading(model_type), None
        try:
            declared = declared_reading(checkpoint, cache_dir)
        except InputError as error:
            say_once(f"warning: this model was made for something else than is done with it here: {error}")
    if scale is None and normalize in (None, reading.normalized):
        scale = reading.scale  # else it is by default that of the other comparison
    given = {
        "pooling": pooling,
        "normalized": normalize,
        "query_prompt": query_prompt,
        "passage_prompt": passage_prompt,
        "lowercase": lowercase,
    }
    reading = replace(reading, scale=scale, **{name: value for name, value in given.items() if value is not None})
    if declared and _contradict(reading, declared):
        say_once(
            f"warning: {checkpoint} was made to be read by: {declared} (as its own files say). Here it is read by: "
            f"{reading}. Read otherwise than its makers meant, it is a worse model; --model_type {AUTO}, without "
            "other flags, reads it as they did"
        )
    return reading


def _contradict(reading: Reading, declared: Reading) -> bool:
    """Whether a checkpoint is read otherwise than it declares. A prompt where it has none contradicts nothing."""
    return (reading.pooling, reading.normalized) != (declared.pooling, declared.normalized) or any(
        meant and given != meant
        for given, meant in (
            (reading.query_prompt, declared.query_prompt),
            (reading.passage_prompt, declared.passage_prompt),
        )
    )


def published_reading(model_type: str) -> Reading:
    """What a published model type says; `InputError` with the names that there are."""
    if model_type not in MODEL_TYPES:
        raise InputError(f"--model_type {model_type!r} is unknown; there are {', '.join([AUTO, *MODEL_TYPES])}")
    return Reading(lowercase=MODEL_TYPES[model_type].lowercase, model_type=model_type)


def _undeclared(checkpoint: str, cache_dir: str | None, pooling: str | None) -> Reading:
    """Of a checkpoint without modules.json: the published type that it is of, or what the flags say."""
    architecture = pretrained_config(checkpoint, cache_dir).model_type
    if architecture == "roberta" and {"embeddingHead.weight", "norm.weight"} <= weight_names(checkpoint, cache_dir):
        return published_reading("rdot_nll")
    if pooling is not None:
        return Reading(pooling)
    if Path(checkpoint, "1_Pooling").is_dir():
        raise InputError(
            "has 1_Pooling, and modules.json is missing, which says how it is read; copy or download the checkpoint "
            "again, or give --pooling",
            checkpoint,
        )
    if architecture == "bert":
        reading = published_reading("rdot_nll_condenser")
        say_once(
            f"{checkpoint} has no modules.json and is read as {reading.model_type} ({reading}); give --pooling mean "
            "if its makers meant that"
        )
        return reading
    raise InputError(
        "does not say how it is meant to be read (it has no modules.json). Its authors do: give --pooling cls or "
        "--pooling mean, and --normalize 1 if they compare by cosine",
        checkpoint,
    )


def declared_reading(checkpoint: str, cache_dir: str | None = None) -> Reading | None:
    """What the own files of a checkpoint (a folder or a hub name) say; None where it has no modules.json.

    `InputError` names the module, pooling, activation, similarity or setting that cannot be done here.
    """
    modules = read_modules(checkpoint, cache_dir)
    if not modules:
        return None
    settings = _read(checkpoint, SETTINGS, cache_dir)
    own_type, scale = _own_settings(settings, f"{checkpoint}/{SETTINGS}")
    kinds = [module.kind for module in modules]
    if kinds[:2] != ["Transformer", "Pooling"]:
        _refuse(modules[0], f"modules.json begins with {' and '.join(kinds[:2])}, not with Transformer and Pooling")
    if modules[0].folder:
        _refuse(modules[0], "modules.json has the encoder in a folder of its own")
    head, normalized = [], False
    for module in modules[2:]:
        if module.kind == "Normalize" and not normalized:
            normalized = True
        elif module.kind in HEAD_LAYERS and not normalized:
            head.append(HEAD_LAYERS[module.kind](module))
        elif module.kind != "Dropout":  # which does something in training only
            _refuse(module, f"the module {module.kind}{' after Normalize' if normalized else ''}")
    query_prompt, passage_prompt, has_cosine = _settings(settings, f"{checkpoint}/{SETTINGS}")
    texts, place = _read_texts(checkpoint, cache_dir)
    _check_texts(texts, place)
    return Reading(
        pooling=_pooling(modules[1]),
        normalized=normalized or has_cosine,
        query_prompt=query_prompt,
        passage_prompt=passage_prompt,
        lowercase=bool(texts.get("do_lower_case", False)),  # else the tokenizer does it, where it is done
        head=tuple(head) if own_type == AUTO else (),
        scale=scale,
        model_type=own_type,
    )


def declared_lengths(checkpoint: str, cache_dir: str | None = None) -> tuple[int, int] | None:
    """The tokens, special ones included, that passages and queries are to be cut to, as far as there are positions.

    They are those of sentence_bert_config.json (or its older names), else the tokenizer's, else without limit. None
    where there is no modules.json.
    """
    if not read_modules(checkpoint, cache_dir):
        return None
    texts, place = _read_texts(checkpoint, cache_dir)
    longest = texts.get("max_seq_length") or _read(checkpoint, TOKENIZER, cache_dir).get("model_max_length")
    lengths = [texts.get(f"{name}_length") or longest for name in ("document", "query")]
    if not all(isinstance(length, int | float | None) for length in lengths):
        raise InputError(f"has a length that is no number: {lengths}; {CURE}", place)
    passages, queries = (int(min(length or UNLIMITED, UNLIMITED)) for length in lengths)
    if min(passages, queries) < 1:
        raise InputError(f"has a length below 1: {lengths}; {CURE}", place)
    return passages, queries


def _refuse(module: SentenceModule, what: str) -> NoReturn:
    raise InputError(f"{printable(what)}: this cannot be done here", module.place)


def _read(checkpoint: str, name: str, cache_dir: str | None) -> dict:
    find = checkpoint_file if name in OLD_TEXTS else declaration
    path = find(checkpoint, name, cache_dir)
    return read_json(path, CURE) if path else {}


def _read_texts(checkpoint: str, cache_dir: str | None) -> tuple[dict, str]:
    """The lengths and the lowercasing that a checkpoint declares, and the file that does."""
    for name in (TEXTS, *OLD_TEXTS):
        if texts := _read(checkpoint, name, cache_dir):
            return texts, f"{checkpoint}/{name}"
    return {}, f"{checkpoint}/{TEXTS}"


def _check_texts(texts: dict, place: str) -> None:
    """`InputError` where texts are to become other tokens than the tokenizer makes of them by itself."""
    for name in ("query_expansion", "tokenizer_name_or_path", "processing_kwargs"):
        value = texts.get(name)
        if any(value.values()) if isinstance(value, dict) else value:
            raise InputError(f"has {name}, {printable(str(value))[:80]}: this cannot be done here", place)
    for name in ("tokenizer_args", "processor_kwargs"):
        arguments = texts.get(name) or {}
        if not isinstance(arguments, dict):
            raise InputError(f"{name} are no settings by their names; {CURE}", place)
        if others := sorted(set(arguments) - HARMLESS_ARGUMENTS):
            raise InputError(f"has {name} {printable(', '.join(others))[:80]}: this cannot be done here", place)


def _pooling(module: SentenceModule) -> str:
    """The one pooling that a Pooling module asks for."""
    config = module.config
    if not config:
        raise InputError(f"its config.json, which says the pooling, is missing or empty; {CURE}", module.place)
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
    activation = str(config.get("activation_function", "Tanh")).rpartition(".")[2]  # the library's default
    if activation not in ACTIVATIONS:
        _refuse(module, f"the activation {activation}")
    names = [config.get(name) or "sentence_embedding" for name in ("module_input_name", "module_output_name")]
    if config.get("use_residual") or names != ["sentence_embedding"] * 2:
        _refuse(module, "a layer that is not from the pooled vector to the text's")
    sizes = _sizes(module, "in_features", "out_features")
    return HeadLayer("Dense", *sizes, bool(config.get("bias", True)), activation, module.folder)


def _layer_norm(module: SentenceModule) -> HeadLayer:
    (size,) = _sizes(module, "dimension")
    return HeadLayer("LayerNorm", size, size, folder=module.folder)


HEAD_LAYERS = {"Dense": _dense, "LayerNorm": _layer_norm}


def _sizes(module: SentenceModule, *names: str) -> list[int]:
    sizes = [module.config.get(name) for name in names]
    if not all(type(size) is int and 0 < size <= LARGEST_SIZE for size in sizes):
        raise InputError(
            f"its config.json lacks {' or '.join(names)}, a number from 1 to {LARGEST_SIZE:,}; {CURE}", module.place
        )
    return sizes


def _settings(settings: dict, place: str) -> tuple[str, str, bool]:
    """The prompts before queries and before passages, and whether vectors are compared by cosine.

    Cosine is the library's own way where nothing is declared. A prompt for passages may have the name document or
    passage.
    """
    if settings.get("truncate_dim"):
        raise InputError(f"cuts vectors to {settings['truncate_dim']!r} dimensions: this cannot be done here", place)
    similarity = str(settings.get("similarity_fn_name") or "cosine")
    if similarity not in SIMILARITIES:
        raise InputError(f"compares vectors by {printable(similarity)}: this cannot be done here", place)
    prompts = settings.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
        raise InputError(f"prompts are no texts by their names; {CURE}", place)
    query, passage = prompts.get("query") or "", prompts.get("document") or prompts.get("passage") or ""
    if left_over := [name for name, text in prompts.items() if text and name not in ("query", "document", "passage")]:
        names = ", ".join(map(repr, left_over))
        say_once(
            f"note: {place} has prompts of other names than query, document and passage ({names}), which are not "
            "used; give --query_prompt and --passage_prompt if they are meant for search"
        )
    if passage and not prompts.get("document"):
        say_once(
            f"note: {place} has a prompt named passage, which is put before passages here; sentence-transformers 6 "
            'puts none there. Give --passage_prompt "" to do as it does'
        )
    return query, passage, SIMILARITIES[similarity]


def _own_settings(settings: dict, place: str) -> tuple[str, float | None]:
    """The model type and the scale that a checkpoint of this project notes; auto and None in others."""
    own = settings.get(OWN_KEY, {})
    model_type, scale = (own.get("model_type", AUTO), own.get("scale")) if isinstance(own, dict) else (None, None)
    if model_type not in (AUTO, *MODEL_TYPES) or not (
        scale is None or (isinstance(scale, int | float) and 0 < scale < math.inf)
    ):
        raise InputError(f"{OWN_KEY} is {own!r:.80}, which is not as it was saved; {CURE}", place)
    return model_type, scale
