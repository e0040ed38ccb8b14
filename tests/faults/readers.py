"""Every reader of the project, each with a file that it reads, for fuzzing: one that is damaged in any way.

Whatever stands in a file, a reader either reads it or raises `InputError`. The files are small, and their numbers too
(8 queries, 30 passages), so that a changed byte is likely to matter. Sums of files are not checked meanwhile: whoever
alters a file may alter its sum as well, and what lies behind that check has to hold by itself.
"""

import gzip
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from datasets import Dataset
from pyarrow import Table
from pyarrow.parquet import write_table
from transformers import AutoTokenizer

from data import import_data
from data.collection_writer import CollectionWriter
from data.judgments import read_split
from data.layouts.beir import read_jsonl
from data.layouts.find import find_layout
from data.layouts.msmarco import read_documents, read_tsv
from data.tokenizing import write_token_store
from evaluate.compare_runs import read_comparison
from evaluate.dev_clusters import DevClusters
from evaluate.metrics_file import read_metrics, read_per_query
from evaluate.reporting.finished_run import read_results
from evaluate.significance import Difference
from model.dro import make_objective
from model.encoders import Encoder
from model.reading import AUTO, HeadLayer, Reading, declared_reading
from model.retriever import Retriever
from model.training_state import resume, save
from model.training_step import TrainingStep
from tests.data.layouts.examples import jsonl
from tests.tiny import tiny_bert_tokenizer
from tests.tiny_models import load_encoder, random_store, tiny_bert, write_embeddings
from tests.tiny_run import call, save_tiny_checkpoint
from utils.mining.clustering import Clusters
from utils.mining.metrics import MEASURES
from utils.mining.named_groups import NamedGroups, read_named_groups
from utils.runtime.errors import InputError
from utils.runtime.precision import Precision
from utils.stores.checkpoint import CHECKSUMS, WEIGHTS, TrainerState, check_files, read_trainer_state
from utils.stores.embedding_store import EmbeddingSource, ShardWriter, open_embeddings
from utils.stores.episode import (
    MinedLines,
    open_scores,
    read_episode,
    read_result,
    scores_file,
    write_mined_file,
    write_result,
)
from utils.stores.files import sha256_of_file, write_json
from utils.stores.mined_examples import MinedExample, Scored, examples_file, read_examples, write_examples
from utils.stores.qrels import Qrels, read_missing_ids, read_qrels, write_missing_ids, write_qrels
from utils.stores.run_folder import RunFolder, read_settings
from utils.stores.token_store import TokenStore
from utils.stores.training_log import TrainingLog
from utils.stores.trec import read_trec_run, write_trec_run

QUERIES, PASSAGES, CLUSTERS = 8, 30, 3


@dataclass(frozen=True)
class Reader:
    """A file that was written properly, and what reads it, all of it."""

    path: Path
    read: Callable[[], object]

    def survives(self, content: bytes) -> bool:
        """Whether this content can be read; raises anything but `InputError`. The file is as before afterwards."""
        kept = self.path.read_bytes()
        self.path.write_bytes(content)
        try:
            with patch("utils.stores.token_store.check_sha256"), patch("utils.stores.embedding_store.check_sha256"):
                self.read()
        except InputError:
            return False
        else:
            return True
        finally:
            self.path.write_bytes(kept)


