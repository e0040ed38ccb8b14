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


def required(help: str) -> Any:
    """A flag that must be given."""
    return field(metadata={"help": help})


@dataclass(kw_only=True)
class DeviceArguments:
    """Where a script computes, and how precisely."""

    fp16: bool = option(False, "mixed precision: bfloat16 where the hardware has it, float16 on an older GPU")
    no_cuda: bool = option(False, "stay on the CPU")


@dataclass(kw_only=True)
class ModelArguments(DeviceArguments):
    """How a script that several processes run reads a checkpoint."""

    model_type: str = option("rdot_nll", "rdot_nll, rdot_nll_multi_chunk or rdot_nll_condenser")
    cache_dir: str = option("", "where models from the hub are kept")
    local_rank: int = option(-1, "set by torch.distributed.launch")


@dataclass(kw_only=True)
class LengthArguments:
    """The lengths that the token stores were made with."""

    max_seq_length: int = option(128, "tokens per passage, as in the token store")
    max_query_length: int = option(64, "tokens per query, as in the token store")


def check_at_least_one(arguments: Any, *names: str) -> None:
    """`InputError` where one of these flags, a whole number, is below 1."""
    for name in names:
        if getattr(arguments, name) < 1:
            raise InputError(f"--{name} is {getattr(arguments, name)}; at least 1 is needed")


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
