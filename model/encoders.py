"""The encoders: a text's vector is read off its first token, and a score is a dot product of two vectors.

    rdot_nll               RoBERTa, then a linear head to 768 and LayerNorm       (ANCE FirstP, arXiv:2007.00808)
    rdot_nll_multi_chunk   the same; a document is cut into chunks of 512 tokens,
                           and its best chunk scores                              (ANCE MaxP)
    rdot_nll_condenser     BERT, the last layer's [CLS] vector as it is           (COCO-DR, arXiv:2210.15212)

Models of others that are evaluated here may be meant otherwise (sentence-transformers' all-MiniLM-L6-v2: the mean of
all tokens' vectors, of length 1). `Reading` says so; training always reads the first token.

One sequence gives one vector everywhere. That a document may be several sequences is a matter of how rows are cut
into sequences and scores are joined, not of the encoder.

The classes are transformers' own kind, with the names of the public ANCE checkpoints (`roberta.*`,
`embeddingHead.*`, `norm.*`), so that `from_pretrained` reads those and any plain BERT or RoBERTa checkpoint, and
what `save_pretrained` writes loads with `AutoModel`.
"""

from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import BertModel, PreTrainedConfig, PreTrainedTokenizerFast, RobertaModel
from transformers.models.bert.modeling_bert import BertPreTrainedModel
from transformers.models.roberta.modeling_roberta import RobertaPreTrainedModel
from transformers.utils import logging as transformers_logging

from model.dropout import replace_dropout
from model.families import find_family
from model.forward import pooled_vectors
from model.reading import Reading, declared_reading
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


def finish(reading: Reading, vectors: Tensor) -> Tensor:
    """The vectors (n, dimensions) that scores are products of, from those that the encoder ends with."""
    return nn.functional.normalize(vectors, dim=-1) if reading.normalized else vectors


class RobertaDot(RobertaPreTrainedModel):
    """RoBERTa's first token, a linear head to 768 dimensions and LayerNorm. `PackedTokens` → (n, 768).

    `leave_out_head` is for evaluating models of others, which have none: then (n, hidden size).
    """

    def __init__(self, config) -> None:
        super().__init__(config)
        self.reading = Reading()
        self.family = find_family(config)
        self.roberta = RobertaModel(config, add_pooling_layer=False)
        self.embeddingHead = nn.Linear(config.hidden_size, EMBEDDING_DIM)
        self.norm = nn.LayerNorm(EMBEDDING_DIM)
        replace_dropout(self)
        self.post_init()

    def leave_out_head(self) -> None:
        self.embeddingHead = self.norm = None

    @property
    def embedding_dim(self) -> int:
        return EMBEDDING_DIM if self.head else self.config.hidden_size

    @property
    def head(self) -> tuple[nn.Linear, nn.LayerNorm] | None:
        """What follows the pooled vector."""
        return None if self.embeddingHead is None else (self.embeddingHead, self.norm)

    def forward(self, tokens: PackedTokens) -> Tensor:
        pooled = pooled_vectors(self.roberta, self.family, tokens, self.reading.pooling)  # n, H
        if self.head is None:
            return finish(self.reading, pooled)
        with torch.autocast(pooled.device.type, enabled=False):  # one row a text: nothing to gain, digits to lose
            return finish(self.reading, self.norm(self.embeddingHead(pooled.to(self.norm.weight.dtype))))


class BertDot(BertPreTrainedModel):
    """BERT's [CLS] vector of the last layer. `PackedTokens` → (n, hidden size)."""

    def __init__(self, config) -> None:
        super().__init__(config)
        self.reading = Reading()
        self.family = find_family(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        replace_dropout(self)
        self.post_init()

    @property
    def embedding_dim(self) -> int:
        return self.config.hidden_size

    @property
    def head(self) -> None:
        return None

    def forward(self, tokens: PackedTokens) -> Tensor:
        return finish(self.reading, pooled_vectors(self.bert, self.family, tokens, self.reading.pooling))


Encoder = RobertaDot | BertDot

transformers_logging.disable_progress_bar()  # for files of one shard they tell nothing


@dataclass(frozen=True)
class ModelType:
    """An encoder class and, where a document is cut, the chunk length in tokens."""

    encoder: type[Encoder]
    chunk_length: int | None = None


MODEL_TYPES = {
    "rdot_nll": ModelType(RobertaDot),
    "rdot_nll_multi_chunk": ModelType(RobertaDot, chunk_length=512),
    "rdot_nll_condenser": ModelType(BertDot),
}


def find_model_type(name: str) -> ModelType:
    """The entry of `MODEL_TYPES`; `InputError` with the names that there are."""
    if name not in MODEL_TYPES:
        raise InputError(f"--model_type {name!r} is unknown; there are {', '.join(MODEL_TYPES)}")
    return MODEL_TYPES[name]


def load_encoder(
    model_type: str, checkpoint: str, cache_dir: str | None = None, reading: Reading | None = None
) -> tuple[Encoder, PreTrainedTokenizerFast]:
    """Loads a checkpoint (a folder or a hub name): the encoder, in float32, and its tokenizer.

    `reading` is for evaluating models that are meant to be read otherwise than by their first token.
    The head of a checkpoint that sentence-transformers has saved again is read from the folders of its modules. A
    plain RoBERTa has no `embeddingHead` and `norm`: these are the only weights that may be missing, and are named in
    a warning. They start at random but the same in every process and every script, which all load for themselves;
    with the mean of all tokens, by which nothing is trained here, the head is left out instead.
    Code that a checkpoint brings along is never run. Raises `InputError` for a checkpoint of another architecture, a
    damaged one, one that lacks other weights or has them in another shape, and one whose tokenizer does not do for
    it (`utils.stores.pretrained`).
    """
    encoder_class = find_model_type(model_type).encoder
    check_weights(checkpoint)
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        config = pretrained_config(checkpoint, cache_dir)
        if not isinstance(config, encoder_class.config_class):
            raise InputError(
                f"is a {config.model_type} checkpoint, and --model_type {model_type} wants "
                f"{encoder_class.config_class.model_type}",
                checkpoint,
            )
        if getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False):
            raise InputError("is a decoder, whose tokens see those before them only; give an encoder", checkpoint)
        tokenizer = pretrained_tokenizer(checkpoint, cache_dir)
        encoder, missing = _load_weights(encoder_class, config, checkpoint, cache_dir)
    finally:
        transformers_logging.set_verbosity(verbosity)
    encoder.reading = reading or encoder.reading
    compare_with_meant(encoder.reading, checkpoint, cache_dir)
    if encoder.reading.pooling == "cls":
        check_first_token(tokenizer, checkpoint)
    if encoder.head is None:
        for module in layers_after_pooling(checkpoint, cache_dir):
            say(f"warning: {module.place} ({module.kind}) is left out: --model_type {model_type} has no such layer")
    elif missing and (layers := layers_after_pooling(checkpoint, cache_dir)):
        read_head(encoder, layers, checkpoint)
    elif missing and encoder.reading.pooling == "mean":
        encoder.leave_out_head()
        say(f"{checkpoint} has no {', '.join(missing)}: its vectors are the mean of the last layer's")
    elif missing:
        say(f"warning: {checkpoint} has no {', '.join(missing)}: they start at random")
    return encoder, tokenizer


