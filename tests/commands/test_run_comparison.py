"""commands/run_comparison.sh, the real script, with a stub for Python."""

import pytest

from evaluate.reporting.objectives import name_of
from model.dro import OBJECTIVES
from tests.commands.stub_environment import Checkout
from utils.stores.run_folder import RunFolder


@pytest.fixture
def checkout(tmp_path) -> Checkout:
    checkout = Checkout(tmp_path)
    for name in ("raw", "initial", "beir/sci fact"):
        (checkout.work / name).mkdir(parents=True)
    return checkout


SETTINGS = {"DATA_DIR": "raw", "CHECKPOINT": "initial", "ZERO_SHOT_DIRS": "beir/sci fact", "OUT_DIR": "the out"}


def test_all_train_on_what_the_first_has_mined_and_are_compared(checkout):
    flags = ("--steps", 7, "--seeds", "3 4", "--objectives", "erm idro")
    finished = checkout.run("run_comparison.sh", *flags, **SETTINGS, EPISODES=5, SEED=9)
    assert finished.returncode == 0, finished.stderr
    calls = checkout.calls()
    scripts = [call.script for call in calls]
    assert [scripts.count(name) for name in ("run_ann_data_gen", "run_ann")] == [1, 4]
    for script in ("msmarco_data", "beir_data"):
        in_use = ["in_use" in call.flags for call in calls if call.script == script]
        assert in_use == [False, True, True, True], "one tokenizes, the others see that nothing has changed"
    trained = [call.flags for call in calls if call.script == "run_ann"]
    assert [(flags["group"], flags["seed"], flags["max_steps"]) for flags in trained] == [
        ("0", "3", "7"),
        ("0", "4", "7"),
        ("1", "3", "7"),
        ("1", "4", "7"),
    ]
    out = checkout.work / "the out"
    assert [flags["output_dir"] for flags in trained] == [
        str(out / run / "saved_models") for run in ("erm-3", "erm-4", "idro-3", "idro-4")
    ]
    links = [path for path in (out / "idro-4").rglob("*") if path.is_symlink()]
    assert {path.relative_to(out / "idro-4").as_posix() for path in links} == {
        *("preprocessed", "zero_shot", "ann_data/ann_training_data_0", "ann_data/ann_training_scores_0.npy"),
        "ann_data/ann_training_examples_0.json",
    }
    for path in links:
        assert path.resolve() == out / "erm-3" / path.relative_to(out / "idro-4")
        assert not path.readlink().is_absolute()
    assert not (out / "idro-4" / "results" / "ann_ndcg_0").is_symlink()
    table = calls[-1]
    assert (table.script, table.flags["step"]) == ("compare_objectives", "7")
    assert table.values[-2:] == [f"erm={out}/erm-3,{out}/erm-4", f"idro={out}/idro-3,{out}/idro-4"]

    flags = ("--steps=7", "--seeds=3 4", "--objectives", "erm idro", "--batch-size=64")
    again = checkout.run("run_comparison.sh", *flags, **SETTINGS)
    assert again.returncode == 0, again.stderr
    assert "run_ann" not in [call.script for call in checkout.calls()]


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--seed", 1], "--seed is not a setting here"),
        (["--mining-seed=1"], "--mining-seed is not a setting here"),
        (["--out_dir"], "--out_dir wants a value"),
        (["--step"], "--step wants a value"),
        (["--step", 1], "unknown argument '--step'"),
        (
            ["--objectives", "erm,idro"],
            "OBJECTIVES names 'erm,idro'; there are erm balanced dro-greedy[+normalized] idro",
        ),
        (["--objectives", "idro+normalized+keep"], "OBJECTIVES names 'idro+normalized+keep'"),
        (["--absent=keep"], "--absent is not a setting here"),
        (["--seeds", "1,2"], "SEEDS names '1,2', which is no whole number"),
        (["--seeds", " "], "name at least one of each"),
        (["--seeds", "1 2 1"], "names one twice"),
        (["--out_dir", "a,b"], "a comma or an equals sign cannot stand in it"),
    ],
)
def test_misuse_is_told_before_anything_runs(checkout, flags, reason):
    finished = checkout.run("run_comparison.sh", *flags, **SETTINGS)
    assert finished.returncode == 2
    assert reason in finished.stderr
    assert checkout.calls() == []


