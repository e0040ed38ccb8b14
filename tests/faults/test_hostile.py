"""Files and texts that mean harm: nothing runs, nothing leaves its folder, and text is just text."""

import io
import json
import os
import pickle
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
from datasets import Dataset
from pyarrow.parquet import write_table

from data import beir_data, import_data
from data.tokenizing import load_tokenizer
from tests.faults.readers import NAMES, make_readers
from tests.tiny import tiny_bert_tokenizer
from tests.tiny_models import load_encoder
from tests.tiny_run import call, save_tiny_checkpoint
from utils.runtime.errors import InputError
from utils.stores.token_store import TokenStore


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def bombs(marker: Path) -> dict[str, bytes]:
    """The same pickle as it is, inside an array of objects, and inside a file of torch's, old and new."""
    contents = {"pickle": pickle.dumps(Bomb(marker))}
    array = np.empty(1, dtype=object)
    array[0] = Bomb(marker)
    for name, save in (
        ("numpy", lambda buffer: np.save(buffer, array, allow_pickle=True)),
        ("torch", lambda buffer: torch.save({"optimizer": Bomb(marker)}, buffer)),
        ("torch, old", lambda buffer: torch.save(Bomb(marker), buffer, _use_new_zipfile_serialization=False)),
    ):
        buffer = io.BytesIO()
        save(buffer)
        contents[name] = buffer.getvalue()
    return contents


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    return make_readers(tmp_path_factory.mktemp("hostile") / "files")


