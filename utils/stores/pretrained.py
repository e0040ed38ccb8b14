"""A checkpoint that somebody names, a folder or a model on the hub: where it is, its configuration, its tokenizer.

Whatever loads a checkpoint begins here: tokenizing, mining, training, evaluation and search. What transformers would
load without a word, and a whole run would then be spent on, is refused: a tokenizer that transformers made up, one
with more tokens than the model has embeddings, one that adds no first token. Weights are read elsewhere
(model/encoders.py). Code that a checkpoint brings along is never run.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerFast

from utils.runtime.errors import InputError, first_line
from utils.runtime.hub import quiet_retries

OWN_NAME = re.compile(r"checkpoint-\d+")  # of a folder that training makes; nobody names a model on the hub so
LEARNED_POSITIONS = ("bert", "roberta", "xlm-roberta", "camembert")  # position_embedding_type means something here
GIVE_OWN = (
    "save the tokenizer that the model was trained with into its folder "
    "(AutoTokenizer.from_pretrained(BASE_MODEL).save_pretrained(FOLDER))"
)


def check_place(checkpoint: str) -> None:
    """`InputError` where `checkpoint` is no folder, and cannot be a model's name on the hub either.

    Libraries ask the hub for whatever is no folder, and for minutes where the machine has no network.
    """
    path = Path(checkpoint)
    if path.is_dir():
        return
    if path.exists():
        raise InputError("is a file, and a checkpoint is a folder; give the folder that holds it", checkpoint)
    if not may_be_on_hub(checkpoint):
        raise InputError(
            "there is no such folder; give a checkpoint's folder, with config.json, weights and tokenizer, or the "
            f"name of a model on the hub, like AUTHOR/MODEL (the current folder is {Path.cwd()})",
            checkpoint,
        )


def may_be_on_hub(name: str) -> bool:
    """Whether the hub might have a model of this name, MODEL or AUTHOR/MODEL."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not OWN_NAME.fullmatch(name.rpartition("/")[2])


@contextmanager
def loading(checkpoint: str, part: str = "checkpoint") -> Iterator[None]:
    """What a library raises in the block, of many kinds for damaged files, becomes an `InputError` with the cure."""
    try:
        with quiet_retries():
            yield
    except InputError:
        raise
    except Exception as error:
        reason = first_line(error)
        if Path(checkpoint).is_dir():
            raise InputError(
                f"no {part} can be loaded from there ({reason}); give a folder with config.json, weights and "
                "tokenizer, or the name of a model on the hub that this machine can reach",
                checkpoint,
            ) from error
        parent = Path(checkpoint).parent
        there = f", though there is {parent}/" if parent.name and parent.is_dir() else ""
        raise InputError(
            f"there is no such folder in {Path.cwd()}{there}, and no {part} can be loaded from the hub by this "
            f"name ({reason}); mend the path, or give the name of a model on the hub that this machine can reach",
            checkpoint,
        ) from error


def pretrained_config(checkpoint: str, cache_dir: str | None = None) -> PreTrainedConfig:
    """A checkpoint's configuration.

    `InputError` where there is none that can be read, and where transformers' own model of that architecture is
    another one than the checkpoint's.
    """
    check_place(checkpoint)
    with loading(checkpoint):
        content, _ = PreTrainedConfig.get_config_dict(checkpoint, cache_dir=cache_dir)
        _check_own_model(content, checkpoint)
        # trust_remote_code: no, not even where a person would agree at the prompt
        return AutoConfig.from_pretrained(checkpoint, cache_dir=cache_dir, trust_remote_code=False)


def _check_own_model(content: dict, checkpoint: str) -> None:
    """`InputError` where config.json asks for what transformers would leave out without a word."""
    architecture, code = content.get("model_type"), content.get("auto_map")
    if isinstance(code, dict) and "AutoModel" in code:
        raise InputError(
            f"needs code that it brings along ({code['AutoModel']}, of auto_map in config.json), which is never run "
            "here, and without it is another model; give a checkpoint that transformers loads without "
            "trust_remote_code",
            checkpoint,
        )
    positions = content.get("position_embedding_type") or "absolute"
    if architecture in LEARNED_POSITIONS and positions != "absolute":
        raise InputError(
            f"has position_embedding_type {positions!r} in config.json, and for {architecture!r} only absolute "
            "positions can be done here; give a checkpoint that has those",
            checkpoint,
        )


def longest_sequence(config: PreTrainedConfig) -> int:
    """The tokens, special ones included, that the encoder of this configuration has positions for.

    It stands here and not with the families of `model/`, because texts are cut to it before any model is loaded.
    """
    if config.model_type in ("roberta", "xlm-roberta", "camembert"):
        return config.max_position_embeddings - config.pad_token_id - 1  # they are counted from there on
    if config.model_type == "mpnet":
        return config.max_position_embeddings - 2  # the same, with 1 whatever pad_token_id is
    return config.max_position_embeddings


def pretrained_tokenizer(checkpoint: str, cache_dir: str | None = None) -> PreTrainedTokenizerFast:
    """A checkpoint's fast tokenizer, which has words and no token without an embedding; else `InputError`.

    A folder may hold a tokenizer alone.
    """
    check_place(checkpoint)
    has_model = not Path(checkpoint).is_dir() or Path(checkpoint, "config.json").exists()
    config = pretrained_config(checkpoint, cache_dir) if has_model else None
    with loading(checkpoint, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, cache_dir=cache_dir, trust_remote_code=False)
        vocabulary = tokenizer.get_vocab()
        if vocabulary.keys() <= set(tokenizer.all_special_tokens):
            raise InputError(
                f"has no tokenizer files (tokenizer.json, or vocab.txt, or vocab.json with merges.txt): "
                f"transformers makes up a tokenizer of {len(vocabulary)} tokens, for which all words are the same; "
                f"{GIVE_OWN}",
                checkpoint,
            )
        if not tokenizer.is_fast:
            raise InputError(
                f"its tokenizer ({type(tokenizer).__name__}) has no fast version (tokenizer.json)", checkpoint
            )
        tokens, rows = max(vocabulary.values()) + 1, getattr(config, "vocab_size", None)
        if rows is not None and tokens > rows:
            raise InputError(
                f"its tokenizer has {tokens:,} tokens and its model {rows:,} embeddings (vocab_size in config.json): "
                f"the last tokens have none; {GIVE_OWN}. If tokens were added on purpose, the model needs "
                "resize_token_embeddings(len(tokenizer)) of transformers before it is saved",
                checkpoint,
            )
    return tokenizer


def adds_first_token(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether every text begins with a token of the tokenizer's own, [CLS] or <s>."""
    return tokenizer.backend_tokenizer.encode("a").special_tokens_mask[:1] == [1]


def check_first_token(tokenizer: PreTrainedTokenizerFast, checkpoint: str) -> None:
    """`InputError` where a text does not begin with a token of the tokenizer's own, whose vector is to be read."""
    if not adds_first_token(tokenizer):
        raise InputError(
            "its tokenizer adds no first token ([CLS] or <s>), off which a text's vector is read: it would be that "
            f"of the text's first word; {GIVE_OWN}, and tokenize again. (A model that is meant to be read by the "
            "mean of all tokens needs none: give --pooling mean)",
            checkpoint,
        )
