"""commands/run_ance.sh, where settings are left to be chosen: once, after tokenizing, and held to from then on."""

import shutil
from pathlib import Path

import pytest

from data import msmarco_data
from drivers import choose_settings
from model.hyperparameters import NAMES
from tests import tiny_run
from tests.commands.run_ance.running import Run, names, only
from tests.commands.stub_environment import Call, Checkout
from tests.tiny import tiny_bert_tokenizer
from tests.tiny_models import tiny_bert

CHOSEN = {
    "BY_SIZE": "1",
    "TOPK": "45",
    "NEGATIVES": "5",
    "NEGATIVES_A_QUERY": "1",
    "QUERIES_TOGETHER": "8",
    "MAX_RELATIVE_SCORE": "0.95",
    "LOSS": "contrastive",
    "ABSENT": "keep",
    "NORMALIZE_WEIGHTS": "1",
    "CLUSTERS": "8",
    "EPISODES": "2",
    "STEPS": "32",
    "BATCH_SIZE": "16",
    "ACCUMULATION": "2",
    "OPTIMIZER": "adamW",
    "LEARNING_RATE": "2.5e-5",
    "WARMUP_STEPS": "4",
    "NUM_TRAINING_STEPS": "32",
    "TOTAL_TRAINING_STEPS": "64",
    "SAVE_STEPS": "20",
}
MINED = {
    "topk_training": "TOPK",
    "negative_sample": "NEGATIVES",
    "negatives_a_query": "NEGATIVES_A_QUERY",
    "queries_together": "QUERIES_TOGETHER",
    "max_relative_score": "MAX_RELATIVE_SCORE",
    "cluster_centroids": "CLUSTERS",
}
TRAINED = {
    "loss": "LOSS",
    "absent": "ABSENT",
    "max_steps": "STEPS",
    "per_gpu_train_batch_size": "BATCH_SIZE",
    "gradient_accumulation_steps": "ACCUMULATION",
    "optimizer": "OPTIMIZER",
    "learning_rate": "LEARNING_RATE",
    "warmup_steps": "WARMUP_STEPS",
    "num_training_steps": "NUM_TRAINING_STEPS",
    "total_training_steps": "TOTAL_TRAINING_STEPS",
    "save_steps": "SAVE_STEPS",
    "n_groups": "CLUSTERS",
}


@pytest.fixture
def run(tmp_path) -> Run:
    run = Run(Checkout(tmp_path))
    del run.settings["EPISODES"]
    run.settings["NORMALIZE"] = 1  # as the filter that is chosen needs it
    choose(run)
    return run


def choose(run: Run, **others: str) -> None:
    """Has the script that chooses say this from now on."""
    lines = (f"{name}={value}\n" for name, value in (CHOSEN | others).items())
    (run.checkout.stub / "chosen").write_text("".join(lines))


def noted(run: Run) -> dict[str, str]:
    files = (run.out / f"settings.{stage}" for stage in ("mine", "train"))
    return dict(line.split("=", 1) for path in files for line in path.read_text().splitlines())


def told(calls: list[Call], script: str, flags: dict[str, str]) -> list[dict[str, str]]:
    """What each call of the script was told of these settings."""
    return [{setting: given[flag] for flag, setting in flags.items()} for given in only(calls, script)]


def of(settings: dict[str, str], flags: dict[str, str]) -> dict[str, str]:
    return {setting: settings[setting] for setting in flags.values()}


def test_what_is_chosen_reaches_the_drivers_and_is_noted(run):
    finished = run()
    assert finished.returncode == 0, finished.stderr
    calls = run.calls()
    assert names(calls).index("choose_settings") > names(calls).index("beir_data")
    (choice,) = only(calls, "choose_settings")
    assert choice == {
        "model_name_or_path": str(run.checkout.work / "initial"),
        "model_type": "rdot_nll_condenser",
        "data_dir": f"{run.out}/preprocessed",
        "model_size": "base",
        "objective": "idro",
        "processes": "1",
        "settings_file": f"{run.out}/.chosen",
    }
    assert told(calls, "run_ann_data_gen", MINED) == [of(CHOSEN, MINED)] * 2
    assert told(calls, "run_ann", TRAINED) == [of(CHOSEN, TRAINED)] * 2
    assert noted(run).items() >= {name: CHOSEN[name] for name in CHOSEN.keys() - {"EPISODES", "SAVE_STEPS"}}.items()
    assert not (run.out / ".chosen").exists()
    assert "published" not in finished.stdout + finished.stderr
    assert "WARMUP_STEPS" not in finished.stderr


