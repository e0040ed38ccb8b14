"""Several sources in one collection, by their names from import_data.py to the table, in process.

A group's numbers are found in two ways more: by measuring its queries alone on the mixed passages, and by measuring
the source by itself, where no other's passages compete.
"""

import csv
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data import beir_data, export_mined, import_data
from drivers import run_ann, run_ann_data_gen
from evaluate import evaluate_beir, results_table
from model.reading import Reading
from tests.data.layouts.examples import jsonl, write_beir
from tests.tiny_run import call, save_random_checkpoint

SOURCES = ("animals", "places", "skies")
LENGTHS = ("--max_seq_length", 24, "--max_query_length", 12)
READ = ("--model_type", "auto")
SHARE = ("--dev_share", 0.3)  # which places and skies hold out; animals have dev queries
STEPS = 4


class Run(NamedTuple):
    """`initial` and `trained` are checkpoints, `place` is where everything lies."""

    place: Path
    initial: Path
    trained: Path

    @property
    def imported(self) -> Path:
        return self.place / "imported"

    @property
    def stores(self) -> Path:
        return self.place / "preprocessed"

    def sources_of(self, split: str) -> dict[str, str]:
        """The source of each judged query of a split, by its id."""
        lines = (self.imported / "sources.tsv").read_text().splitlines()
        judged = (self.imported / "qrels" / f"{split}.tsv").read_text().splitlines()[1:]
        wanted = {line.split("\t")[0] for line in judged}
        return {query: source for query, source in (line.split("\t") for line in lines) if query in wanted}


def write_sources(folder: Path) -> dict[str, Path]:
    """BEIR's layout, pairs as CSV, and Tevatron's; passages of one would answer queries of another, too."""
    places = [(f"how is the tree {i}", f"the tree of the sky is {'blue ' * (i % 3)}{i}") for i in range(10)]
    (folder / "places.csv").parent.mkdir(parents=True, exist_ok=True)
    with (folder / "places.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("query", "positive"), *places])
    skies = [
        {
            "query": f"what is blue {i}",
            "positive_passages": [{"docid": f"s{i}", "text": f"how blue is the sky {'cat ' * (i % 4)}{i}"}],
            "negative_passages": [{"docid": f"n{i}", "text": f"the dog {i} of the sky"}],
        }
        for i in range(9)
    ]
    jsonl(folder / "skies" / "train.jsonl", skies)
    return {"animals": write_beir(folder / "animals"), "places": folder / "places.csv", "skies": folder / "skies"}


def tokenize(imported: Path, stores: Path, checkpoint: Path, *splits: str) -> Path:
    named = ("--data_dir", imported, "--out_data_dir", stores, "--model_name_or_path", checkpoint)
    call(beir_data, *named, *READ, *LENGTHS, "--split", *splits)
    return stores


def evaluate(stores: Path, checkpoint: Path, out: Path) -> dict:
    """metrics.json of the dev queries."""
    where = ("--data_dir", stores, "--split", "dev", "--out_dir", out, "--embedding_dir", out / "embeddings")
    call(evaluate_beir, "--model_name_or_path", checkpoint, *where, *READ, "--no_cuda")
    return json.loads((out / "metrics.json").read_text())


def ranking(out: Path) -> dict[str, list[str]]:
    """The passages of each query in run.trec, the best first; ids without percent signs are as they were."""
    found: dict[str, list[str]] = {}
    for line in (out / "run.trec").read_text().splitlines():
        query, _, passage, *_ = line.split()
        found.setdefault(query, []).append(passage)
    return found


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, Path]:
    return write_sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, sources) -> Run:
    """Mined with groups by source, trained with iDRO, evaluated and tabled."""
    place = tmp_path_factory.mktemp("mixed")
    initial = save_random_checkpoint(place / "initial", "bert", Reading("mean", True))
    run = Run(place, initial, place / "models" / f"checkpoint-{STEPS}")
    call(import_data, "--data_dir", ":".join(map(str, sources.values())), "--out_dir", run.imported, *SHARE)
    tokenize(run.imported, run.stores, initial, "train", "dev")
    mined = ("--training_dir", place / "none", "--init_model_dir", initial, "--output_dir", place / "ann_data")
    groups = ("--groups_file", run.imported / "sources.tsv", "--topk_training", 12, "--negative_sample", 3)
    call(run_ann_data_gen, "--data_dir", run.stores, *mined, *groups, *READ, *LENGTHS, "--no_cuda")
    trained = ("--data_dir", run.stores, "--ann_dir", place / "ann_data", "--init_model_dir", initial)
    objective = ("--group", 1, "--n_groups", 0, "--dro_type", "idro", "--max_steps", STEPS, "--logging_steps", 1)
    steps = ("--optimizer", "adamW", "--learning_rate", 1e-3, "--per_gpu_train_batch_size", 8)
    call(run_ann, *trained, *objective, *steps, "--output_dir", place / "models", *READ, *LENGTHS, "--no_cuda")
    evaluate(run.stores, run.trained, place / "results" / "dev")
    call(
        results_table,
        *("--out_dir", place / "results", "--clusters_dir", place / "ann_data" / "clusters_0"),
        *("--dev_query_dir", run.stores / "dev-query"),
        *("--rows", f"trained={place / 'results' / 'dev' / 'metrics.json'}"),
    )
    return run


