"""Command lines of the entry scripts: a dataclass of arguments, one field a flag, parsed by transformers' parser."""

import argparse
import re
from dataclasses import field
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
