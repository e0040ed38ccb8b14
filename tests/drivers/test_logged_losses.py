"""What training logs in TensorBoard."""

import shutil
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from drivers import run_ann, run_ann_data_gen
from tests.tiny_run import PASSAGE_LENGTH, QUERY_LENGTH, STEP, call, make_run
from utils.stores.checkpoint import read_trainer_state

CLUSTERS, STEPS = 3, 12


@pytest.fixture(scope="module")
def mined(tmp_path_factory) -> Path:
    """A run whose first episode is mined with its checkpoint."""
    folder = tmp_path_factory.mktemp("logged")
    run = make_run(folder / "run")
    call(
        run_ann_data_gen,
        *("--model_type", "rdot_nll_condenser", "--init_model_dir", run / "saved_models" / f"checkpoint-{STEP}"),
        *(
            "--max_seq_length",
            PASSAGE_LENGTH,
            "--max_query_length",
            QUERY_LENGTH,
            "--negative_sample",
            5,
            "--no_cuda",
        ),
        *("--training_dir", folder / "none", "--data_dir", run / "preprocessed", "--output_dir", folder / "ann_data"),
        *("--cluster_query", "--cluster_centroids", CLUSTERS, "--topk_training", 20),
    )
    return folder


def train(mined: Path, own: Path, logging_steps: int, max_steps: int = STEPS) -> None:
    run = mined / "run"
    call(
        run_ann,
        *("--model_type", "rdot_nll_condenser", "--init_model_dir", run / "saved_models" / f"checkpoint-{STEP}"),
        *("--max_seq_length", PASSAGE_LENGTH, "--max_query_length", QUERY_LENGTH, "--no_cuda", "--output_dir", own),
        *("--data_dir", run / "preprocessed", "--ann_dir", mined / "ann_data", "--optimizer", "adamW"),
        *("--per_gpu_train_batch_size", 4, "--max_steps", max_steps, "--save_steps", 4, "--learning_rate", 1e-3),
        *("--group", 1, "--n_groups", CLUSTERS, "--logging_steps", logging_steps, "--num_training_steps", STEPS),
    )


def curves(own: Path) -> dict[str, dict[int, float]]:
    events = EventAccumulator(str(own / "logs")).Reload()
    names = [name for name in events.Tags()["scalars"] if "loss" in name]
    return {name: {event.step: event.value for event in events.Scalars(name)} for name in names}


def test_a_logged_loss_is_the_mean_since_the_entry_before_also_after_an_interruption(mined, tmp_path, own_signals):
    train(mined, tmp_path / "single", 1)
    train(mined, tmp_path / "means", 5)
    single, means = curves(tmp_path / "single"), curves(tmp_path / "means")
    assert sorted(means["loss"]) == [5, 10, 12]
    for first, last in ((1, 5), (6, 10), (11, 12)):
        mean = sum(single["loss"][step] for step in range(first, last + 1)) / (last - first + 1)
        assert means["loss"][last] == pytest.approx(mean, rel=1e-5)
    assert sum(name.startswith("cluster_loss/") for name in means) == CLUSTERS

    # Killed between the checkpoint of step 8 and the entry of step 10.
    shutil.copytree(tmp_path / "means", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / f"checkpoint-{STEPS}")
    assert read_trainer_state(tmp_path / "resumed" / "checkpoint-8").unlogged["sums"][0] == 3
    train(mined, tmp_path / "resumed", 5)
    assert curves(tmp_path / "resumed") == means
    assert read_trainer_state(tmp_path / "resumed" / f"checkpoint-{STEPS}").unlogged == {}
