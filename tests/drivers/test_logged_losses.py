"""What training logs in TensorBoard and says, with every loss and objective, also where it was interrupted."""

import shutil
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from drivers import run_ann, run_ann_data_gen
from drivers.training_notes import note_few_clusters
from model.dro import OBJECTIVES, make_objective
from model.losses import LOSSES
from tests.tiny_run import PASSAGE_LENGTH, QUERY_LENGTH, STEP, call, make_run
from utils.stores.checkpoint import read_trainer_state
from utils.stores.training_log import STEP_CURVES, StepClusters

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
        *("--cluster_query", "--cluster_centroids", CLUSTERS, "--topk_training", 20, "--queries_together", 2),
    )
    return folder


def flags_of(objective: str) -> list[object]:
    """The trainer's flags for an objective by its name."""
    kind, *options = objective.split("+")
    flags = ["--group", int(kind != "erm"), *([] if kind == "erm" else ["--dro_type", kind])]
    return flags + ["--absent", "keep"] * ("keep" in options) + ["--normalize_weights"] * ("normalized" in options)


def train(
    mined: Path, own: Path, logging_steps: int, *, objective: str = "idro", batch: int = 4, loss: str = "pairwise"
) -> None:
    run = mined / "run"
    call(
        run_ann,
        *("--model_type", "rdot_nll_condenser", "--init_model_dir", run / "saved_models" / f"checkpoint-{STEP}"),
        *("--max_seq_length", PASSAGE_LENGTH, "--max_query_length", QUERY_LENGTH, "--no_cuda", "--output_dir", own),
        *("--data_dir", run / "preprocessed", "--ann_dir", mined / "ann_data", "--optimizer", "adamW"),
        *("--per_gpu_train_batch_size", batch, "--max_steps", STEPS, "--save_steps", 4, "--learning_rate", 1e-3),
        *("--n_groups", CLUSTERS, "--logging_steps", logging_steps, "--num_training_steps", STEPS),
        *("--loss", loss, *flags_of(objective)),
    )


def interrupt(own: Path, step: int) -> None:
    """Takes back the checkpoints beyond a step, as if training had been killed after it."""
    for checkpoint in own.glob("checkpoint-*"):
        if int(checkpoint.name.split("-")[1]) > step:
            shutil.rmtree(checkpoint)


def curves(own: Path) -> dict[str, dict[int, float]]:
    events = EventAccumulator(str(own / "logs")).Reload()
    names = [name for name in events.Tags()["scalars"] if "loss" in name or name.startswith("step_clusters/")]
    return {name: {event.step: event.value for event in events.Scalars(name)} for name in names}


def test_what_is_logged_is_the_mean_since_the_entry_before_also_after_an_interruption(mined, tmp_path, own_signals):
    train(mined, tmp_path / "single", 1)
    train(mined, tmp_path / "means", 5)
    single, means = curves(tmp_path / "single"), curves(tmp_path / "means")
    assert sorted(means["loss"]) == [5, 10, 12]
    for first, last in ((1, 5), (6, 10), (11, 12)):
        for name in ("loss", *STEP_CURVES.values()):
            mean = sum(single[name][step] for step in range(first, last + 1)) / (last - first + 1)
            assert means[name][last] == pytest.approx(mean, rel=1e-5)
    assert len(set(single["step_clusters/present"].values())) > 1
    assert sum(name.startswith("cluster_loss/") for name in means) == CLUSTERS

    # Killed between the checkpoint of step 8 and the entry of step 10.
    shutil.copytree(tmp_path / "means", tmp_path / "resumed")
    interrupt(tmp_path / "resumed", 8)
    assert read_trainer_state(tmp_path / "resumed" / "checkpoint-8").unlogged["sums"][0] == 3
    train(mined, tmp_path / "resumed", 5)
    assert curves(tmp_path / "resumed") == means
    assert read_trainer_state(tmp_path / "resumed" / f"checkpoint-{STEPS}").unlogged == {}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_with_every_objective_and_loss_a_training_that_was_interrupted_ends_as_one_that_was_not(
    mined, tmp_path, own_signals, capfd, objective, loss
):
    train(mined, tmp_path / "whole", 5, objective=objective, loss=loss)
    said = f" from {mined}/run/saved_models/checkpoint-{STEP}, {objective}, {loss} loss, 1 processes"
    assert said in capfd.readouterr().out
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    interrupt(tmp_path / "resumed", 4)
    train(mined, tmp_path / "resumed", 5, objective=objective, loss=loss)
    whole, resumed = (tmp_path / name / f"checkpoint-{STEPS}" for name in ("whole", "resumed"))
    assert (resumed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert read_trainer_state(resumed) == read_trainer_state(whole)
    assert (read_trainer_state(whole).objective, read_trainer_state(whole).loss) == (objective, loss)
    assert curves(tmp_path / "resumed") == curves(tmp_path / "whole")


FEW = "warning: a step holds 1.0 of 3 clusters in the mean. By idro"


@pytest.mark.parametrize("killed_after", [4, 8])
def test_that_steps_hold_few_clusters_is_said_once_also_where_training_is_interrupted(
    mined, tmp_path, own_signals, capfd, killed_after, monkeypatch
):
    monkeypatch.setenv("ANCE_FLAGS", "gradient_accumulation_steps=--accumulation cluster_centroids=--clusters")
    train(mined, tmp_path, 5, batch=1)
    said = capfd.readouterr().out
    assert said.count(FEW) == said.count("warning: a step holds") == 1
    assert "What helps: more --accumulation, fewer clusters (mining's --clusters), --absent keep" in said
    interrupt(tmp_path, killed_after)
    train(mined, tmp_path, 5, batch=1)
    before_the_first_entry = killed_after < 5
    assert capfd.readouterr().out.count(FEW) == before_the_first_entry


def test_room_that_whole_blocks_leave_in_a_batch_is_said_and_a_steps_size_is_what_it_takes(
    mined, tmp_path, own_signals, capfd
):
    for batch, lines in ((3, 2), (4, 4)):
        train(mined, tmp_path / str(batch), 5, objective="erm", batch=batch, loss="contrastive")
        said = capfd.readouterr().out
        assert f"to {STEPS} of up to {lines} lines" in said
        room = "warning: --per_gpu_train_batch_size is 3, of which whole blocks fill 2 lines; give a multiple"
        assert (room in said) == ("blocks fill" in said) == (batch == 3)


def test_groups_by_name_are_called_so_and_not_said_to_be_fewer_by_a_number_of_clusters(capsys, monkeypatch):
    monkeypatch.setenv("ANCE_FLAGS", "")
    objective = make_objective("idro", 4, alpha=0.25, ema=0.1, rho=0.05, eps=0.01)
    note_few_clusters(objective, StepClusters(5, 1.5, 1.2, 0.3, 0.5), {"clusters": 4, "cluster_names": [*"abcd"]})
    said = capsys.readouterr().out
    assert "a step holds 1.5 of 4 groups in the mean" in said
    assert "--gradient_accumulation_steps, fewer and larger groups (mining's --groups_file), --absent keep" in said
    assert "cluster" not in said


def test_with_an_objective_that_keeps_what_is_absent_or_with_most_clusters_nothing_is_said(
    mined, tmp_path, own_signals, capfd
):
    for objective, batch in (("idro+keep", 1), ("dro-greedy", 1), ("balanced", 1), ("idro", 8)):
        train(mined, tmp_path / objective, 5, objective=objective, batch=batch)
    assert "a step holds" not in capfd.readouterr().out
