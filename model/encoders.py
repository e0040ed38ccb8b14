"""The encoder: transformers' model of one of the families, and how vectors are read off it.

    tokens ──family──▶ last hidden states ──pooling──▶ one vector a text ──head──▶ ──length 1──▶ the vector

The family is told by the checkpoint's configuration (model/families/), everything after it by the `Reading`
(model/reading.py). One sequence gives one vector everywhere. That a document may be several sequences is a matter of
how rows are cut into sequences and scores are joined, not of the encoder.

A checkpoint is any that transformers loads. The public ANCE checkpoints keep the head among the weights, under names
of their own (`roberta.*`, `embeddingHead.*`, `norm.*`); others have a folder for each layer that follows the pooling,
as sentence-transformers saves them.
"""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast, RobertaModel
from transformers.models.roberta.modeling_roberta import RobertaPreTrainedModel
from transformers.utils import logging as transformers_logging

from model.dropout import replace_dropout
from model.families import find_family
from model.forward import pooled_vectors
from model.reading import AUTO, MODEL_TYPES, HeadLayer, Reading
from model.saving import WEIGHT_PREFIXES, write_sentence_files
from utils.batching import PackedTokens
from utils.mining.encoding import StoreEncoder
from utils.runtime.errors import InputError, first_line
from utils.runtime.logs import say, say_once
from utils.runtime.precision import Precision
from utils.stores.checkpoint import check_weights, fingerprint_of_weights
from utils.stores.pretrained import check_first_token, loading, pretrained_config, pretrained_tokenizer
from utils.stores.sentence_modules import SentenceModule, read_modules

EMBEDDING_DIM = 768
NEW_WEIGHTS_SEED = 0

transformers_logging.disable_progress_bar()  # for files of one shard they tell nothing


def ance_head(hidden_size: int) -> tuple[HeadLayer, HeadLayer]:
    """ANCE's: a linear layer to 768 and LayerNorm."""
    return HeadLayer("Dense", hidden_size, EMBEDDING_DIM), HeadLayer("LayerNorm", EMBEDDING_DIM, EMBEDDING_DIM)


def make_head(layers: tuple[HeadLayer, ...]) -> nn.Sequential:
    """Modules of these layers, with new weights, one each; of an activation, one more."""
    modules = []
    for layer in layers:
        if layer.kind == "LayerNorm":
            modules.append(nn.LayerNorm(layer.out_features))
        else:
            modules.append(nn.Linear(layer.in_features, layer.out_features, layer.bias))
            modules += [nn.Tanh()] if layer.activation == "Tanh" else []
    return nn.Sequential(*modules)


class Encoder(nn.Module):
    """Texts to vectors, `PackedTokens` of n texts → (n, `embedding_dim`), in float32 or, of float64 weights, float64.

    `model` is transformers' bare encoder, `head` has a module with weights for each layer of the reading's head.
    Without `head`, its weights are new.
    """

    def __init__(self, model: PreTrainedModel, reading: Reading, head: nn.Sequential | None = None) -> None:
        super().__init__()
        self.family = find_family(model.config)
        self.reading = reading
        self.model = model
        self.head = make_head(reading.head) if head is None else head
        replace_dropout(self)

    @property
    def config(self) -> PreTrainedConfig:
        return self.model.config

    @property
    def embedding_dim(self) -> int:
        return self.reading.head[-1].out_features if self.reading.head else self.config.hidden_size

    def forward(self, tokens: PackedTokens) -> Tensor:
        pooled = pooled_vectors(self.model, self.family, tokens, self.reading.pooling)  # n, H
        with torch.autocast(pooled.device.type, enabled=False):  # one row a text: nothing to gain, digits to lose
            pooled = pooled.to(torch.promote_types(pooled.dtype, torch.float32))
            return self.finish(pooled)

    def finish(self, pooled: Tensor) -> Tensor:
        """What follows the pooling: vectors (n, hidden size) → (n, `embedding_dim`)."""
        vectors = self.head(pooled)
        return nn.functional.normalize(vectors, dim=-1) if self.reading.normalized else vectors

    def with_weights(self, dtype: torch.dtype) -> "Encoder":
        """This encoder, or a copy, not to be trained, whose float32 weights up to the pooling are of this type.

        The head keeps its own, and so does what a model computes with but has not learnt, as rotations' frequencies.
        As under autocast, float64 stays.
        """
        weights = [weight for weight in self.model.parameters() if weight.dtype == torch.float32]
        if dtype == torch.float32 or not weights:
            return self
        cast = {id(weight): nn.Parameter(weight.to(dtype), requires_grad=False) for weight in weights}
        return deepcopy(self, cast)  # takes these for copies of those that are made

    def set_attention_dropout(self, p: float) -> None:
        """Has attention drop a share `p` of its weights in training; the configuration keeps what it says."""
        for layer in self.family.layers(self.model):
            self.family.set_attention_dropout(layer, p)

    @property
    def head_layers(self) -> list[tuple[HeadLayer, nn.Module]]:
        """The layers of the head with the modules that have their weights."""
        with_weights = [module for module in self.head if not isinstance(module, nn.Tanh)]
        return list(zip(self.reading.head, with_weights, strict=True))

    @property
    def keeps_head_with_weights(self) -> bool:
        """Whether the head is saved among the weights, under the names of the public ANCE checkpoints."""
        return self.reading.model_type != AUTO and MODEL_TYPES[self.reading.model_type].ance_head

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes configuration and weights, as transformers loads them; the head's, where they are among those."""
        saved = RobertaDot(self.config, self.model, self.head) if self.keeps_head_with_weights else self.model
        saved.save_pretrained(folder)

    def save_reading(self, folder: Path, max_seq_length: int, max_query_length: int) -> None:
        """Writes beside them what sentence-transformers reads, the weights of the head among it.

        Passages and queries are cut to these lengths (tokens, special ones included).
        """
        layers = [(layer, module.state_dict()) for layer, module in self.head_layers]
        write_sentence_files(folder, self.reading, self.config, layers, max_seq_length, max_query_length)