def compare_with_meant(reading: Reading, checkpoint: str, cache_dir: str | None = None) -> None:
    """Says where a checkpoint's own files ask for another reading than this: it is then another, worse model."""
    try:
        meant = declared_reading(checkpoint, cache_dir)
    except InputError as error:
        say_once(f"warning: this model was made for something else than is done with it here: {error}")
        return
    if meant and (meant.vectors != reading.vectors or meant.query_prompt or meant.passage_prompt):
        say_once(
            f"warning: {checkpoint} was made to be read by: {meant} (modules.json). Here it is read by: {reading}. "
            "Read otherwise than its makers meant, it is a worse model; evaluation and search take --pooling and "
            "--normalize"
        )


def _load_weights(
    encoder_class: type[Encoder], config: PreTrainedConfig, checkpoint: str, cache_dir: str | None
) -> tuple[Encoder, list[str]]:
    """The encoder, in float32, and the names of the head's weights that the checkpoint lacks, which are random."""
    with loading(checkpoint), torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(NEW_WEIGHTS_SEED)
        try:
            encoder, found = encoder_class.from_pretrained(
                checkpoint,
                config=config,
                cache_dir=cache_dir,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
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
    missing = sorted(found["missing_keys"])
    if any(not name.startswith(("embeddingHead.", "norm.")) for name in missing):
        raise InputError(f"lacks weights of the encoder: {', '.join(missing[:5])} …; it is another model", checkpoint)
    return encoder, missing


def layers_after_pooling(checkpoint: str, cache_dir: str | None = None) -> list[SentenceModule]:
    """The layers that sentence-transformers puts a checkpoint's pooled vector through; none in a model of others."""
    return [
        module
        for module in read_modules(checkpoint, cache_dir)
        if module.kind not in ("Transformer", "Pooling", "Normalize", "Dropout")  # Normalize: see `Reading`
    ]


def read_head(encoder: RobertaDot, layers: list[SentenceModule], checkpoint: str) -> None:
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
    for module, name, part in zip(layers, ("linear", "norm"), encoder.head, strict=True):
        weights = {key.removeprefix(f"{name}."): value for key, value in module.weights().items()}
        found, expected = ({k: tuple(v.shape) for k, v in one.items()} for one in (weights, part.state_dict()))
        if found != expected:
            raise InputError(
                f"holds weights {found}, and the model's are {expected}: it is another model", module.place
            )
        part.load_state_dict(weights)


def load_store_encoder(
    model_type: str,
    checkpoint: str,
    cache_dir: str | None = None,
    reading: Reading | None = None,
    *,
    batch_size: int,
    device: torch.device,
    precision: Precision,
    dtype: str,
) -> StoreEncoder:
    """A checkpoint that is ready to encode token stores; see `load_encoder` and `StoreEncoder`."""
    encoder, tokenizer = load_encoder(model_type, checkpoint, cache_dir, reading)
    weights, chunk_length = fingerprint_of_weights(checkpoint, encoder), find_model_type(model_type).chunk_length
    encoder = encoder.to(device).eval()
    return StoreEncoder(encoder, tokenizer, weights, chunk_length, batch_size, device, precision, dtype)


def _weights_file(checkpoint: str) -> Path:
    """The file of a checkpoint's weights, or the checkpoint itself where that cannot be told (on the hub, shards)."""
    files = (Path(checkpoint, name) for name in ("model.safetensors", "pytorch_model.bin"))
    return next((path for path in files if path.is_file()), Path(checkpoint))


def _reason(error: Exception) -> str:
    """The first line of what a reader of weights says; torch's goes on with advice that must not be followed."""
    return f": {first_line(error)}" if isinstance(error, SafetensorError) else ""