def test_every_objective_can_be_compared_by_its_name(checkout):
    flags = ("--seeds", "3", "--objectives", " ".join(OBJECTIVES))
    finished = checkout.run("run_comparison.sh", *flags, **SETTINGS, ABSENT="keep", NORMALIZE_WEIGHTS=1)
    assert finished.returncode == 0, finished.stderr
    calls = checkout.calls()
    out = checkout.work / "the out"
    assert calls[-1].values[-len(OBJECTIVES) :] == [f"{name}={out}/{name}-3" for name in OBJECTIVES]
    assert [name_of(RunFolder(out / f"{name}-3")) for name in OBJECTIVES] == list(OBJECTIVES)


def test_runs_that_would_begin_elsewhere_are_refused(checkout):
    assert checkout.run("run_comparison.sh", "--seeds", "3", "--objectives", "erm idro", **SETTINGS).returncode == 0
    checkout.calls()
    for flags in (("--seeds", "4 3", "--objectives", "erm idro"), ("--seeds", "3", "--objectives", "idro erm")):
        refused = checkout.run("run_comparison.sh", *flags, **SETTINGS)
        assert refused.returncode == 2
        assert "begin with what erm-3 has mined" in refused.stderr
    assert checkout.calls() == []
    more = checkout.run("run_comparison.sh", "--seeds", "3 4", "--objectives", "erm dro-greedy", **SETTINGS)
    assert more.returncode == 0, more.stderr


def readings(checkout: Checkout) -> set[tuple[str, ...]]:
    """How the training scripts that were called read their checkpoints."""
    names = "model_type", "pooling", "query_prompt"
    return {tuple(call.flags[name] for name in names) for call in checkout.calls() if call.script == "run_ann"}


def test_all_read_the_checkpoint_as_they_are_told(checkout):
    flags = ("--pooling", "mean", "--query_prompt", "--seed", "--seeds", "3", "--objectives", "erm idro")
    finished = checkout.run("run_comparison.sh", *flags, **SETTINGS)
    assert finished.returncode == 0, finished.stderr
    assert readings(checkout) == {("rdot_nll_condenser", "mean", "--seed")}
    refused = checkout.run("run_comparison.sh", *flags, **SETTINGS | {"SCALE": "3"})
    assert "SCALE was '1' and is '3'" in refused.stderr


def test_a_comparison_of_a_version_without_readings_goes_on_with_its_model_type(checkout):
    (checkout.work / "initial" / "modules.json").touch()
    settings = SETTINGS | {"OBJECTIVES": "erm"}
    assert checkout.run("run_comparison.sh", "--seeds", "3", "--model_type", "rdot_nll", **settings).returncode == 0
    for path in (checkout.work / "the out" / "erm-3").glob("settings.*"):
        lines = (line for line in path.open() if not line.startswith(("POOLING=", "NORMALIZE=", "SCALE=", "QUERY_")))
        path.write_text("".join(lines))
    readings(checkout)
    finished = checkout.run("run_comparison.sh", "--seeds", "3 4", **settings)
    assert finished.returncode == 0, finished.stderr
    assert readings(checkout) == {("rdot_nll", "cls", "")}


def test_help_says_what_is_compared(checkout):
    shown = checkout.run("run_comparison.sh", "--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert all(setting in shown.stdout for setting in ("OUT_DIR", "OBJECTIVES", "SEEDS"))


def test_what_is_chosen_by_size_is_the_same_for_all_that_are_compared(checkout):
    chosen = {"BY_SIZE": "1", "STEPS": "32", "CLUSTERS": "8", "TOPK": "45", "LEARNING_RATE": "1e-4"}
    (checkout.stub / "chosen").write_text("".join(f"{name}={value}\n" for name, value in chosen.items()))
    finished = checkout.run("run_comparison.sh", "--seeds", "3", "--objectives", "erm idro", **SETTINGS)
    assert finished.returncode == 0, finished.stderr
    calls = checkout.calls()
    trained = [call.flags for call in calls if call.script == "run_ann"]
    told = [(flags["max_steps"], flags["n_groups"], flags["learning_rate"]) for flags in trained]
    assert told == [("32", "8", "1e-4")] * 2
    first, second = (call.flags for call in calls if call.script == "choose_settings")
    assert first["episodes"] == second["episodes"] == "1"
    assert second | {"by_size": "1", "topk": "45", "clusters": "8"} == second, "what the first has mined with"
    assert not first.keys() & {"by_size", "topk", "clusters"}
    assert calls[-1].flags["step"] == "32"
