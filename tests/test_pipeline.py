"""The whole pipeline by its real scripts, as separate processes, on a few hundred real passages.

tokenize → mine → train → mine → train → evaluate, with a tiny BERT of random weights and two processes.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.processes import free_port
from tests.workplace import CLUSTERED, CLUSTERS, IDRO, ROOT, STEPS
from utils.stores.checkpoint import newest_checkpoint, read_trainer_state
from utils.stores.episode import open_scores, read_episode, scores_file
from utils.stores.qrels import Qrels, read_qrels, write_qrels
from utils.stores.token_store import TokenStore

pytestmark = pytest.mark.pipeline
STORES = "train-query", "passages"


# The loop of the public README, word for word but for the variables, the number of processes and the ports.
PUBLISHED_MINING = """
    python -m torch.distributed.launch --nproc_per_node=2 --master_port $port ../drivers/run_ann_data_gen.py
      --training_dir $saved_models_dir --init_model_dir $pretrained_checkpoint_dir --model_type rdot_nll_condenser
      --output_dir $model_ann_data_dir --cache_dir "${model_ann_data_dir}cache/" --data_dir $preprocessed_data_dir
      --max_seq_length 48 --per_gpu_eval_batch_size 64 --topk_training 40 --negative_sample 7 --end_output_num 0
      --result_dir ${result_dir} --group 0 --public_ann_data_dir=${public_ann_data_dir} --cluster_query
      --cluster_centroids 5"""
PUBLISHED_TRAINING = """
    python -m torch.distributed.launch --nproc_per_node=2 --master_port $port ../drivers/run_ann.py
      --model_type $model_type --model_name_or_path $pretrained_checkpoint_dir --task_name MSMarco
      --training_dir=${saved_models_dir} --init_model_dir=${pretrained_checkpoint_dir} --triplet
      --data_dir $preprocessed_data_dir --ann_dir $model_ann_data_dir --max_seq_length $seq_length
      --per_gpu_train_batch_size $per_gpu_train_batch_size --per_gpu_eval_batch_size 64
      --gradient_accumulation_steps 1 --learning_rate $learning_rate --output_dir $saved_models_dir
      --warmup_steps $warmup_steps --logging_steps=10 --save_steps 25 --max_steps ${MAX_STEPS} --single_warmup
      --optimizer lamb --fp16 --log_dir $TSB_OUTPUT_DIR --model_size=${MODEL_SIZE} --result_dir=${result_dir}
      --group=${group} --n_groups=${CLUSTER_NUM} --dro_type=${DRO_TYPE} --alpha=${alpha} --eps=${eps} --ema=${ema}
      --rho=${rho} --round=${i}"""


@pytest.mark.timeout(600)
def test_two_rounds_of_the_published_loop_run_through_and_improve_on_the_initial_model(place):
    for name in ("ann_data", "results"):
        shutil.rmtree(place.folder / name)
    place.tokenize(place.folder / "preprocessed", "--max_query_length", 64)  # the default, which the lines leave out
    folders = {
        "saved_models_dir": "models",
        "pretrained_checkpoint_dir": "initial",
        "model_ann_data_dir": "ann_data/",
        "preprocessed_data_dir": "preprocessed",
        "result_dir": "results",
        "public_ann_data_dir": "public",
        "TSB_OUTPUT_DIR": "logs",
    }
    settings = (
        "model_type=rdot_nll_condenser MODEL_SIZE=base seq_length=48 per_gpu_train_batch_size=16 learning_rate=3e-3 "
        f"warmup_steps=5 MAX_STEPS=40 group=1 CLUSTER_NUM={CLUSTERS} DRO_TYPE=iDRO alpha=0.25 eps=0.01 ema=0.1 "
        "rho=0.05"
    )
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    variables = {name: f"{place.folder}/{folder}" for name, folder in folders.items()} | {
        **dict(setting.split("=") for setting in settings.split()),
        "PATH": path,
        "CUDA_VISIBLE_DEVICES": "",
    }
    for i in range(2):
        for line in (PUBLISHED_MINING, PUBLISHED_TRAINING):
            command = ["bash", "-c", line.replace("\n", " ")]
            finished = place.popen(command, cwd=ROOT / "commands", **variables, port=str(free_port()), i=str(i))
            stdout, stderr = finished.communicate()
            assert finished.returncode == 0, stdout + stderr
    state = read_trainer_state(place.checkpoint(80))
    assert (state.round, state.global_step, state.episode_step) == (1, 80, 40)
    assert len(state.dro["weights"]) == CLUSTERS
    assert place.result(1)["checkpoint"].endswith("checkpoint-40")

    before = place.evaluate("initial", "preprocessed", "--split", "train")
    after = place.evaluate("models/checkpoint-80", "preprocessed", "--split", "train", processes=2)
    assert after["metrics"]["mrr"] > 2 * before["metrics"]["mrr"]

    place.run(
        "data/beir_data.py",
        *("--data_dir", place.folder / "scipy-docs", "--out_data_dir", place.folder / "zero_shot"),
        *("--model_type", "rdot_nll_condenser", "--model_name_or_path", place.folder / "models" / "checkpoint-80"),
        launcher="none",
    )
    zero_shot = place.evaluate("models/checkpoint-80", "zero_shot", processes=2, launcher="torchrun")
    assert zero_shot["collection"] == "zero_shot"
    assert 0 < zero_shot["metrics"]["ndcg@10"] < zero_shot["metrics"]["recall@100"] == 1


def test_mined_negatives_are_hard_and_never_relevant(mined):
    passages = TokenStore(mined.folder / "preprocessed" / "passages")
    queries = TokenStore(mined.folder / "preprocessed" / "train-query")
    qrels = read_qrels(mined.folder / "preprocessed" / "train-qrel.tsv", len(queries), len(passages))
    path = mined.folder / "ann_data" / "ann_training_data_0"
    episode = read_episode(path, len(queries), len(passages), CLUSTERS)
    lines = episode.line_of(np.arange(episode.triplets))
    assert set(episode.query_rows) == set(range(len(queries)))
    for triplet, line in enumerate(lines):
        query = episode.query_rows[line]
        assert episode.positive_rows[line] in qrels.positives[query]
        assert episode.negative_rows[triplet] not in qrels.positives[query]
    counts = np.bincount(episode.query_rows[lines], minlength=len(queries))
    assert (counts == 7).all()
    assert mined.result(0)["triplets"] == 7 * len(queries)
    assert set(np.unique(episode.clusters)) <= set(range(CLUSTERS))
    sizes = np.load(mined.folder / "ann_data" / "clusters_0" / "sizes.npy")
    assert sizes.sum() == len(queries)
    assert len(mined.result(0)["cluster_mrr"]) == CLUSTERS


def test_scores_beside_the_mined_file_are_the_inner_products_of_the_vectors_that_were_searched(mined):
    ann_data, stores = mined.folder / "ann_data", mined.folder / "preprocessed"
    episode = read_episode(ann_data / "ann_training_data_0", *(len(TokenStore(stores / n)) for n in STORES), None)
    scores = open_scores(ann_data, mined.folder / "results", 0, episode)
    queries, passages = (
        np.concatenate([np.load(path) for path in sorted((ann_data / "embeddings-0").glob(f"{name}.?-of-2.npy"))])
        for name in STORES
    )
    query_rows, passage_rows = [], []
    for line, (query, positive) in enumerate(zip(episode.query_rows, episode.positive_rows, strict=True)):
        negatives = episode.negative_rows[episode.starts[line] : episode.starts[line + 1]]
        passage_rows += [positive, *negatives]
        query_rows += [query] * (1 + len(negatives))
    plain = (queries[query_rows].astype(np.float64) * passages[passage_rows]).sum(1)
    assert len(np.unique(plain)) > len(plain) / 10
    np.testing.assert_allclose(scores, plain, rtol=1e-6, atol=1e-6)


def test_one_process_mines_what_two_mine(place, mined):
    for name in ("ann_data", "results"):
        shutil.rmtree(place.folder / name)
    place.mine(0, *CLUSTERED, launcher="none", cwd=place.folder)
    name = "ann_data/ann_training_data_0"
    assert (place.folder / name).read_text() == (mined.folder / name).read_text()
    scores, expected = (np.load(scores_file(of.folder / "ann_data", 0)) for of in (place, mined))
    np.testing.assert_allclose(scores, expected, rtol=1e-6)  # texts were encoded in other batches
    assert place.result(0)["ndcg"] == pytest.approx(mined.result(0)["ndcg"])


def test_negatives_do_not_depend_on_clusters(place, mined):
    for name in ("ann_data/ann_training_data_0", "ann_data/ann_training_scores_0.npy", "results/ann_ndcg_0"):
        (place.folder / name).unlink()
    place.mine(0, launcher="none")  # from the same vectors, by one process instead of two
    plain = (place.folder / "ann_data" / "ann_training_data_0").read_text().splitlines()
    clustered = (mined.folder / "ann_data" / "ann_training_data_0").read_text().splitlines()
    assert plain == [line.rsplit("\t", 2)[0] for line in clustered]
    assert place.result(0)["scores_sha256"] == mined.result(0)["scores_sha256"]


def test_training_that_was_interrupted_ends_with_the_same_weights_bit_for_bit(place):
    place.train(0, *IDRO, "--save_steps", 4, processes=2)
    whole = place.weights(STEPS)
    shutil.rmtree(place.folder / "models" / f"checkpoint-{STEPS}")
    resumed = place.train(0, *IDRO, "--save_steps", 4, processes=2)
    assert "steps 4 to 6" in resumed.stdout
    again = place.weights(STEPS)
    assert all(np.array_equal(again[name], value) for name, value in whole.items())
    before = sorted(path.name for path in (place.folder / "models").iterdir())
    assert "trained already" in place.train(0, *IDRO, launcher="none").stdout
    assert sorted(path.name for path in (place.folder / "models").iterdir()) == before


def test_two_processes_leave_alone_what_is_mined_and_trained_already(place):
    mined_file = place.folder / "ann_data" / "ann_training_data_0"
    written = mined_file.stat().st_mtime_ns
    assert "nothing to mine with: no checkpoint is newer" in place.mine(0, *CLUSTERED, processes=2).stdout
    assert mined_file.stat().st_mtime_ns == written
    assert not (place.folder / "ann_data" / "ann_training_data_1").exists()
    place.train(0, "--max_steps", 2, processes=2)
    assert "trained already" in place.train(0, "--max_steps", 2, processes=2).stdout


def test_an_episode_that_is_cut_short_by_fewer_steps_ends_where_it_is_and_mines_the_next(place):
    place.train(0, "--max_steps", 4, "--save_steps", 2, launcher="none")
    shutil.rmtree(place.checkpoint(4))
    weights = place.weights(2)
    assert "the episode ends here" in place.train(0, "--max_steps", 1, launcher="none").stdout
    assert all(np.array_equal(place.weights(2)[name], value) for name, value in weights.items())
    assert newest_checkpoint(place.folder / "models") == place.checkpoint(2)
    place.mine(0, launcher="none")
    assert place.result(1)["step"] == 2


def children(process: subprocess.Popen, script: str) -> list[int]:
    """The processes that a launcher started to run a script."""
    pids = " ".join(path.read_text() for path in Path(f"/proc/{process.pid}/task").glob("*/children")).split()
    return [int(pid) for pid in pids if script in Path(f"/proc/{pid}/cmdline").read_text()]


def test_a_killed_process_ends_the_whole_run_within_a_minute(place):
    launcher = place.train(0, "--max_steps", 10**6, "--save_steps", 5, processes=2, background=True)
    try:
        patience = time.monotonic() + 120
        while not (place.folder / "models" / "checkpoint-5").exists():
            assert launcher.poll() is None, launcher.stderr.read()
            assert time.monotonic() < patience
            time.sleep(0.2)
        first, second = children(launcher, "run_ann.py")
        os.kill(second, signal.SIGKILL)
        _, stderr = launcher.communicate(timeout=60)
        assert launcher.returncode != 0
        assert "SIGKILL" in stderr
        assert not Path(f"/proc/{first}").exists()
    finally:
        launcher.terminate()
        launcher.communicate(timeout=60)


def test_an_unfinished_episode_is_mined_again_from_the_embeddings_that_are_there(place):
    (place.folder / "results" / "ann_ndcg_0").unlink()
    finished = place.mine(0, *CLUSTERED, processes=2)
    assert finished.stdout.count("embeddings reused") == 3


def test_inference_encodes_and_mines_nothing(place):
    for name in ("ann_data", "results"):
        shutil.rmtree(place.folder / name)
    place.mine(0, "--inference", launcher="none")
    assert (place.folder / "ann_data" / "embeddings-0" / "manifest.json").exists()
    assert not (place.folder / "ann_data" / "ann_training_data_0").exists()


def test_inference_encodes_with_the_newest_checkpoint_whatever_is_mined_already(place):
    place.train(0, "--max_steps", 2)
    place.mine(0, "--inference")
    manifest = place.folder / "ann_data" / "embeddings-2" / "manifest.json"
    assert set(json.loads(manifest.read_text())["matrices"]) == {"passages", "train-query", "dev-query"}
    place.mine(1)
    assert place.mine(2, "--inference").stdout.count("embeddings reused") == 3
    assert not (place.folder / "results" / "ann_ndcg_2").exists()


def test_an_initial_model_may_be_called_like_a_checkpoint(place):
    for name in ("ann_data", "results"):
        shutil.rmtree(place.folder / name)
    named = (place.folder / "initial").rename(place.folder / "checkpoint-45000")
    initial = ("--init_model_dir", named)
    public = place.folder / "public"
    place.mine(0, *initial, "--public_ann_data_dir", public)
    assert place.result(0)["step"] == 0
    assert (public / "manifest.json").exists()
    assert not (place.folder / "ann_data" / "embeddings-45000").exists()
    assert "nothing to mine with" in place.mine(1, *initial).stdout
    place.train(0, *initial, "--max_steps", 2)
    place.mine(1, *initial, "--public_ann_data_dir", public)
    assert (place.result(1)["step"], place.result(1)["checkpoint"].endswith("models/checkpoint-2")) == (2, True)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--group", 1, "--n_groups", CLUSTERS + 1), "--n_groups"),
        (("--group", 1, "--n_groups", CLUSTERS - 1), "--n_groups"),
        (("--max_query_length", 12), "16 tokens"),
        (("--round", 1), "goes on from one"),
        (("--dro_type", "vrex", "--group", 1, "--n_groups", CLUSTERS), "dro-greedy"),
    ],
)
def test_training_refuses_what_does_not_fit_and_says_why(place, flags, reason):
    failed = place.train(0, "--max_steps", 2, *flags, launcher="none", fails=True)
    assert failed.stderr.strip().splitlines()[-1].startswith("error: ")
    assert reason in failed.stderr
    assert not list(place.folder.glob("models/checkpoint-*"))


def test_training_on_clusters_refuses_a_mined_file_without_them(place):
    for name in ("ann_data/ann_training_data_0", "results/ann_ndcg_0"):
        (place.folder / name).unlink()
    place.mine(0, launcher="none")
    assert "--cluster_query" in place.train(0, *IDRO, launcher="none", fails=True).stderr


def test_an_episode_is_not_mined_by_a_checkpoint_that_was_trained_on_it(place):
    place.train(0, "--max_steps", 2, launcher="none")
    mined, result = place.folder / "ann_data" / "ann_training_data_0", place.folder / "results" / "ann_ndcg_0"
    before = mined.read_bytes()
    result.unlink()
    failed = place.mine(0, *CLUSTERED, launcher="none", fails=True)
    assert "checkpoint-2: was trained on episode 0, so that it cannot mine episode 0; remove" in failed.stderr
    assert mined.read_bytes() == before
    assert not result.exists()


def test_an_episode_without_any_negative_is_refused_and_not_made_ready(place):
    (place.folder / "results" / "ann_ndcg_0").unlink()
    stores = place.folder / "preprocessed"
    queries, passages = (len(TokenStore(stores / name)) for name in ("train-query", "passages"))
    write_qrels(stores / "train-qrel.tsv", Qrels.of((q, p, 1) for q in range(queries) for p in range(passages)))
    failed = place.mine(0, launcher="none", fails=True)
    assert "--topk_training" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not (place.folder / "results" / "ann_ndcg_0").exists()


def test_judgments_of_other_stores_are_refused_before_anything_is_encoded(place):
    for name in ("ann_data", "results"):
        shutil.rmtree(place.folder / name)
    qrels = place.folder / "preprocessed" / "train-qrel.tsv"
    qrels.write_text("".join(line for line in qrels.open() if not line.startswith("3\t")))
    failed = place.mine(0, launcher="none", fails=True)
    assert "train-qrel.tsv: 1 of" in failed.stderr
    assert "query row 3" in failed.stderr
    assert [path.name for path in (place.folder / "ann_data").iterdir()] == [".lock"]


def test_more_clusters_than_queries_are_refused(place):
    (place.folder / "results" / "ann_ndcg_0").unlink()
    failed = place.mine(0, "--cluster_query", "--cluster_centroids", 5000, processes=2, fails=True)
    assert "5000 clusters of" in failed.stderr
    assert not (place.folder / "results" / "ann_ndcg_0").exists()


def test_a_port_in_use_ends_the_run_with_the_reason(place):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        environment = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        finished = subprocess.run(
            [
                sys.executable,
                ROOT / "drivers" / "run_ann.py",
                "--data_dir",
                "x",
                "--ann_dir",
                "x",
                "--output_dir",
                "x",
            ],
            env=os.environ | environment | {"MASTER_PORT": str(taken.getsockname()[1])},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    assert finished.returncode == 2
    assert "port" in finished.stderr
