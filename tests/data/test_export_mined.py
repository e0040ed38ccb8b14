"""A mined episode as examples with texts: as plain Python puts them together, and as the libraries read them."""

import gzip
import json
import re
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from datasets import load_dataset
from pyarrow import parquet
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MarginMSELoss, MultipleNegativesRankingLoss

from data import beir_data, export_mined, msmarco_data
from drivers import run_ann_data_gen
from model.reading import MODEL_TYPES, ModelType
from tests.tiny_run import (
    GRADES,
    PASSAGE_LENGTH,
    PASSAGES,
    QUERIES,
    QUERY_LENGTH,
    STEP,
    call,
    save_tiny_checkpoint,
    write_beir,
    write_msmarco,
)
from utils.batching import Sequences
from utils.runtime.errors import InputError
from utils.stores.files import sha256_of_file
from utils.stores.token_store import TokenStore

CHUNK = 8
CLUSTERS = 3


class Mined(NamedTuple):
    """A run with a mined episode; ids are format strings of a passage's or query's number."""

    run: Path
    passage_id: str
    query_id: str
    title: str
    chunk_length: int | None

    def export(self, name: str, *flags: object) -> Path:
        path = self.run.parent / name
        call(export_mined, "--run_dir", self.run, "--out_file", path, *flags)
        return path

    @property
    def lines(self) -> list[tuple[int, int, list[int], int]]:
        """Query, positive, negatives and cluster of each line of the mined file."""
        split = (line.split("\t") for line in (self.run / "ann_data/ann_training_data_0").read_text().splitlines())
        return [(int(q), int(p), [*map(int, negatives.split(","))], int(c)) for q, p, negatives, _, c in split]

    def text(self, row: int) -> str:
        return f"{self.title} {PASSAGES[row]}" if self.title else PASSAGES[row]

    @property
    def scores(self) -> np.ndarray:
        """The score of every query and passage, float64 (queries, passages), a passage's best chunk counting."""
        queries, chunks = (
            np.load(self.run / f"ann_data/embeddings-0/{name}.0-of-1.npy").astype(np.float64)
            for name in ("train-query", "passages")
        )
        starts = Sequences(TokenStore(self.run / "preprocessed/passages"), self.chunk_length).row_starts
        return np.maximum.reduceat(queries @ chunks.T, starts[:-1], axis=1)


def mine(out: Path, raw: Path, model_type: str = "rdot_nll_condenser", clusters: bool = True) -> None:
    """A run that stands after its first mining, of the collection in `raw`."""
    checkpoint = save_tiny_checkpoint(out.parent / "initial", model_type)
    lengths = ("--max_seq_length", PASSAGE_LENGTH, "--max_query_length", QUERY_LENGTH)
    model = ("--model_type", model_type, "--model_name_or_path", checkpoint)
    tokenize = ("--data_dir", raw, "--out_data_dir", out / "preprocessed", *model, *lengths)
    if (raw / "qrels").exists():
        for split in ("train", "dev"):
            call(beir_data, *tokenize, "--split", split)
    else:
        call(msmarco_data, *tokenize)
    call(
        run_ann_data_gen,
        *(
            "--model_type",
            model_type,
            *lengths,
            "--init_model_dir",
            checkpoint,
            "--training_dir",
            out / "saved_models",
        ),
        *("--data_dir", out / "preprocessed", "--output_dir", out / "ann_data"),
        *("--result_dir", out / "results"),
        *("--topk_training", 20, "--negative_sample", 7, "--ann_chunk_factor", 3, "--no_cuda"),
        *(("--cluster_query", "--cluster_centroids", CLUSTERS) if clusters else ()),
    )
    for stage in ("tokenize", "mine", "train", "evaluate"):
        content = f"DATA_DIR={raw.relative_to(out)}\n" if stage == "tokenize" else "OTHER=1\n"
        (out / f"settings.{stage}").write_text(content)


