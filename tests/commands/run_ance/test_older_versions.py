"""Folders that an older version began, or that were moved: the same command goes on with them."""

import re
import shutil
from pathlib import Path

import pytest

from evaluate.reporting.objectives import name_of
from tests.commands.run_ance.running import (
    CHOICE,
    FILTERS,
    PROMPTS,
    READING,
    REPORT,
    STORES,
    TABLES,
    Run,
    names,
    only,
    readings,
    write_groups,
)
from utils.stores.run_folder import RunFolder


def test_a_run_of_a_version_without_groups_by_name_goes_on_with_its_clusters(run):
    assert run().returncode == 0
    for name in ("mine", "evaluate"):
        settings = run.out / f"settings.{name}"
        settings.write_text(re.sub(r"^QUERY_GROUPS.*\n", "", settings.read_text(), flags=re.MULTILINE))
    refused = run(QUERY_GROUPS=write_groups(run))
    assert (refused.returncode, "QUERY_GROUPS was 'clusters' and is" in refused.stderr) == (2, True)
    run.calls()
    assert run().returncode == 0
    assert names(run.calls()) == [*READING, *STORES, *CHOICE, *TABLES, *REPORT]


def test_a_run_of_a_version_without_given_negatives_goes_on_without_them(run):
    assert run().returncode == 0
    settings = run.out / "settings.mine"
    settings.write_text(re.sub(r"^GIVEN_NEGATIVES.*\n", "", settings.read_text(), flags=re.MULTILINE))
    refused = run("--given_negatives=1")
    assert (refused.returncode, "GIVEN_NEGATIVES was '0' and is '1'" in refused.stderr) == (2, True)
    assert run().returncode == 0


def test_without_filters_the_miner_is_told_of_none_and_a_run_of_a_version_without_them_has_none(run):
    assert run().returncode == 0
    for mined in only(run.calls(), "run_ann_data_gen"):
        assert not {name.lower() for name in FILTERS} & {*mined}
    settings = run.out / "settings.mine"
    older = re.sub(rf"^({'|'.join(FILTERS)})=.*\n", "", settings.read_text(), flags=re.MULTILINE)
    settings.write_text(older)
    refused = run(SKIP_RANKS=3)
    assert (refused.returncode, "SKIP_RANKS was 'off' and is '3'" in refused.stderr) == (2, True)
    assert run().returncode == 0
    assert settings.read_text() == older


def test_a_run_of_a_version_without_options_of_training_goes_on_as_it_began(run):
    assert run().returncode == 0
    settings, before = (
        run.out / "settings.train",
        {"ABSENT": "drop", "NORMALIZE_WEIGHTS": "0", "ATTENTION_DROPOUT": "auto"},
    )
    settings.write_text(re.sub(rf"^({'|'.join(before)}).*\n", "", settings.read_text(), flags=re.MULTILINE))
    assert name_of(RunFolder(run.out)) == "idro"
    for (name, was), value in zip(before.items(), ("keep", "1", "0"), strict=True):
        refused = run(**{name: value})
        assert (refused.returncode, f"{name} was '{was}' and is '{value}'" in refused.stderr) == (2, True)
    assert run().returncode == 0


@pytest.mark.parametrize("old", [False, True])
def test_a_run_goes_on_where_its_folder_its_data_and_its_model_were_moved(run, old):
    (run.checkout.work / "initial" / "config.json").write_text("{}")
    assert run().returncode == 0
    if old:
        make_old(run)
    mounted = run.checkout.work.parent / "another mount"
    run.checkout.work.rename(mounted)
    run.checkout.work, run.out = mounted, mounted / run.out.name
    run.calls()
    (mounted / "initial" / "README.md").write_text("a model's card is no part of the model")
    for _ in range(2):
        moved = run()
        assert moved.returncode == 0, moved.stderr
        assert names(run.calls()) == [*READING, *STORES, *CHOICE, *TABLES, *REPORT]
    folder = RunFolder(run.out)
    assert folder.data_dir == mounted / "raw"
    assert folder.setting("CHECKPOINT") == str(mounted / "initial")
    assert folder.zero_shot_data_dir("sci fact") == mounted / "beir" / "sci fact"
    (mounted / "initial" / "config.json").write_text("{ }")
    refused = run()
    assert refused.returncode == 2
    assert "initial' with other files" in refused.stderr


