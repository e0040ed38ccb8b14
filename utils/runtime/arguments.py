"""Command lines of the entry scripts: a dataclass of arguments, one field a flag, parsed by transformers' parser."""

import argparse
import re
from dataclasses import dataclass, field
from typing import Any, TypeVar

from transformers import HfArgumentParser

from utils.runtime.errors import InputError

T = TypeVar("T")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """The script's docstring as it stands, and each flag's default where it has one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        return action.help if action.required or action.default in (None, "") else super()._get_help_string(action)


def option(default: Any, help: str) -> Any:
    """A flag with a default. The help names the unit."""
    return field(default=default, metadata={"help": help})


def switch(help: str) -> Any:
    """A flag that is on (alone, or 1), off (0), or not given: None."""
    return field(default=None, metadata={"help": help, "nargs": "?", "const": True})


def required(help: str) -> Any:
    """A flag that must be given."""
    return field(metadata={"help": help})


@dataclass(kw_only=True)
class DeviceArguments:
    """Where a script computes, and how precisely."""

    fp16: bool = option(False, "mixed precision: bfloat16 where the hardware has it, float16 on an older GPU")
    no_cuda: bool = option(False, "stay on the CPU")


@dataclass(kw_only=True)
class ReadingArguments:
    """How a checkpoint is read (model/reading.py). What is not given, its own files or its type say."""

    model_type: str = option(
        "rdot_nll",
        "auto: as the checkpoint's own files say; or a published type: rdot_nll, rdot_nll_multi_chunk, "
        "rdot_nll_condenser",
    )
    pooling: str | None = option(None, "cls: a text's vector is its first token's; mean: the mean of all its tokens'")
    normalize: bool | None = switch("scale vectors to length 1, so that scores are cosines")
    scale: float | None = option(None, "what the loss multiplies scores with (default: 1, of normalised vectors 20)")
    query_prompt: str | None = option(None, "what stands before a query; \\n in it is a line break")
    passage_prompt: str | None = option(None, "what stands before a passage, likewise")
    lowercase: bool | None = switch("lowercase texts, prompts too, before they are tokenized")
    cache_dir: str = option("", "where models from the hub are kept")

    @property
    def reading(self) -> dict[str, Any]:
        """What `find_reading` takes beside the checkpoint; None where nothing is given."""
        given = {name: getattr(self, name) for name in ("model_type", "pooling", "normalize", "scale", "lowercase")}
        for name in ("query_prompt", "passage_prompt"):
            prompt = getattr(self, name)
            given[name] = prompt if prompt is None else prompt_of_flag(prompt)
        return given | {"cache_dir": self.cache_dir or None}


@dataclass(kw_only=True)
class ModelArguments(DeviceArguments, ReadingArguments):
    """How a script that several processes run reads a checkpoint."""

    local_rank: int = option(-1, "set by torch.distributed.launch")


@dataclass(kw_only=True)
class LengthArguments:
    """The lengths that the token stores were made with."""

    max_seq_length: int = option(128, "tokens per passage, as in the token store")
    max_query_length: int = option(64, "tokens per query, as in the token store")


def prompt_flag(prompt: str) -> str:
    """A prompt as it is given on a command line, in one line."""
    return prompt.replace("\n", "\\n")


def prompt_of_flag(flag: str) -> str:
    """The prompt that `prompt_flag` was given."""
    return flag.replace("\\n", "\n")


def check_at_least_one(arguments: Any, *names: str) -> None:
    """`InputError` where one of these flags, a whole number, is below 1."""
    for name in names:
        if getattr(arguments, name) < 1:
            raise InputError(f"--{name} is {getattr(arguments, name)}; at least 1 is needed")


def check_at_least_zero(arguments: Any, *names: str) -> None:
    """`InputError` where one of these flags, a whole number, is below 0."""
    for name in names:
        if getattr(arguments, name) < 0:
            raise InputError(f"--{name} is {getattr(arguments, name)}; a whole number from 0 is needed")


class Parser(HfArgumentParser):
    """What cannot be parsed is told as every other mistake is, in one line."""

    def error(self, message: str) -> None:
        message = re.sub(r"(--\w+)/--[\w-]+", r"\1", message)  # one spelling of a flag is enough
        raise InputError(f"{message}; see --help")


def parse(arguments: type[T], description: str) -> T:
    """Parses sys.argv into `arguments`; both --like_this and --like-this are taken. `InputError` on misuse."""
    parser = Parser(
        arguments,
        description=description,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    values, unknown = parser.parse_args_into_dataclasses(return_remaining_strings=True, look_for_args_file=False)
    if unknown:
        parser.error(f"unknown arguments: {' '.join(unknown)}")
    return values