class RobertaDot(RobertaPreTrainedModel):
    """The names that the public ANCE checkpoints have, to load and save them; as a model it does nothing."""

    def __init__(self, config, roberta: RobertaModel | None = None, head: nn.Sequential | None = None) -> None:
        super().__init__(config)
        self.roberta = roberta or RobertaModel(config, add_pooling_layer=False)
        self.embeddingHead, self.norm = head or make_head(ance_head(config.hidden_size))
        if roberta is None:
            self.post_init()


def load_encoder(
    checkpoint: str, reading: Reading, cache_dir: str | None = None
) -> tuple[Encoder, PreTrainedTokenizerFast]:
    """Loads a checkpoint (a folder or a hub name): the encoder, in float32, and its tokenizer.

    `reading` is how it is read (`find_reading`). A plain RoBERTa that is to be read as ANCE is has no `embeddingHead`
    and `norm`: these are the only weights that may be missing, and are named in a warning. They start at random but
    the same in every process and every script, which all load for themselves.
    Code that a checkpoint brings along is never run. Raises `InputError` for a checkpoint of another architecture, a
    damaged one, one that lacks other weights or has them in another shape, and one whose tokenizer does not do for
    it (`utils.stores.pretrained`).
    """
    check_weights(checkpoint)
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        config = pretrained_config(checkpoint, cache_dir)
        check_architecture(config, reading, checkpoint)
        tokenizer = pretrained_tokenizer(checkpoint, cache_dir)
        load = _load_published if reading.model_type != AUTO else _load_declared
        encoder = load(config, reading, checkpoint, cache_dir)
    finally:
        transformers_logging.set_verbosity(verbosity)
    say_once(f"{checkpoint} is read by: {encoder.reading}")
    if reading.pooling == "cls":
        check_first_token(tokenizer, checkpoint)
    return encoder, tokenizer


def check_architecture(config: PreTrainedConfig, reading: Reading, checkpoint: str) -> None:
    """`InputError` where an encoder of this configuration cannot be read so, or is of no family, or a decoder."""
    wanted = config.model_type if reading.model_type == AUTO else MODEL_TYPES[reading.model_type].architecture
    if config.model_type != wanted:
        raise InputError(
            f"is a {config.model_type} checkpoint, and --model_type {reading.model_type} wants {wanted}; give "
            f"--model_type {AUTO} to read it as its own files say",
            checkpoint,
        )
    find_family(config)
    if getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False):
        raise InputError("is a decoder, whose tokens see those before them only; give an encoder", checkpoint)


def _load_declared(config: PreTrainedConfig, reading: Reading, checkpoint: str, cache_dir: str | None) -> Encoder:
    family = find_family(config)
    model, missing = _load_weights(family.model_class, config, checkpoint, cache_dir, **family.options)
    _refuse_missing(missing, checkpoint)
    with torch.device("meta"):  # what is declared may be of any size, and the weights tell
        head = make_head(reading.head)
    encoder, width = Encoder(model, reading, head), config.hidden_size
    for layer, module in encoder.head_layers:
        own = SentenceModule(layer.kind, layer.folder, {}, checkpoint, cache_dir)
        if layer.in_features != width:
            raise InputError(f"takes vectors of {layer.in_features} numbers, and gets {width}", own.place)
        width = layer.out_features
        load_layer(module, layer, own)
    return encoder


