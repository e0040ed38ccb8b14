"""A tokenizer and small raw collections that each test may damage in its own way."""

import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from data import beir_data, msmarco_data
from tests.tiny import tiny_bert_tokenizer

PASSAGE_FILES = {
    "collection.tsv": "0\tthe Cat is blue\n1\tthe sky of the tree\n2\t\n7\tdog: what\tis the sky?\n",
    "queries.train.tsv": "10\twhat is blue\n11\tno judgment for this one\n12\tHow blue is the tree\n",
    "qrels.train.tsv": "10\t0\t0\t1\n12\t0\t7\t2\n12\t0\t1\t0\n12\t0\t2\t1\n",
    "queries.dev.small.tsv": "20\tdog of the sky\n",
    "qrels.dev.small.tsv": "20 0 7 1\n",
}
DOCUMENT_FILES = {
    "msmarco-docs.tsv": "D1\thttp://A.b/c\tThe Tree\tsky of the Tree\nD22\thttp://d.e\t\tdog\n",
    "msmarco-doctrain-queries.tsv": "10\twhat is blue\n",
    "msmarco-doctrain-qrels.tsv": "10 0 D1 1\n",
    "msmarco-docdev-queries.tsv": "20\tdog\n",
    "msmarco-docdev-qrels.tsv": "20 0 D22 1\n",
}
BEIR_FILES = {
    "corpus.jsonl": "".join(
        json.dumps(record) + "\n"
        for record in (
            {"_id": "a/1", "title": "The Cat", "text": "is blue"},
            {"_id": "b", "title": "", "text": "sky of the tree"},
            {"_id": "grün", "text": ""},
        )
    ),
    "queries.jsonl": '{"_id": "q1", "text": "what is blue"}\n{"_id": "q2", "text": "never judged"}\n',
    "qrels/test.tsv": "query-id\tcorpus-id\tscore\nq1\ta/1\t2\nq1\tb\t0\n",
}


def write_files(folder: Path, files: dict[str, str | bytes], zipped: bool = False) -> Path:
    for name, content in files.items():
        content = content.encode() if isinstance(content, str) else content
        path = folder / (f"{name}.gz" if zipped else name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(content) if zipped else content)
    return folder


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory) -> str:
    return tiny_bert_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def run_script(tmp_path, tokenizer_folder, monkeypatch) -> Callable[..., Path]:
    """Runs a preprocessing script's main on a folder of raw files and returns the folder that it wrote."""

    def run_main(script, raw: Path, **flags) -> Path:
        out = flags.pop("out", tmp_path / "out")
        flags = {"model_name_or_path": tokenizer_folder, "data_dir": raw, "out_data_dir": out, **flags}
        line = [part for flag, value in flags.items() for part in (f"--{flag}", str(value))]
        monkeypatch.setattr(sys, "argv", [script.__file__, *line])
        script.main()
        return out

    return run_main


@pytest.fixture
def preprocess_passages(run_script, tmp_path) -> Callable[..., Path]:
    """Runs msmarco_data.py on PASSAGE_FILES, some of them replaced (None: taken away)."""

    def preprocess(changes: dict[str, str | bytes | None] | None = None, zipped: bool = False, **flags) -> Path:
        files = {name: content for name, content in (PASSAGE_FILES | (changes or {})).items() if content is not None}
        raw = write_files(tmp_path / ("raw-gz" if zipped else "raw"), files, zipped)
        return run_script(msmarco_data, raw, **({"data_type": 1} | flags))

    return preprocess


@pytest.fixture
def preprocess_beir(run_script, tmp_path) -> Callable[..., Path]:
    """Runs beir_data.py on BEIR_FILES, some of them replaced."""

    def preprocess(changes: dict[str, str | bytes] | None = None, zipped: bool = False, **flags) -> Path:
        raw = write_files(tmp_path / ("beir-gz" if zipped else "beir"), BEIR_FILES | (changes or {}), zipped)
        return run_script(beir_data, raw, **flags)

    return preprocess


def nothing_looks_complete(out: Path) -> bool:
    """Whether `out` holds no judgments (which mark a split as whole), no token store and no partial file."""
    return not out.exists() or {path.name for path in out.iterdir()} <= {".lock"}