def test_a_folder_goes_on_with_what_was_chosen_whatever_would_be_chosen_now(run):
    assert run(EPISODES=1).returncode == 0
    before = noted(run)
    choose(run, **dict.fromkeys(MINED.values(), "9"), STEPS="77", LEARNING_RATE="1e-3", BATCH_SIZE="3")
    run.calls()
    for changes in ({}, {"PROCESSES": 5}, {"STEPS": "auto", "TOPK": "auto"}):
        finished = run(**changes)
        assert finished.returncode == 0, finished.stderr
        assert noted(run) == before
        calls = run.calls()
        (choice,) = only(calls, "choose_settings")
        assert choice["by_size"] == "1"
        for name in NAMES:
            assert choice.get(name.lower()) == (None if name in ("EPISODES", "SAVE_STEPS") else CHOSEN[name])
        if not changes:
            assert told(calls, "run_ann", TRAINED) == [of(CHOSEN, TRAINED)], "the second episode"
            assert told(calls, "run_ann_data_gen", MINED) == [of(CHOSEN, MINED)]
    for name, value in (("STEPS", "33"), ("TOPK", "44"), ("LEARNING_RATE", "2.5e-05")):
        refused = run(**{name: value})
        assert (refused.returncode, f"{name} was '{CHOSEN[name]}' and is '{value}'" in refused.stderr) == (2, True)
        assert "choose_settings" not in names(run.calls())


def test_a_batch_without_room_for_a_block_is_refused_before_mining(run):
    refused = run(BATCH_SIZE=4)
    assert refused.returncode == 2
    assert "BATCH_SIZE is 4, and a block has 8 lines" in refused.stderr
    assert "run_ann_data_gen" not in names(run.calls())


def test_before_training_has_begun_its_settings_can_still_change_and_those_of_mining_cannot(run):
    run.checkout.let_fail("run_ann")
    assert run(LEARNING_RATE="5e-66", STEPS=7).returncode == 2
    assert noted(run).items() >= {"LEARNING_RATE": "5e-66", "STEPS": "7", "TOPK": "45"}.items()
    run.checkout.let_fail("run_ann", False)
    choose(run, TOPK="9")
    run.calls()
    assert run().returncode == 0
    calls = run.calls()
    assert told(calls, "run_ann", TRAINED) == [of(CHOSEN, TRAINED)] * 2
    assert only(calls, "choose_settings")[0]["topk"] == "45"
    assert noted(run)["TOPK"] == "45"


def test_before_anything_was_mined_nothing_is_held(run):
    for script in ("msmarco_data", "choose_settings", "run_ann_data_gen"):
        run.checkout.let_fail(script)
        assert run(TOPK=3, STEPS=7).returncode == 2
        assert (run.out / "settings.mine").exists() == (script == "run_ann_data_gen")
        run.checkout.let_fail(script, False)
    assert run().returncode == 0
    assert noted(run).items() >= {"TOPK": "45", "STEPS": "32"}.items()


@pytest.mark.parametrize("name", ["CLUSTERS", "EPISODES", "OPTIMIZER", "LEARNING_RATE", "NUM_TRAINING_STEPS"])
def test_one_can_be_given_alone_and_the_script_that_chooses_is_told(run, name):
    value = {"OPTIMIZER": "lamb", "LEARNING_RATE": "3e-5", "EPISODES": "1", "NUM_TRAINING_STEPS": "99"}.get(name, "5")
    finished = run(f"--{name.lower()}={value}")
    assert finished.returncode == 0, finished.stderr
    calls = run.calls()
    (choice,) = only(calls, "choose_settings")
    assert {other: choice[other.lower()] for other in NAMES if other.lower() in choice} == {name: value}
    expected = CHOSEN | {name: value}
    assert told(calls, "run_ann_data_gen", MINED) == [of(expected, MINED)] * int(expected["EPISODES"])
    assert told(calls, "run_ann", TRAINED) == [of(expected, TRAINED)] * int(expected["EPISODES"])


@pytest.mark.parametrize("trained", [False, True])
def test_a_folder_of_a_version_that_did_not_choose_goes_on_as_published(run, trained):
    """That version noted all it was given, but for the episodes and how often it saved."""
    (run.checkout.stub / "chosen").unlink()
    (run.checkout.stub / "fails-run_ann").touch()
    assert run().returncode == 2
    (run.checkout.stub / "fails-run_ann").unlink()
    if trained:
        assert run().returncode == 0
    path = run.out / "settings.mine"
    path.write_text(path.read_text().replace("BY_SIZE=0\n", ""))
    before = noted(run)
    run.calls()
    assert run(EPISODES=4).returncode == 0
    calls = run.calls()
    assert only(calls, "choose_settings")[0]["by_size"] == "0"
    assert {flags["max_steps"] for flags in only(calls, "run_ann")} == {"45000"}
    assert noted(run) == before