def _load_published(config: PreTrainedConfig, reading: Reading, checkpoint: str, cache_dir: str | None) -> Encoder:
    """With ANCE's head where the type has one: of the weights, of sentence-transformers' folders, or a new one."""
    layers = [  # Normalize is none of them: see `Reading`
        module
        for module in read_modules(checkpoint, cache_dir)
        if module.kind not in ("Transformer", "Pooling", "Normalize", "Dropout")
    ]
    if not MODEL_TYPES[reading.model_type].ance_head:
        encoder = _load_declared(config, reading, checkpoint, cache_dir)
        for module in layers:
            say(
                f"warning: {module.place} ({module.kind}) is left out: --model_type {reading.model_type} has no such "
                "layer"
            )
        return encoder
    weights, missing = _load_weights(RobertaDot, config, checkpoint, cache_dir)
    _refuse_missing([name for name in missing if not name.startswith(("embeddingHead.", "norm."))], checkpoint)
    head = nn.Sequential(weights.embeddingHead, weights.norm)
    encoder = Encoder(weights.roberta, replace(reading, head=ance_head(config.hidden_size)), head)
    if missing and layers:
        _read_ance_head(encoder, layers, checkpoint)
    elif missing:
        say(f"warning: {checkpoint} has no {', '.join(missing)}: they start at random")
    return encoder


def _refuse_missing(names: list[str], checkpoint: str) -> None:
    if names:
        raise InputError(f"lacks weights of the encoder: {', '.join(names[:5])} …; it is another model", checkpoint)


def _load_weights(
    model_class: type[PreTrainedModel], config: PreTrainedConfig, checkpoint: str, cache_dir: str | None, **options
) -> tuple[PreTrainedModel, list[str]]:
    """The model, in float32, and the names of the weights that the checkpoint lacks, which are random."""
    with loading(checkpoint), torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(NEW_WEIGHTS_SEED)
        try:
            model, found = model_class.from_pretrained(
                checkpoint,
                config=config,
                cache_dir=cache_dir,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
                **options,
            )
        except (SafetensorError, UnpicklingError, EOFError, RuntimeError) as error:
            raise InputError(
                f"the weights are damaged ({type(error).__name__}{_reason(error)}); copy or download the checkpoint "
                "again, or remove it where it is one of a run's own",
                _weights_file(checkpoint),
            ) from None
    if found["mismatched_keys"]:
        name, shape, expected = min(found["mismatched_keys"])
        raise InputError(
            f"{name} has shape {tuple(shape)}, and {tuple(expected)} follows from config.json; weights and "
            "configuration are of different models",
            _weights_file(checkpoint),
        )
    return model, sorted(found["missing_keys"])


def _read_ance_head(encoder: Encoder, layers: list[SentenceModule], checkpoint: str) -> None:
    """Gives the encoder the head that sentence-transformers has saved as these layers.

    `InputError` where they are not a linear layer to 768 and LayerNorm, or have other weights than those.
    """
    settings = layers[0].config
    if (
        [module.kind for module in layers] != ["Dense", "LayerNorm"]
        or str(settings.get("activation_function", "Tanh")).rpartition(".")[2] != "Identity"
        or settings.get("use_residual", False)
    ):
        raise InputError(
            f"puts its vectors through {', '.join(module.folder for module in layers)} (modules.json), and this "
            f"model type through a linear layer to {EMBEDDING_DIM} and LayerNorm: it is another model. To begin with "
            "a random head instead, remove modules.json from a copy of it",
            checkpoint,
        )
    for own, (layer, module) in zip(layers, encoder.head_layers, strict=True):
        load_layer(module, layer, own)


def load_layer(module: nn.Module, layer: HeadLayer, own: SentenceModule) -> None:
    """Gives a module of the head the weights that lie in its folder; `InputError` where they are of another layer."""
    prefix = f"{WEIGHT_PREFIXES[layer.kind]}."
    weights = {key.removeprefix(prefix): value for key, value in own.weights().items()}
    found, expected = ({k: tuple(v.shape) for k, v in one.items()} for one in (weights, module.state_dict()))
    if found != expected:
        raise InputError(f"holds weights {found}, and the model's are {expected}: it is another model", own.place)
    module.load_state_dict({name: weight.float() for name, weight in weights.items()}, assign=True)


def load_store_encoder(
    checkpoint: str,
    reading: Reading,
    cache_dir: str | None = None,
    *,
    batch_size: int,
    device: torch.device,
    precision: Precision,
    dtype: str,
) -> StoreEncoder:
    """A checkpoint that is ready to encode token stores; see `load_encoder` and `StoreEncoder`."""
    encoder, tokenizer = load_encoder(checkpoint, reading, cache_dir)
    weights = fingerprint_of_weights(checkpoint, encoder)
    encoder = encoder.to(device).eval()
    return StoreEncoder(encoder, tokenizer, weights, batch_size, device, precision, dtype)


def _weights_file(checkpoint: str) -> Path:
    """The file of a checkpoint's weights, or the checkpoint itself where that cannot be told (on the hub, shards)."""
    files = (Path(checkpoint, name) for name in ("model.safetensors", "pytorch_model.bin"))
    return next((path for path in files if path.is_file()), Path(checkpoint))


def _reason(error: Exception) -> str:
    """The first line of what a reader of weights says; torch's goes on with advice that must not be followed."""
    return f": {first_line(error)}" if isinstance(error, SafetensorError) else ""
