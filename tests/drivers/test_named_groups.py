"""Groups by name from mining to the table: the same data by their groups, and by each group alone."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch.multiprocessing
from safetensors.numpy import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data import msmarco_data
from drivers import run_ann, run_ann_data_gen
from evaluate import evaluate_beir, results_table
from tests.processes import free_port
from tests.tiny_run import (
    GRADES,
    PASSAGE_LENGTH,
    QUERIES,
    QUERY_LENGTH,
    STEP,
    call,
    save_tiny_checkpoint,
    write_msmarco,
)
from utils.runtime.errors import InputError
from utils.stores.token_store import TokenStore

NAMES = ["a/b", "code", "law & order"]
DEV = 50  # dev query n has the id 50 + n, and training query n the id n
MODEL = "--model_type", "rdot_nll_condenser", "--no_cuda"
LENGTHS = "--max_seq_length", PASSAGE_LENGTH, "--max_query_length", QUERY_LENGTH


def group_of(query: int) -> str | None:
    """Dev query 57 has none."""
    return None if query == DEV + 7 else NAMES[(query % DEV) % 3]


def tokenize(folder: Path, checkpoint: Path, dev: list[int]) -> Path:
    """Token stores with these dev queries."""
    raw = write_msmarco(folder / "raw")
    (raw / "queries.dev.tsv").write_text("".join(f"{query}\t{QUERIES[query - DEV]}\n" for query in dev))
    judged = ((query, *grade) for query in dev for grade in GRADES[query - DEV].items())
    (raw / "qrels.dev.tsv").write_text("".join(f"{q}\t0\t{100 + p}\t{grade}\n" for q, p, grade in judged))
    model = "--model_type", "rdot_nll_condenser", "--model_name_or_path", checkpoint
    call(msmarco_data, "--data_dir", raw, "--out_data_dir", folder / "preprocessed", *model, *LENGTHS)
    return folder / "preprocessed"


def mining(folder: Path, out: Path, *flags: object) -> list[object]:
    """What run_ann_data_gen.py is given."""
    checkpoint = folder / "initial" / f"checkpoint-{STEP}"
    return [
        *(*MODEL, *LENGTHS, "--init_model_dir", checkpoint, "--training_dir", out / "none"),
        *("--data_dir", folder / "all" / "preprocessed", "--output_dir", out, "--topk_training", 20),
        *("--negative_sample", 5, *flags),
    ]


def evaluate(folder: Path, stores: Path, out: Path) -> dict:
    checkpoint = folder / "initial" / f"checkpoint-{STEP}"
    where = "--data_dir", stores, "--out_dir", out, "--embedding_dir", out / "embeddings"
    call(evaluate_beir, *MODEL, "--model_name_or_path", checkpoint, "--split", "dev", *where)
    return json.loads((out / "metrics.json").read_text())["metrics"]


@pytest.fixture(scope="module")
def mined(tmp_path_factory) -> Path:
    """An episode that is mined with groups by name."""
    folder = tmp_path_factory.mktemp("named")
    checkpoint = save_tiny_checkpoint(folder / "initial", "rdot_nll_condenser")
    tokenize(folder / "all", checkpoint, [DEV + n for n in QUERIES])
    queries = [*QUERIES, *(DEV + n for n in QUERIES)]
    (folder / "groups.tsv").write_text(
        "".join(f"{query}\t{group_of(query)}\n" for query in queries if group_of(query))
    )
    call(run_ann_data_gen, *mining(folder, folder / "ann_data", "--groups_file", folder / "groups.tsv", "--group", 1))
    return folder


def train(mined: Path, own: Path, *flags: object) -> None:
    checkpoint = mined / "initial" / f"checkpoint-{STEP}"
    call(
        run_ann,
        *(*MODEL, *LENGTHS, "--init_model_dir", checkpoint, "--output_dir", own, "--data_dir"),
        *(mined / "all" / "preprocessed", "--ann_dir", mined / "ann_data", "--optimizer", "adamW"),
        *("--per_gpu_train_batch_size", 4, "--max_steps", 4, "--learning_rate", 1e-3, "--logging_steps", 1, *flags),
    )


def test_a_mined_lines_cluster_is_its_querys_group(mined):
    ids = TokenStore(mined / "all" / "preprocessed" / "train-query").ids
    lines = (mined / "ann_data" / "ann_training_data_0").read_text().splitlines()
    for line in lines:
        query, *_, group = line.split("\t")
        assert NAMES[int(group)] == group_of(int(ids[int(query)]))
    assert len(lines) >= len(ids)
    result = json.loads((mined / "ann_data" / "ann_ndcg_0").read_text())
    assert (result["cluster_names"], result["cluster_dev_queries"]) == (NAMES, [3, 2, 2])


def test_a_groups_numbers_are_those_of_an_evaluation_on_its_queries_alone(mined, tmp_path, capsys):
    results = tmp_path / "results"
    everything = evaluate(mined, mined / "all" / "preprocessed", results / "dev" / "first")
    capsys.readouterr()
    call(
        results_table,
        *("--out_dir", results, "--clusters_dir", mined / "ann_data" / "clusters_0"),
        *("--dev_query_dir", mined / "all" / "preprocessed" / "dev-query"),
        *("--rows", f"first={results / 'dev' / 'first' / 'metrics.json'}"),
    )
    printed = capsys.readouterr().out.splitlines()
    (row,) = json.loads((results / "results.json").read_text())["rows"]
    of_mining = json.loads((mined / "ann_data" / "ann_ndcg_0").read_text())
    assert of_mining["mrr@10"] == pytest.approx(everything["mrr@10"])
    for number, name in enumerate(NAMES):
        own = [DEV + n for n in QUERIES if group_of(DEV + n) == name]
        stores = tokenize(tmp_path / f"group {number}", mined / "initial" / f"checkpoint-{STEP}", own)
        alone = evaluate(mined, stores, tmp_path / f"group {number}" / "results")
        for measure, value in row["group_means"][name].items():
            assert value == pytest.approx(alone[measure], abs=1e-12)
        assert row["group_queries"][name] == len(own)
        assert of_mining["cluster_mrr"][number] == pytest.approx(alone["mrr@10"], abs=1e-6)
        assert f"{name}{len(own)}{alone['mrr@10']:.3f}".replace(" ", "") in [
            line.replace(" ", "") for line in printed
        ]


def _mine(rank: int, port: int, arguments: list[object]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115  the process ends by itself
    call(run_ann_data_gen, *arguments)


def test_two_processes_mine_what_one_does(mined, tmp_path):
    flags = mining(mined, tmp_path / "two", "--groups_file", mined / "groups.tsv")
    torch.multiprocessing.spawn(_mine, (free_port(), flags), nprocs=2)
    for name in (
        "ann_training_data_0",
        *(f"clusters_0/{name}.npy" for name in ("assignment", "dev_assignment", "sizes")),
    ):
        assert (tmp_path / "two" / name).read_bytes() == (mined / "ann_data" / name).read_bytes()


def test_training_takes_the_number_of_groups_from_the_episode_and_logs_them_by_name(mined, tmp_path, own_signals):
    train(mined, tmp_path / "counted", "--group", 1, "--n_groups", 0)
    train(mined, tmp_path / "told", "--group", 1, "--n_groups", len(NAMES))
    files = [tmp_path / name / "checkpoint-4" / "model.safetensors" for name in ("counted", "told")]
    assert files[0].read_bytes() == files[1].read_bytes()
    events = EventAccumulator(str(tmp_path / "counted" / "logs")).Reload()
    tags = events.Tags()["scalars"]
    for curve in ("dev_cluster_mrr", "cluster_weight"):
        assert {tag for tag in tags if tag.startswith(f"{curve}/")} == {f"{curve}/{name}" for name in NAMES}
    assert {tag for tag in tags if tag.startswith("cluster_loss/")} <= {f"cluster_loss/{name}" for name in NAMES}


@pytest.mark.parametrize("objective", ["idro", "dro-greedy"])
def test_one_single_group_trains_as_all_queries_alike_do(mined, tmp_path, own_signals, objective):
    one = tmp_path / "one"
    for name in ("initial", "all"):
        one.mkdir(exist_ok=True)
        (one / name).symlink_to(mined / name)
    (one / "groups.tsv").write_text("".join(f"{query}\tall\n" for query in QUERIES))
    call(run_ann_data_gen, *mining(one, one / "ann_data", "--groups_file", one / "groups.tsv"))
    train(one, tmp_path / objective, "--group", 1, "--n_groups", 0, "--dro_type", objective)
    train(one, tmp_path / "erm", "--group", 0)
    of_group, of_all = (
        load_file(tmp_path / name / "checkpoint-4" / "model.safetensors") for name in (objective, "erm")
    )
    for name in of_group.keys() - {name for name in of_group if name.endswith("key.bias")}:  # of no effect: noise
        weights = of_group[name]
        np.testing.assert_allclose(weights, of_all[name], atol=1e-5, err_msg=name)


def test_what_is_wrong_with_the_groups_is_said_before_anything_is_encoded(mined, tmp_path):
    (tmp_path / "few.tsv").write_text("0\tlaw\n")
    with pytest.raises(InputError, match=r"few\.tsv: 7 of 8 training queries have no group there, '1' the first"):
        call(run_ann_data_gen, *mining(mined, tmp_path / "out", "--groups_file", tmp_path / "few.tsv"))
    assert not list((tmp_path / "out").glob("embeddings-*"))


def test_training_on_as_many_groups_as_were_mined_with_wants_some(mined, tmp_path, own_signals):
    bare = tmp_path / "bare"
    call(run_ann_data_gen, *mining(mined, bare))
    with pytest.raises(InputError, match=r"ann_ndcg_0: episode 0 was mined without clusters, which --group 1 weighs"):
        train(mined, tmp_path / "own", "--group", 1, "--n_groups", 0, "--ann_dir", bare)
    with pytest.raises(InputError, match="--n_groups is -1"):
        train(mined, tmp_path / "own", "--group", 1, "--n_groups", -1)