def test_the_bomb_goes_off_where_it_is_let(tmp_path):
    marker = tmp_path / "ran"
    for content in list(bombs(marker).values())[:1]:
        pickle.loads(content)
    torch.load(io.BytesIO(bombs(marker)["torch"]), weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize("name", NAMES)
def test_no_file_that_is_read_can_run_code(readers, name, tmp_path):
    marker = tmp_path / "ran"
    for kind, content in bombs(marker).items():
        assert not readers[name].survives(content), kind
        assert not marker.exists(), kind


def test_weights_of_an_old_initial_checkpoint_that_are_a_pickle_with_code_do_not_run(tmp_path):
    checkpoint = save_tiny_checkpoint(tmp_path / "models", "rdot_nll_condenser")
    for name in ("model.safetensors", "checksums.json"):
        (checkpoint / name).unlink()
    for kind, content in bombs(tmp_path / "ran").items():
        (checkpoint / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(InputError, match="pytorch_model"):
            load_encoder("rdot_nll_condenser", str(checkpoint))
        assert not (tmp_path / "ran").exists(), kind


@pytest.mark.parametrize("name", ["AutoConfig", "AutoModel", "AutoTokenizer"])
def test_code_that_a_checkpoint_brings_along_does_not_run_and_nobody_is_asked_to_let_it(tmp_path, monkeypatch, name):
    checkpoint = save_tiny_checkpoint(tmp_path / "models", "rdot_nll_condenser")
    marker = tmp_path / "ran"
    (checkpoint / "evil.py").write_text(
        f"from pathlib import Path\nPath({str(marker)!r}).touch()\nclass Evil: pass\n"
    )
    for file in ("config.json", "tokenizer_config.json"):
        content = json.loads((checkpoint / file).read_text()) | {"auto_map": {name: "evil.Evil"}}
        content.pop("model_type", None)
        content.pop("tokenizer_class", None)
        (checkpoint / file).write_text(json.dumps(content))
    asked = []
    monkeypatch.setattr("builtins.input", lambda *prompt: asked.append(prompt) or "y")
    with pytest.raises(InputError, match=r"no checkpoint can be loaded from there|needs code that it brings along"):
        load_encoder("rdot_nll_condenser", str(checkpoint))
    with suppress(InputError):
        load_tokenizer(str(checkpoint))
    assert not asked
    assert not marker.exists()


@pytest.mark.parametrize("content", [b"", b"7", b"[]", b"\xff\xfe", b"{", b'{"hidden_size": "x"}'])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_configuration_or_tokenizer_is_our_own_error(tmp_path, name, content):
    checkpoint = save_tiny_checkpoint(tmp_path / "models", "rdot_nll_condenser")
    load_encoder("rdot_nll_condenser", str(checkpoint))
    (checkpoint / name).write_bytes(content)
    with suppress(InputError):
        load_encoder("rdot_nll_condenser", str(checkpoint))
    with suppress(InputError):
        load_tokenizer(str(checkpoint))


IDS = ["../../evil", "/etc/passwd", "$(touch evil)", "`touch evil`", "a; rm -rf .", "<script>", "x\0y", "\u202eevil"]


def test_hostile_ids_and_texts_are_just_text(tmp_path):
    raw = tmp_path / "raw"
    (raw / "qrels").mkdir(parents=True)
    texts = [*IDS, "word " * 200_000, "\x1b[31m", "nul \0 inside", "\U0001f600 \u2066bidi"]
    corpus = [{"_id": f"{number} {name}".replace(" ", "_", 1), "text": name} for number, name in enumerate(texts)]
    corpus = [{**record, "_id": record["_id"] if len(record["_id"]) < 99 else "long"} for record in corpus]
    corpus += [{"_id": name, "text": "the cat"} for name in IDS]
    (raw / "corpus.jsonl").write_text("".join(json.dumps(record) + "\n" for record in corpus))
    (raw / "queries.jsonl").write_text("".join(json.dumps({"_id": name, "text": name}) + "\n" for name in IDS))
    (raw / "qrels" / "test.tsv").write_text("".join(f"{name}\t{name}\t1\n" for name in IDS))
    tokenizer = tiny_bert_tokenizer(tmp_path / "tokenizer")
    before = set(tmp_path.rglob("*"))
    call(beir_data, "--data_dir", raw, "--out_data_dir", tmp_path / "out", "--model_name_or_path", tokenizer)
    made = {path.relative_to(tmp_path).parts[0] for path in set(tmp_path.rglob("*")) - before}
    assert made == {"out"}
    assert TokenStore(tmp_path / "out" / "passages").ids == [record["_id"] for record in corpus]
    assert TokenStore(tmp_path / "out" / "test-query").ids == IDS


def rows(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def beir_with_half_a_character(folder: Path) -> Path:
    rows(folder / "corpus.jsonl", '{"_id": "p", "text": "cat"}')
    rows(folder / "queries.jsonl", '{"_id": "q", "text": "dog"}')
    rows(folder / "qrels" / "train.jsonl", r'{"query-id": "q", "corpus-id": "\ud800", "score": 1}')
    return folder


def tevatron_with_half_a_character(folder: Path) -> Path:
    rows(folder / "corpus.jsonl", '{"docid": "p", "document_text": "cat"}')
    rows(folder / "train.jsonl", r'{"query_id": 1, "query_text": "dog", "positive_document_ids": ["p", "\ud800"]}')
    return folder


def score_beyond_all_numbers(folder: Path) -> Path:
    return rows(folder / "a.jsonl", f'{{"query": "a", "pos": ["b"], "pos_scores": [1{"0" * 400}]}}')


def table_of(positives: pyarrow.Array) -> pyarrow.Table:
    return pyarrow.table({"query": ["a", "b"], "positive": positives})


def not_utf8() -> pyarrow.Array:
    ends, texts = np.array([0, 1, 2], np.int32), b"\xff\xfe"
    return pyarrow.Array.from_buffers(pyarrow.string(), 2, [None, pyarrow.py_buffer(ends), pyarrow.py_buffer(texts)])


def parquet_without_characters(folder: Path) -> Path:
    folder.mkdir()
    write_table(table_of(not_utf8()), folder / "a.parquet")
    return folder / "a.parquet"


def parquet_of_a_year_that_is_none(folder: Path) -> Path:
    folder.mkdir()
    write_table(table_of(pyarrow.array([2**49, 2], pyarrow.timestamp("s"))), folder / "a.parquet")
    return folder / "a.parquet"


def data_set_without_characters(folder: Path) -> Path:
    Dataset(table_of(not_utf8())).save_to_disk(folder)
    return folder


def link_to_itself(folder: Path) -> Path:
    folder.mkdir()
    (folder / "a.jsonl").symlink_to(folder / "a.jsonl")
    return folder / "a.jsonl"


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (beir_with_half_a_character, r"train\.jsonl:1: .*halves of surrogate pairs, found '\\ud800'"),
        (tevatron_with_half_a_character, r"train\.jsonl:1: .*halves of surrogate pairs, found '\\ud800'"),
        (score_beyond_all_numbers, r"a\.jsonl:1: expected 1 numbers as pos_scores"),
        (parquet_without_characters, r"a\.parquet:1: cannot be read on \('utf-8' codec"),
        (parquet_of_a_year_that_is_none, r"a\.parquet:1: cannot be read on"),
        (data_set_without_characters, r"split train:1: cannot be read on \('utf-8' codec"),
        (link_to_itself, r"a\.jsonl: no such file"),
    ],
)
def test_training_data_that_no_library_reads_are_told_with_their_place(make, told, tmp_path):
    source = make(tmp_path / "source")
    with pytest.raises(InputError, match=told):
        call(import_data, "--data_dir", source, "--out_dir", tmp_path / "imported")


@pytest.mark.parametrize("name", [b"a\tb\nc.jsonl", b"\xff.jsonl"])
def test_a_file_of_any_name_is_read(name, tmp_path):
    path = tmp_path / os.fsdecode(name)
    rows(path, *(f'{{"query": "q {i}", "positive": "p {i}"}}' for i in range(3)))
    for _ in range(2):
        call(import_data, "--data_dir", path, "--out_dir", tmp_path / "imported")
    lines = (tmp_path / "imported" / "sources.tsv").read_text().splitlines()
    assert [len(line.split("\t")) for line in lines] == [2, 2, 2]