def _raw(folder: Path) -> dict[str, Reader]:
    """What comes from elsewhere: collections, queries and judgments; read up to the tokens."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert_tokenizer(folder / "tokenizer"))

    def tokenized(path: Path, texts) -> None:
        write_token_store(folder / "tokens", texts, tokenizer, 16, path, label="texts", total=None)

    contents = {
        "collection.tsv": "1\tthe cat is blue\n22\tsky\tof the tree\n",
        "documents.tsv": "D1\thttp://a.b/c\tthe tree\tsky of the tree\nD22\thttp://d.e\t\tdog\n",
        "corpus.jsonl": '{"_id": "1", "title": "The Cat", "text": "is \\u0062lue"}\n{"_id": 2, "text": "sky"}\n',
        "qrels.tsv": "1\t0\t7\t1\n2\t0\t8\t0\n",
        "qrels.beir.tsv": "query-id\tcorpus-id\tscore\n1\ta\t2\n",
        "queries.tsv": "1\twhat is blue\n2\thow\n",
    }
    for name, content in contents.items():
        (folder / name).write_text(content)
    (folder / "queries.tsv.gz").write_bytes(gzip.compress(contents["queries.tsv"].encode(), mtime=0))
    paths = {name: folder / name for name in [*contents, "queries.tsv.gz"]}
    queries = [(1, "1", "what is blue"), (2, "2", "how")]
    return {
        "collection.tsv": Reader(
            paths["collection.tsv"],
            lambda: tokenized(paths["collection.tsv"], read_tsv(paths["collection.tsv"], str.lower)),
        ),
        "documents.tsv": Reader(
            paths["documents.tsv"],
            lambda: tokenized(paths["documents.tsv"], read_documents(paths["documents.tsv"], " [SEP] ", 99)),
        ),
        "corpus.jsonl": Reader(
            paths["corpus.jsonl"], lambda: tokenized(paths["corpus.jsonl"], read_jsonl(paths["corpus.jsonl"], str))
        ),
        "queries.tsv.gz": Reader(
            paths["queries.tsv.gz"],
            lambda: tokenized(paths["queries.tsv.gz"], read_tsv(paths["queries.tsv.gz"], str)),
        ),
        "qrels.tsv": Reader(
            paths["qrels.tsv"], lambda: read_split("train", lambda: queries, paths["queries.tsv"], paths["qrels.tsv"])
        ),
        "qrels.beir.tsv": Reader(
            paths["qrels.beir.tsv"],
            lambda: read_split("test", lambda: queries, paths["queries.tsv"], paths["qrels.beir.tsv"]),
        ),
    }


def _layouts(folder: Path) -> dict[str, Reader]:
    """Training data in every layout, read up to the collection that they become; and what is noted of that one."""

    def imported(source: Path, layout: str) -> None:
        with suppress(InputError):
            find_layout(source)
        found, out = find_layout(source, layout), folder / "collection"
        found.count()
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        writer = CollectionWriter(out, found.one_id_space, 0.5, 42)
        writer.add("source", found, "")
        writer.finish()

    texts = [(f"what is blue {i}", f"sky {i}", f"dog {i}") for i in range(4)]
    numbered = [(i, *of_row) for i, of_row in enumerate(texts)]
    rows: dict[str, list[dict]] = {
        "pairs.jsonl": [{"query": q, "positive": [p, "cat"], "negative_1": n} for q, p, n in texts],
        "flagembedding.jsonl": [
            {"query": q, "pos": [p], "neg": [n], "pos_scores": [0.9], "neg_scores": [i], "prompt": "how: "}
            for i, q, p, n in numbered
        ],
        "tevatron.jsonl": [
            {
                "query_id": str(i),
                "query": q,
                "positive_passages": [{"docid": f"d{i}", "title": "The Cat", "text": p}],
                "negative_passages": [{"docid": i, "text": n}],
            }
            for i, q, p, n in numbered
        ],
        "tevatron/train.jsonl": [
            {"query_id": i, "query_text": q, "positive_document_ids": [f"d{i}"], "negative_document_ids": ["d0"]}
            for i, q, _, _ in numbered
        ],
        "tevatron/corpus.jsonl": [{"docid": f"d{i}", "document_text": p} for i, _, p, _ in numbered],
        "beir/corpus.jsonl": [{"_id": f"d{i}", "title": "", "text": p} for i, _, p, _ in numbered],
        "beir/queries.jsonl": [{"_id": f"q{i}", "text": q} for i, q, _, _ in numbered],
        "beir/qrels/train.jsonl": [{"query-id": f"q{i}", "corpus-id": f"d{i}", "score": 1 + i} for i, *_ in numbered],
    }
    for name, records in rows.items():
        jsonl(folder / name, records)
    columns = ("query", "positive", "negative")
    quoted = [[f'"{cell}\nof"' for cell in of_row] for of_row in texts]
    for name, separator, lines in (("pairs.csv", ",", quoted), ("pairs.tsv", "\t", texts)):
        (folder / name).write_text("".join(separator.join(line) + "\n" for line in [columns, *lines]))
    (folder / "pairs.csv.gz").write_bytes(gzip.compress((folder / "pairs.csv").read_bytes(), mtime=0))
    table = Table.from_pylist([dict(zip(columns, of_row, strict=True)) for of_row in texts])
    write_table(table, folder / "pairs.parquet")
    Dataset(table).save_to_disk(folder / "datasets")
    noted = folder / "imported" / "import.json"
    call(import_data, "--data_dir", folder / "pairs.csv", "--out_dir", noted.parent, "--dev_share", 0.5)
    names = [*rows, "pairs.csv", "pairs.tsv", "pairs.csv.gz", "pairs.parquet"]
    names += ["datasets/dataset_info.json", "datasets/state.json"]
    sources = {name: folder / name.partition("/")[0] for name in names}
    readers = {
        name: Reader(folder / name, partial(imported, source, source.name.partition(".")[0]))
        for name, source in sources.items()
    }
    return readers | {"imported/import.json": Reader(noted, partial(import_data.read_noted, noted))}


def _stores(folder: Path) -> dict[str, Reader]:
    """Token stores, judgments by row, embeddings, clusters and mined files."""

    def store() -> None:
        opened = TokenStore(folder / "store")
        opened.row_hashes(block_tokens=64)
        assert len(opened.ids) == len(opened)
        opened[len(opened) - 1].sum()

    def marked() -> None:
        writer = ShardWriter(folder / "marked", "passages", 0, 1, order, source)
        writer.write(np.ones((PASSAGES - writer.done, 4), np.float32))

    def shard() -> None:
        embeddings = open_embeddings(folder / "embeddings", "passages", "t")
        assert np.isfinite(embeddings.all()).shape == embeddings.shape

    random_store(folder / "store", PASSAGES)
    write_missing_ids(folder / "train-qrel.tsv", ["gone 1", "gone 2"])
    write_qrels(folder / "train-qrel.tsv", Qrels.of([(0, 3, 1), (1, 29, 0), (7, 2, 3)]))
    write_embeddings(folder / "embeddings", "passages", "t", np.ones((PASSAGES, 4), np.float32))
    order, source = np.arange(PASSAGES), EmbeddingSource("w", "t", 8, 0, "float32", "float32", PASSAGES, 4)
    writer = ShardWriter(folder / "marked", "passages", 0, 1, order, source)
    writer.write(np.ones((PASSAGES // 2, 4), np.float32))
    writer.mark()
    assignment = np.arange(PASSAGES) % CLUSTERS
    Clusters(np.ones((CLUSTERS, 4), np.float32), np.bincount(assignment), assignment).save(
        folder / "clusters", assignment
    )
    NamedGroups(["a", "b", "c"], np.bincount(assignment), assignment).save(folder / "groups", assignment - 1)
    (folder / "groups.tsv").write_text("qid\tgroup\n" + "".join(f"{i}\tof {i % 3}\n" for i in range(PASSAGES)))
    rows, scores = np.arange(4), scores_file(folder, 0)
    lines = MinedLines(rows, rows, np.arange(12).reshape(4, 3), rows % CLUSTERS, np.ones((4, 4), np.float32))
    write_mined_file(folder / "mined", iter([lines]), scores)
    write_mined_file(folder / "blocks", iter([replace(lines, blocks=rows)]))
    result = {"step": 0, "episode": 0, "clusters": 3, "ndcg": 0.1, **dict.fromkeys(MEASURES, 0.1)}
    result["cluster_names"] = ["a", "b", "c"]
    result["filters"] = {"candidates": 30, "dropped": {"skip_ranks 1": 8}, "queries_with_none_left": 1}
    kept, dropped = [Scored(4, 0.25), Scored(5, -0.5)], [Scored(6, 0.75, "skip_ranks 1")]
    result["examples_sha256"] = write_examples(folder, 0, [MinedExample(3, 2, Scored(3, 1.0), kept, dropped, 9)])
    result["scores_sha256"] = sha256_of_file(scores)
    mined = read_episode(folder / "mined", QUERIES, PASSAGES, CLUSTERS)
    write_result(folder, 0, {**result, "cluster_mrr": [0.5, None, 1], "zero_shot": {"a": {"ndcg@10": 0.5}}})
    log = TrainingLog(folder / "logs")

    def examples() -> None:
        with patch("utils.stores.mined_examples.check_sha256"):  # which would refuse every change
            read_examples(folder, folder, 0, QUERIES, PASSAGES)

    readers = {f"store/{name}": store for name in ("tokens.npy", "offsets.npy", "ids.txt", "meta.json")}
    readers |= {f"embeddings/{name}": shard for name in ("passages.0-of-1.npy", "manifest.json")}
    readers |= {
        f"clusters/{name}.npy": lambda: DevClusters.read(folder / "clusters", folder / "store")
        for name in ("dev_assignment", "sizes")
    }
    readers |= {
        f"groups/{name}": lambda: DevClusters.read(folder / "groups", folder / "store")
        for name in ("dev_assignment.npy", "names.json")
    }
    readers |= {
        "groups.tsv": lambda: read_named_groups(folder / "groups.tsv", *[TokenStore(folder / "store")] * 2),
        "train-qrel.tsv": lambda: read_qrels(folder / "train-qrel.tsv", QUERIES, PASSAGES),
        "train-missing.txt": lambda: read_missing_ids(folder / "train-qrel.tsv"),
        **{
            name: lambda name=name: read_episode(folder / name, QUERIES, PASSAGES, CLUSTERS)
            for name in ("mined", "blocks")
        },
        "marked/passages.0-of-1.progress.json": marked,
        "marked/passages.0-of-1.unfinished.npy": marked,
        scores.name: lambda: open_scores(folder, folder, 0, mined),
        examples_file(folder, 0).name: examples,
        "ann_ndcg_0": lambda: log.metrics(0, read_result(folder, 0)),
    }
    return {name: Reader(folder / name, read) for name, read in readers.items()}


def _results(folder: Path) -> dict[str, Reader]:
    """Metrics, tables and settings."""
    values = dict.fromkeys(MEASURES, 0.5)
    metrics = {"run": "r", "collection": "c", "checkpoint": None, "queries": 1, "metrics": values, "parts": []}
    row = {"run": "r", "cells": [0.5], "dev": {"checkpoint": "models/checkpoint-5"}, "zero_shot": []}
    results = {"columns": ["a"], "rows": [row]}
    write_json(folder / "metrics.json", metrics)
    write_json(folder / "per_query.json", {"run": "r", "collection": "c", "queries": {"1": values, "2": values}})
    write_json(folder / "results" / "results.json", results)
    differences = {"a": {"c": asdict(Difference(0.1, 0.0, 0.2, 0.05))}}
    write_json(
        folder / "comparison.json",
        {"measure": "m", "baseline": "b", "differences": differences, "collapsed": {"a": ["c"]}},
    )
    write_trec_run(folder / "run.trec", ["a b"], ["p", "q%"], np.array([[1, 0]]), np.array([[2.0, 1.0]]), "run")
    (folder / "settings.train").write_text("OBJECTIVE=idro\nEPS=0.01\n")
    readers = {
        "run.trec": lambda: read_trec_run(folder / "run.trec"),
        "metrics.json": lambda: read_metrics(folder / "metrics.json"),
        "per_query.json": lambda: read_per_query(folder / "per_query.json"),
        "results/results.json": lambda: read_results(RunFolder(folder)),
        "comparison.json": lambda: read_comparison(folder / "comparison.json"),
        "settings.train": lambda: read_settings(folder / "settings.train"),
    }
    return {name: Reader(folder / name, read) for name, read in readers.items()}


def _checkpoint(folder: Path) -> dict[str, Reader]:
    """A checkpoint's files, those of its reading too, which has all that a reading can have."""
    initial = str(save_tiny_checkpoint(folder / "initial", "rdot_nll_condenser"))
    _, tokenizer = load_encoder("rdot_nll_condenser", initial)
    head = (HeadLayer("Dense", 16, 8, activation="Tanh"), HeadLayer("LayerNorm", 8, 8))
    reading = Reading("mean", True, "how: ", "blue\n", True, head, scale=7.5)
    encoder = Encoder(tiny_bert(vocabulary=len(tokenizer)).model, reading)
    objective = make_objective("idro", CLUSTERS, alpha=0.25, ema=0.1, rho=0.05, eps=0.01)
    optimizer, device = torch.optim.AdamW(encoder.parameters()), torch.device("cpu")
    step = TrainingStep(Retriever(encoder), objective, optimizer, Precision("cpu", torch.float32), 1.0, device)
    names = {"optimizer": "adamW", "objective": "idro", "loss": "pairwise"}
    checkpoint = save(folder / "models", encoder, tokenizer, 48, 24, step, TrainerState(global_step=7, **names))

    def training_state() -> None:
        resume(checkpoint, read_trainer_state(checkpoint), step, round=0, **names)

    readers = {
        "trainer_state.json": training_state,
        "checksums.json": lambda: check_files(checkpoint),
        "model.safetensors": lambda: load_encoder(AUTO, str(checkpoint)),
        "optimizer.pt": training_state,
        "random_states.pt": training_state,
    }
    readers |= {name: lambda: declared_reading(str(checkpoint)) for name in DECLARATIONS}
    own = {name: Reader(checkpoint / name, read) for name, read in readers.items()}
    plain = shutil.copytree(checkpoint, folder / "plain")  # of somebody else, without sums
    (plain / CHECKSUMS).unlink()
    return own | {f"plain/{name}": Reader(plain / name, lambda: load_encoder(AUTO, str(plain))) for name in HEAD}