@pytest.fixture(scope="module")
def row(mixed) -> dict:
    (row,) = json.loads((mixed.place / "results" / "results.json").read_text())["rows"]
    return row


def test_a_query_knows_its_source_and_all_sources_train_and_are_measured(mixed):
    for split in ("train", "dev"):
        found = mixed.sources_of(split)
        assert all(query.startswith(f"{source}/") for query, source in found.items())
        assert {*found.values()} == {*SOURCES}


@pytest.mark.parametrize("source", SOURCES)
def test_a_sources_row_is_an_evaluation_on_its_queries_alone(mixed, row, source, tmp_path):
    imported = Path(shutil.copytree(mixed.imported, tmp_path / "imported"))
    heading, *lines = (imported / "qrels" / "dev.tsv").read_text().splitlines(keepends=True)
    own = [line for line in lines if mixed.sources_of("dev")[line.split("\t")[0]] == source]
    assert 0 < len(own) < len(lines)
    (imported / "qrels" / "dev.tsv").write_text("".join([heading, *own]))
    stores = tokenize(imported, tmp_path / "preprocessed", mixed.initial, "dev")
    alone = evaluate(stores, mixed.trained, tmp_path / "results")
    assert row["group_queries"][source] == alone["queries"]
    for measure, value in row["group_means"][source].items():
        assert value == pytest.approx(alone["metrics"][measure], abs=1e-12)


@pytest.mark.parametrize("source", SOURCES)
def test_where_no_other_sources_passages_compete_a_source_fares_as_by_itself(mixed, sources, source, tmp_path):
    imported = tmp_path / "imported"
    call(import_data, "--data_dir", sources[source], "--out_dir", imported, *SHARE)
    stores = tokenize(imported, tmp_path / "preprocessed", mixed.initial, "train", "dev")
    alone = evaluate(stores, mixed.trained, tmp_path / "results")
    own = {
        query.removeprefix(f"{source}/"): [
            passage.removeprefix(f"{source}/").removeprefix("passages/")  # which a query may not share its id with
            for passage in passages
            if passage.startswith(f"{source}/")
        ]
        for query, passages in ranking(mixed.place / "results" / "dev").items()
        if query.startswith(f"{source}/")
    }
    assert own == ranking(tmp_path / "results"), "the same dev queries are held out, and ids are the same"
    judged = [line.split("\t") for line in (imported / "qrels" / "dev.tsv").read_text().splitlines()[1:]]
    relevant = {(query, passage) for query, passage, grade in judged if int(grade) > 0}
    ranks = [
        next((rank for rank, passage in enumerate(passages[:10], 1) if (query, passage) in relevant), 0)
        for query, passages in own.items()
    ]
    assert alone["metrics"]["mrr@10"] == pytest.approx(sum(1 / rank for rank in ranks if rank) / len(ranks))


def test_training_weighs_the_sources_by_their_names(mixed):
    events = EventAccumulator(str(mixed.place / "models" / "logs")).Reload()
    tags = events.Tags()["scalars"]
    for curve in ("dev_cluster_mrr", "cluster_weight"):
        assert {tag for tag in tags if tag.startswith(f"{curve}/")} == {f"{curve}/{name}" for name in SOURCES}
    first, last = [[events.Scalars(f"cluster_weight/{name}")[i].value for name in SOURCES] for i in (0, -1)]
    assert sum(last) == pytest.approx(1, abs=1e-5)
    assert last != first


def test_exported_examples_have_the_name_of_their_querys_source(mixed):
    for name in ("lists.jsonl", "lists.parquet"):
        path = mixed.place / name
        call(
            export_mined,
            *("--out_file", path, "--form", "lists", "--token_dir", mixed.stores, "--data_dir", mixed.imported),
            *("--ann_dir", mixed.place / "ann_data", "--result_dir", mixed.place / "ann_data"),
        )
        if path.suffix == ".parquet":
            from pyarrow.parquet import read_table

            records = read_table(path).to_pylist()
        else:
            records = [json.loads(line) for line in path.read_text().splitlines()]
        found = {record["query_id"]: record["group"] for record in records}
        assert found == mixed.sources_of("train")