def test_the_demo_has_its_own_also_where_auto_is_said(run):
    finished = run("--steps", "auto", "--warmup_steps=auto", DATA_DIR="", CHECKPOINT="", TOTAL_TRAINING_STEPS="auto")
    assert finished.returncode == 0, finished.stderr
    calls = run.calls()
    assert "choose_settings" not in names(calls)
    (trained, _) = only(calls, "run_ann")
    schedule = {"max_steps": "40", "warmup_steps": "8", "total_training_steps": "80", "num_training_steps": "40"}
    assert trained | schedule == trained
    assert "BY_SIZE" not in noted(run)


def test_beside_a_miner_the_processes_that_train_are_counted_and_the_steps_are_held_to(run):
    run.checkout.list_gpus(0, 0, 0, 0)
    run.script = "run_ance_async.sh"
    for schedule in ({}, {"NUM_TRAINING_STEPS": "auto"}):  # which is none
        finished = run(TRAINING_GPUS="0,1,3", MINING_GPUS="2", **schedule)
        assert finished.returncode == 0, finished.stderr
        calls = run.calls()
        assert only(calls, "choose_settings")[0]["processes"] == "3"
    choose(run, STEPS="77")
    (run.out / "saved_models" / "checkpoint-64").rename(run.out / "saved_models" / "checkpoint-32")
    assert run(TRAINING_GPUS="0", MINING_GPUS="2").returncode == 0
    (trained,) = only(run.calls(), "run_ann")
    assert trained | {"total_training_steps": "64", "save_steps": "20", "learning_rate": "2.5e-5"} == trained


def test_processes_that_only_a_launcher_knows_are_counted_by_starting_them(run):
    run.checkout.add_program("on-all-nodes", 'exec "$ANCE_VENV/bin/python" agent --nproc_per_node 4 "$@"')
    assert run(LAUNCHER="on-all-nodes").returncode == 0
    choice = next(call for call in run.calls() if call.script == "choose_settings")
    assert choice.processes == 4
    assert "processes" not in choice.flags


def test_the_real_script_is_told_what_it_takes_and_its_choice_is_held(run):
    tiny_run.write_msmarco(run.checkout.work / "texts")
    tiny_bert_tokenizer(run.checkout.work / "bert")
    tiny_bert().model.save_pretrained(run.checkout.work / "bert")
    settings = {"DATA_DIR": "texts", "CHECKPOINT": "bert", "MAX_SEQ_LENGTH": 64, "BATCH_SIZE": 9}
    assert run(**settings).returncode == 0
    calls = {call.script: call.values for call in run.calls()}
    tiny_run.call(msmarco_data, *calls["msmarco_data"])
    tiny_run.call(choose_settings, *calls["choose_settings"])
    chosen = dict(line.split("=", 1) for line in (run.out / ".chosen").read_text().splitlines())
    assert chosen.keys() == {*NAMES, "BY_SIZE"} - {"BATCH_SIZE"}
    for stage in ("saved_models", "results"):
        shutil.rmtree(run.out / stage)
    choose(run, **chosen)
    finished = run(**settings)
    assert finished.returncode == 0, finished.stderr
    assert noted(run).items() >= {k: v for k, v in chosen.items() if k not in ("EPISODES", "SAVE_STEPS")}.items()
    again = run(**settings, TOPK=chosen["TOPK"], LEARNING_RATE=chosen["LEARNING_RATE"])
    assert again.returncode == 0, "the same, said by flags"
    assert Path(run.out, "saved_models", f"checkpoint-{int(chosen['EPISODES']) * int(chosen['STEPS'])}").is_dir()


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--topk", "0"], "TOPK is '0'; a whole number, at least 1"),
        (["--learning_rate=automatic"], "LEARNING_RATE is 'automatic'; a number"),
        (["--optimizer", "sgd"], "OPTIMIZER is 'sgd'; it can be: auto lamb adamW"),
        (
            ["--steps=9", "--num_training_steps=8"],
            "STEPS is 9, and beyond NUM_TRAINING_STEPS, 8, the learning rate is 0",
        ),
    ],
)
def test_misuse_is_told_before_anything_runs(run, flags, reason):
    refused = run(*flags)
    assert (refused.returncode, reason in refused.stderr) == (2, True), refused.stderr
    assert run.calls() == []