DECLARATIONS = (
    *("modules.json", "1_Pooling/config.json", "sentence_bert_config.json", "config_sentence_transformers.json"),
    *("2_Dense/config.json", "3_LayerNorm/config.json"),
)
HEAD = tuple(f"{layer}/{name}" for layer in ("2_Dense", "3_LayerNorm") for name in ("config.json", WEIGHTS))


def make_readers(folder: Path) -> dict[str, Reader]:
    """Every reader by the name of its file, with the files in `folder`."""
    readers: dict[str, Reader] = {}
    for make in (_raw, _layouts, _stores, _results, _checkpoint):
        part = folder / make.__name__.strip("_")
        part.mkdir(parents=True)
        readers |= make(part)
    return readers


NAMES = (
    *("collection.tsv", "documents.tsv", "corpus.jsonl", "queries.tsv.gz", "qrels.tsv", "qrels.beir.tsv"),
    *("pairs.jsonl", "flagembedding.jsonl", "tevatron.jsonl", "tevatron/train.jsonl", "tevatron/corpus.jsonl"),
    *("beir/corpus.jsonl", "beir/queries.jsonl", "beir/qrels/train.jsonl", "pairs.csv", "pairs.tsv", "pairs.csv.gz"),
    *("pairs.parquet", "datasets/dataset_info.json", "datasets/state.json", "imported/import.json"),
    *("store/tokens.npy", "store/offsets.npy", "store/ids.txt", "store/meta.json"),
    *("embeddings/passages.0-of-1.npy", "embeddings/manifest.json", "clusters/dev_assignment.npy"),
    *("clusters/sizes.npy", "groups/dev_assignment.npy", "groups/names.json", "groups.tsv", "train-qrel.tsv"),
    *("train-missing.txt", "mined", "blocks", "marked/passages.0-of-1.progress.json"),
    *("marked/passages.0-of-1.unfinished.npy", "ann_training_scores_0.npy", "ann_training_examples_0.json"),
    "ann_ndcg_0",
    *("run.trec", "metrics.json", "per_query.json", "results/results.json", "comparison.json", "settings.train"),
    *("trainer_state.json", "checksums.json", "model.safetensors", "optimizer.pt", "random_states.pt"),
    *DECLARATIONS,
    *(f"plain/{name}" for name in HEAD),
)