def stray_queries(path: Path, line: str) -> None:
    """Queries without judgments before, between and after those that have some."""
    first, *others = path.read_text().splitlines()
    path.write_text("".join(f"{part}\n" for part in (line % 97, first, line % 98, *others, line % 99)))


@pytest.fixture(scope="module", params=["msmarco", "gzipped", "chunks", "beir"])
def mined(request, tmp_path_factory) -> Mined:
    out = tmp_path_factory.mktemp("export") / "out"
    if request.param == "beir":
        raw = write_beir(out / "collection")
        judged = (raw / "qrels/test.tsv").read_text()
        for split in ("train", "dev"):
            (raw / f"qrels/{split}.tsv").write_text(judged)
        stray_queries(raw / "queries.jsonl", '{"_id": "q%d", "text": "the tree"}')
        mine(out, raw)
        return Mined(out, "p{}", "q{}", "the Cat", None)
    raw = write_msmarco(out / "collection")
    stray_queries(raw / "queries.train.tsv", "%d\tthe tree")
    if request.param == "gzipped":
        for name in ("collection.tsv", "queries.train.tsv"):
            (raw / f"{name}.gz").write_bytes(gzip.compress((raw / name).read_bytes()))
            (raw / name).unlink()
    with pytest.MonkeyPatch.context() as patch:
        chunks = request.param == "chunks"
        patch.setitem(MODEL_TYPES, "rdot_nll_multi_chunk", ModelType("roberta", ance_head=True, chunk_length=CHUNK))
        mine(out, raw, "rdot_nll_multi_chunk" if chunks else "rdot_nll_condenser")
    return Mined(out, "1{:02d}", "{}", "", CHUNK if chunks else None)


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(export_mined, "BLOCK_NEGATIVES", 10)


def test_triplets_are_the_mined_files_with_texts_and_scores(mined):
    scores = mined.scores
    records = read(mined.export("triplets.jsonl"))
    wanted = [(q, p, n) for q, p, negatives, _ in mined.lines for n in negatives]
    assert len(records) == len(wanted) == 7 * len(QUERIES)
    for record, (query, positive, negative) in zip(records, wanted, strict=True):
        assert list(record) == ["query", "positive", "negative", "scores"]
        texts = (record["query"], record["positive"], record["negative"])
        assert texts == (QUERIES[query], mined.text(positive), mined.text(negative))
        assert record["scores"] == pytest.approx([scores[query, positive], scores[query, negative]], rel=1e-5)
    assert not list(mined.run.parent.glob(".*")), "what was unpacked is gone"


def test_lists_have_all_negatives_of_a_query_and_positive(mined):
    scores, together = mined.scores, {}
    for query, positive, negatives, cluster in mined.lines:
        _, found = together.setdefault((query, positive), (cluster, []))
        found += negatives
    records = read(mined.export("lists.jsonl", "--form", "lists"))
    assert len(records) == len(together) == 2 * len(QUERIES), "each query has two positives, which take turns"
    for record, (query, positive) in zip(records, sorted(together), strict=True):
        group, negatives = together[query, positive]
        assert record.pop("scores") == pytest.approx(scores[query, [positive, *negatives]].tolist(), rel=1e-5)
        assert record == {
            "query": QUERIES[query],
            "positive": mined.text(positive),
            "negatives": [mined.text(row) for row in negatives],
            "group": group,
            "query_id": mined.query_id.format(query),
            "positive_id": mined.passage_id.format(positive),
            "negative_ids": [mined.passage_id.format(row) for row in negatives],
        }


def test_groups_by_name_are_exported_by_their_names(plain, tmp_path):
    run = shutil.copytree(plain.run, tmp_path / "run")
    result = json.loads((run / "results/ann_ndcg_0").read_text())
    (run / "results/ann_ndcg_0").write_text(json.dumps(result | {"cluster_names": ["mails", "wiki", "…"]}))
    numbers = read(plain.export("numbers.jsonl", "--form", "lists"))
    for suffix in ("jsonl", "parquet"):
        path = tmp_path / f"names.{suffix}"
        call(export_mined, "--run_dir", run, "--out_file", path, "--form", "lists")
        names = read(path) if suffix == "jsonl" else parquet.read_table(path).to_pylist()
        assert [record["group"] for record in names] == [
            ("mails", "wiki", "…")[record["group"]] for record in numbers
        ]