def make_old(run: Run) -> None:
    """Makes the run's settings those of the version before, which held the paths of the data and of the model."""
    work = run.checkout.work
    settings = run.out / "settings.tokenize"
    kept = [line for line in settings.read_text().splitlines() if not line.startswith("CHECKPOINT_CONTENT=")]
    settings.write_text("\n".join([f"DATA_DIR={work}/raw", f"CHECKPOINT={work}/initial", *kept]) + "\n")
    (run.out / "settings.evaluate").write_text("PUBLIC_ANN_DATA_DIR=\n")


@pytest.mark.parametrize("checkpoint", ["bert-base-uncased", "other raw"])
def test_an_old_folder_is_no_free_pass_for_another_model(run, checkpoint):
    assert run().returncode == 0
    make_old(run)
    run.calls()
    refused = run(CHECKPOINT=checkpoint)
    assert refused.returncode == 2
    assert re.search(rf"CHECKPOINT was '.*/initial' and is '.*{checkpoint}'", refused.stderr)
    assert run.calls() == []
    assert run().returncode == 0


# The settings of the reading, which the version before had not.
NEWER = re.compile(r"^(POOLING|NORMALIZE|SCALE|QUERY_PROMPT|PASSAGE_PROMPT|LOWERCASE)=.*\n", re.MULTILINE)


def forget_readings(out: Path) -> None:
    """Makes a run's settings those of the version before readings."""
    for path in out.glob("settings.*"):
        path.write_text(NEWER.sub("", path.read_text()))


def test_a_run_of_a_version_without_readings_goes_on_with_its_model_type(run):
    (run.checkout.work / "initial" / "modules.json").touch()
    assert run(MODEL_TYPE="rdot_nll", STEPS=9).returncode == 0
    forget_readings(run.out)
    shutil.rmtree(run.out / "saved_models" / "checkpoint-18")
    run.calls()
    for changes in ({"POOLING": "mean"}, {"QUERY_PROMPT": ""}, {"SCALE": 20}):
        refused = run(STEPS=9, **changes)
        assert f"a run of a version without {next(iter(changes))}, which goes on as it began" in refused.stderr
    assert "MODEL_TYPE was 'rdot_nll' and is 'auto'" in run(STEPS=9, MODEL_TYPE="auto").stderr
    run.calls()
    for _ in range(2):
        finished = run(STEPS=9)
        assert finished.returncode == 0, finished.stderr
        calls = run.calls()
        assert {told[:4] for told in readings(calls)} == {("rdot_nll", "cls", "0", "1")}
    assert not NEWER.search((run.out / "settings.mine").read_text())


OLD_DEMO = {
    "MODEL_TYPE": "rdot_nll_condenser",
    "MAX_SEQ_LENGTH": 99,
    "CLUSTERS": 9,
    "STEPS": 120,
    "BATCH_SIZE": 5,
    "ACCUMULATION": 3,
    "OPTIMIZER": "lamb",
    "LEARNING_RATE": "3e-3",
    "WARMUP_STEPS": 11,
    "SEED": 7,
}


