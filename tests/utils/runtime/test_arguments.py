"""Command lines and what is said of them: in one line, with flags called as the script at hand calls them."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from utils.runtime.arguments import option, parse
from utils.runtime.errors import InputError, as_called
from utils.runtime.logs import say

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def called(monkeypatch) -> None:
    monkeypatch.setenv(
        "ANCE_FLAGS", "cluster_centroids=--clusters\n  no_cuda=CUDA_VISIBLE_DEVICES= fp16=--mixed_precision"
    )


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("9 clusters; lower --cluster_centroids", "9 clusters; lower --clusters"),
        ("--cluster_centroids is 0, or pass --no_cuda.", "--clusters is 0, or pass CUDA_VISIBLE_DEVICES=."),
        (
            "--cluster_centroids_of --other ---fp16 --fp16-x a--fp16",
            "--cluster_centroids_of --other ---fp16 --fp16-x a--fp16",
        ),
        ("(--fp16)", "(--mixed_precision)"),
    ],
)
def test_flags_are_called_as_the_script_at_hand_calls_them(message, told, monkeypatch):
    assert as_called(message) == told
    monkeypatch.delenv("ANCE_FLAGS")
    assert as_called(message) == message


def test_what_is_said_calls_them_so_too(capsys):
    say("warning: --fp16 was asked for")
    assert "warning: --mixed_precision was asked for" in capsys.readouterr().out


@dataclass
class Arguments:
    cluster_centroids: int = option(50, "clusters")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (["--cluster_centroids", "many"], r"argument --cluster_centroids: invalid int value: 'many'; see --help"),
        (["--cluster-centroids"], r"argument --cluster_centroids: expected one argument"),
        (["--clusters", "3"], r"unknown arguments: --clusters 3"),
    ],
)
def test_a_command_line_that_cannot_be_parsed_is_told_in_one_line(line, reason, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script", *line])
    with pytest.raises(InputError, match=reason):
        parse(Arguments, "description")


def test_a_script_ends_with_one_line_in_these_names(tmp_path):
    errors = tmp_path / "errors"
    finished = subprocess.run(
        [sys.executable, ROOT / "evaluate" / "search_collection.py", "--run_dir", tmp_path],
        env=os.environ | {"ANCE_FLAGS": "model_name_or_path=--checkpoint", "ANCE_ERRORS": str(errors)},
        capture_output=True,
        text=True,
        check=False,
    )
    line = f"error: {tmp_path}/saved_models: holds no checkpoint; train first, or name one with --checkpoint\n"
    assert (finished.returncode, finished.stderr, errors.read_text()) == (2, line, line)