def test_tevatrons_lines_have_all_of_a_query(mined):
    records = read(mined.export("tevatron.jsonl", "--form", "tevatron"))
    assert len(records) == len(QUERIES)
    for query, record in enumerate(records):
        own = [line for line in mined.lines if line[0] == query]
        rows = {
            "positive_passages": [*dict.fromkeys(positive for _, positive, _, _ in own)],
            "negative_passages": [row for _, _, negatives, _ in own for row in negatives],
        }
        assert set(rows["positive_passages"]) == {p for p, grade in GRADES[query].items() if grade}
        passages = {
            name: [
                {"docid": mined.passage_id.format(row), "title": mined.title, "text": PASSAGES[row]} for row in found
            ]
            for name, found in rows.items()
        }
        assert record == {"query_id": mined.query_id.format(query), "query": QUERIES[query], **passages}


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Mined:
    out = tmp_path_factory.mktemp("plain") / "out"
    mine(out, write_msmarco(out / "collection"))
    return Mined(out, "1{:02d}", "{}", "", None)


@pytest.mark.parametrize("form", ["triplets", "lists", "tevatron"])
def test_datasets_reads_both_formats_alike(plain, form, tmp_path):
    def load(path: Path) -> list[dict]:
        kind = "json" if path.suffix == ".jsonl" else "parquet"
        return load_dataset(kind, data_files=str(path), split="train", cache_dir=str(tmp_path)).to_list()

    lines = plain.export(f"{form}.jsonl", "--form", form)
    assert load(lines) == read(lines)
    if form != "tevatron":
        records = load(plain.export(f"{form}.parquet", "--form", form))
        for record, expected in zip(records, read(lines), strict=True):
            assert np.array_equal(np.float32(record.pop("scores")), np.float32(expected.pop("scores")))
            assert record == expected