@pytest.mark.parametrize("schedule", [False, True])
def test_a_demo_of_a_version_with_other_defaults_goes_on_with_its_own_settings(run, schedule):
    """And with what follows from them: where the learning rate ends, and how far an episode goes."""
    run.settings = {"OUT_DIR": "out of all"}
    assert run(**OLD_DEMO).returncode == 0
    forget_readings(run.out)
    train = run.out / "settings.train"
    if not schedule:  # of a version before these too
        train.write_text("".join(line for line in train.open() if "TRAINING_STEPS=" not in line))
    before = train.read_text()
    shutil.rmtree(run.out / "saved_models" / "checkpoint-240")
    run.calls()
    finished = run()
    assert finished.returncode == 0, finished.stderr
    calls = run.calls()
    (trained,) = only(calls, "run_ann")
    schedules = {"num_training_steps": "120", "total_training_steps": "240"}
    assert trained | {"max_steps": "120", "round": "1", **schedules} == trained
    assert trained | {"optimizer": "lamb", "learning_rate": "3e-3", "warmup_steps": "11", "seed": "7"} == trained
    assert trained | {"per_gpu_train_batch_size": "5", "gradient_accumulation_steps": "3"} == trained
    assert trained | {"n_groups": "9", "max_seq_length": "99", "model_type": "rdot_nll_condenser"} == trained
    assert {told[:4] for told in readings(calls)} == {("rdot_nll_condenser", "cls", "0", "1")}
    assert (run.out / "settings.train").read_text() == before
    assert "LEARNING_RATE was '3e-3' and is '1e-4'" in run(LEARNING_RATE="1e-4").stderr
    assert "without POOLING, which goes on as it began" in run(POOLING="mean").stderr


@pytest.mark.parametrize("prompts", PROMPTS[:1] + PROMPTS[-1:])
def test_a_demo_goes_on_with_the_prompts_that_it_was_begun_with(run, prompts):
    run.settings = {"OUT_DIR": "out of all"}
    assert run(EPISODES=1, QUERY_PROMPT=prompts[0], PASSAGE_PROMPT=prompts[1]).returncode == 0
    run.calls()
    finished = run(EPISODES=1)
    assert finished.returncode == 0, finished.stderr
    assert {(told[0], told[-3:-1]) for told in readings(run.calls())} == {("auto", prompts)}
    assert not list(run.checkout.work.rglob("ran"))


def test_a_demo_that_was_begun_beside_a_miner_goes_on_so(side_by_side):
    side_by_side.settings = {"OUT_DIR": "out of all", "STEPS": 9}
    assert side_by_side().returncode == 0
    side_by_side.script = "run_ance.sh"
    side_by_side.calls()
    finished = side_by_side(STEPS="")
    assert finished.returncode == 0, finished.stderr
    table = next(call.values for call in side_by_side.calls() if call.script == "results_table")
    assert [row.split("=")[0] for row in table[table.index("--rows") + 1 :]][-1] == "after 18 steps"


def test_a_demos_folder_is_no_free_pass_for_another_model(run):
    run.settings = {"OUT_DIR": "out of all"}
    assert run(EPISODES=1).returncode == 0
    refused = run(EPISODES=1, CHECKPOINT="initial")
    assert (refused.returncode, "CHECKPOINT was '" in refused.stderr) == (2, True), refused.stderr


def test_a_settings_file_of_a_version_that_lacked_a_setting_is_gone_on_with(run):
    assert run().returncode == 0
    path = run.out / "settings.mine"
    lines = [line for line in path.read_text().splitlines() if not line.startswith("INDEX_FACTORY=")]
    path.write_text("\n".join(lines) + "\n")
    finished = run()
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize(("episodes", "total"), [(2, "18"), ("", "27")])
def test_a_run_of_a_version_without_the_settings_of_the_schedule_keeps_the_schedule_it_had(run, episodes, total):
    assert run(STEPS=9).returncode == 0
    path = run.out / "settings.train"
    lines = [line for line in path.read_text().splitlines() if "TRAINING_STEPS=" not in line]
    path.write_text("\n".join(lines) + "\n")
    shutil.rmtree(run.out / "saved_models" / "checkpoint-18")
    run.calls()
    assert run(STEPS=9, EPISODES=episodes).returncode == 0
    trained = only(run.calls(), "run_ann")[0]
    assert trained | {"round": "1", "num_training_steps": "9", "total_training_steps": total} == trained


def test_a_folder_that_was_first_used_beside_a_miner_gets_the_schedule_of_a_run_in_turn(run):
    run.settings |= {"STEPS": 30000}
    run.checkout.let_fail("msmarco_data")
    assert run(ASYNC=1).returncode == 2
    run.checkout.let_fail("msmarco_data", False)
    assert run().returncode == 0
    schedules = [
        (flags["num_training_steps"], flags["total_training_steps"]) for flags in only(run.calls(), "run_ann")
    ]
    assert schedules == [("60000", "300000")] * 2
