"""A disk that takes no more: a clear error, and what was there before stays."""

import errno
import os
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.processes import run_processes
from utils.runtime.errors import InputError, disk_errors
from utils.stores.embedding_store import EmbeddingSource, ShardWriter
from utils.stores.files import atomic_file, atomic_folder, write_json
from utils.stores.token_store import TokenizerInfo, create_token_store

LIMIT = 20_000  # bytes of a file


def with_torch(folder: Path) -> None:
    with atomic_folder(folder) as partial:
        torch.save(torch.zeros(LIMIT), partial / "optimizer.pt")


def with_safetensors(folder: Path) -> None:
    with atomic_folder(folder) as partial:
        save_file({"weights": torch.zeros(LIMIT)}, partial / "model.safetensors")


def with_numpy(folder: Path) -> None:
    with atomic_folder(folder) as partial:
        np.save(partial / "rows.npy", np.zeros(LIMIT))


def json_file(folder: Path) -> None:
    write_json(folder / "value.json", list(range(LIMIT)))


def token_store(folder: Path) -> None:
    with create_token_store(folder, TokenizerInfo("t", "f", 100, 0), 8, __file__) as writer:
        writer.append([str(i) for i in range(LIMIT)], [[1]] * LIMIT)


def embeddings(folder: Path) -> None:
    source = EmbeddingSource("w", "t", 8, 0, "float32", "float32", LIMIT, 4)
    ShardWriter(folder, "passages", 0, 1, np.arange(LIMIT), source)


WRITERS = [with_torch, with_safetensors, with_numpy, json_file, token_store, embeddings]


def limited(folder: str) -> list[tuple[str, list[str]]]:
    """What each writer says where files may not grow beyond `LIMIT`, and the files it leaves."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))
    found = []
    for write in WRITERS:
        place = Path(folder, write.__name__)
        place.mkdir()
        (place / "kept").touch()
        try:
            write(place)
            message = "nothing"
        except InputError as error:
            message = str(error)
        whole = [
            path.name for path in place.rglob("*") if not path.name.startswith(".") and "unfinished" not in path.name
        ]
        found.append((message, whole))
    return found


def test_a_limit_on_file_sizes_is_told_with_the_file_and_nothing_half_written_has_a_name(tmp_path):
    (found,) = run_processes(limited, 1, str(tmp_path))
    for write, (message, whole) in zip(WRITERS, found, strict=True):
        assert str(tmp_path / write.__name__) in message
        assert "cannot be written: " in message
        assert "ulimit -f" in message
        assert whole == ["kept"]


@pytest.mark.parametrize(
    ("number", "told"), [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "read-only"), (errno.EACCES, "permi")]
)
def test_the_systems_reason_is_told_and_the_old_file_stays(tmp_path, monkeypatch, number, told):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def refuse(handle) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(InputError, match=rf"file\.txt: cannot be written: .*{told}"), atomic_file(path) as handle:
        handle.write("new")
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("file.txt", "old")]


def test_other_errors_keep_their_kind():
    with pytest.raises(FileNotFoundError), disk_errors("x"):
        Path("nowhere").read_text()
    with pytest.raises(RuntimeError, match="shapes"), disk_errors("x"):
        raise RuntimeError("shapes differ")


def test_an_error_of_input_keeps_its_words_whatever_they_are(tmp_path):
    with pytest.raises(InputError, match=r"^in\.tsv:3: the id 'os error 28'"), atomic_file(tmp_path / "out"):
        raise InputError("the id 'os error 28' was given before", "in.tsv", 3)
