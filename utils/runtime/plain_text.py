"""Texts and names that others wrote, as they may be shown: what steers a terminal or hides itself becomes visible."""

import unicodedata
from pathlib import Path

HIDDEN = ("Cc", "Cf", "Cs")  # control characters, format characters (bidi and invisible ones), halves of pairs
JOINERS = "\u200c\u200d"  # format characters that Persian, Indic scripts and emoji are written with


def printable(text: str) -> str:
    """The text in one line: a blank for every stretch of white space, hidden characters as escapes (\\x1b, \\u202e).

    An ANSI escape sequence begins with a control character, and text that runs backwards with a format character.
    """
    return "".join(map(_shown, " ".join(text.split())))


def without_folders(value: str) -> str:
    """A setting's value; of an absolute path the last folder: those above it tell of a machine, not of a run."""
    return Path(value).name if Path(value).is_absolute() else value


def _shown(character: str) -> str:
    if unicodedata.category(character) in HIDDEN and character not in JOINERS:
        return character.encode("unicode_escape").decode("ascii")
    return character