@pytest.mark.parametrize(
    ("name", "loss"),
    [("triplets.jsonl", MultipleNegativesRankingLoss), ("triplets.parquet", MarginMSELoss)],
)
def test_sentence_transformers_trains_on_triplets_as_they_are(plain, name, loss, tmp_path):
    path = plain.export(name)
    kind = "json" if path.suffix == ".jsonl" else "parquet"
    examples = load_dataset(kind, data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    model = SentenceTransformer(str(plain.run.parent / "initial" / f"checkpoint-{STEP}"), device="cpu")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    settings = {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "use_cpu": True}
    silent = {"report_to": "none", "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True}
    arguments = SentenceTransformerTrainingArguments(str(tmp_path / "out"), **settings, **silent)
    trainer = SentenceTransformerTrainer(model, arguments, train_dataset=examples, loss=loss(model))
    trainer.train()
    found = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert trainer.state.global_step == len(found) == 2
    assert np.isfinite(found).all()
    assert any(not torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_the_documented_filter_keeps_what_scores_below_the_positive(plain, monkeypatch, tmp_path):
    plain.export("mined.parquet", "--form", "lists")
    monkeypatch.chdir(plain.run.parent)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    page = (Path(__file__).resolve().parents[2] / "docs" / "using.md").read_text()
    (program,) = (part for part in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "load_dataset" in part)
    space: dict = {}
    exec(program, space)
    kept, whole = space["mined"].to_list(), read(plain.export("lists.jsonl", "--form", "lists"))
    assert 0 < sum(len(row["negatives"]) for row in kept) < sum(len(row["negatives"]) for row in whole)
    for row, unfiltered in zip(kept, whole, strict=True):
        positive, *scores = unfiltered["scores"]
        pairs = zip(unfiltered["negatives"], scores, strict=True)
        assert row["negatives"] == [text for text, score in pairs if score < 0.95 * positive]


def test_an_episode_without_clusters_or_of_a_version_without_scores_lacks_the_columns(tmp_path, capsys):
    out = tmp_path / "out"
    mine(out, write_msmarco(out / "collection"), clusters=False)
    result = json.loads((out / "results/ann_ndcg_0").read_text())
    del result["scores_sha256"]
    (out / "results/ann_ndcg_0").write_text(json.dumps(result))
    call(
        export_mined,
        *("--token_dir", out / "preprocessed", "--data_dir", out / "collection", "--ann_dir", out / "ann_data"),
        *("--result_dir", out / "results", "--episode", 0, "--form", "lists", "--out_file", tmp_path / "a.jsonl"),
    )
    assert "kept no scores" in capsys.readouterr().out
    columns = ["query", "positive", "negatives", "query_id", "positive_id", "negative_ids"]
    assert list(read(tmp_path / "a.jsonl")[0]) == columns


@pytest.fixture
def copied(plain, tmp_path) -> Mined:
    """A copy that a test may change."""
    (tmp_path / "copy").mkdir()
    run = tmp_path / "copy" / "out"
    shutil.copytree(plain.run, run)
    return plain._replace(run=run)


def test_texts_that_were_changed_since_are_refused_and_nothing_is_left(copied):
    raw = copied.run / "collection" / "collection.tsv"
    whole = raw.read_text()
    raw.write_text(whole + "x\ty\n")
    with pytest.raises(InputError, match=r"collection\.tsv: has [\d,]+ bytes, and .* tokenize again"):
        copied.export("a.jsonl")
    raw.write_text(whole.replace("105\t", "905\t"))
    with pytest.raises(InputError, match=r"collection\.tsv:6: holds '905' where its token store has '105'"):
        copied.export("a.jsonl")
    raw.write_text(whole)
    queries = copied.run / "collection" / "queries.train.tsv"
    queries.write_text(queries.read_text().replace("3\t", "9\t", 1))
    with pytest.raises(InputError, match=r"queries\.train\.tsv: has no '3' after the lines"):
        copied.export("a.jsonl")
    assert [path.name for path in copied.run.parent.iterdir()] == ["out"]


def test_mined_files_that_are_not_as_they_were_written_are_refused(copied):
    path = copied.run / "ann_data" / "ann_training_scores_0.npy"
    scores = np.load(path)
    np.save(path, scores + 1)
    with pytest.raises(InputError, match=r"ann_training_scores_0\.npy: is damaged"):
        copied.export("a.jsonl")
    np.save(path, scores)
    assert sha256_of_file(path) == json.loads((copied.run / "results/ann_ndcg_0").read_text())["scores_sha256"]
    assert copied.export("a.jsonl").exists()


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({"out_file": "a.csv"}, r"--out_file a\.csv: the name must end in \.jsonl or \.parquet"),
        ({"form": "pairs"}, "--form 'pairs': there are triplets, lists, tevatron"),
        ({"form": "tevatron", "out_file": "a.parquet"}, "--form tevatron is JSONL"),
        ({"ann_dir": "a", "data_dir": "d"}, "give --run_dir, or --token_dir, --result_dir"),
    ],
)
def test_misuse_is_told(flags, reason):
    with pytest.raises(InputError, match=reason):
        export_mined.Arguments(**{"out_file": "a.jsonl"} | flags)


def test_without_an_episode_or_without_pyarrow_the_cure_is_told(plain, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no episode there is ready"):
        call(export_mined, "--run_dir", plain.run, "--result_dir", tmp_path, "--out_file", tmp_path / "a.jsonl")
    with pytest.raises(InputError, match="episode 5 is not ready"):
        plain.export("a.jsonl", "--episode", 5)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"commands/install\.sh data"):
        plain.export("a.parquet")
