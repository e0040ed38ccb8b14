"""commands/search.sh, the real script, with a stub for Python."""

import pytest

from tests.commands.stub_environment import Checkout, settings_of


@pytest.fixture
def checkout(tmp_path) -> Checkout:
    checkout = Checkout(tmp_path)
    (checkout.root / "runs" / "demo").mkdir(parents=True)
    return checkout


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--out", "x", "a question"], "unknown argument '--out'"),
        (["a question", "--depth"], "--depth wants a value"),
        (["--depth", "many", "a question"], "DEPTH is 'many'; a whole number is needed"),
        (["--normalize", "yes", "a question"], "NORMALIZE is 'yes'; it can be: auto 0 1"),
        ([""], "the question is empty"),
        ([" ", "\t"], "the question is empty"),
        (["--model-type=bert", "a question"], "MODEL_TYPE is 'bert'; it can be: auto rdot_nll rdot_nll_multi"),
        (["--checkpoint", "no/such/folder", "a question"], "no folder, and no name of a model"),
        (["--depth seed", "1", "a question"], "unknown argument '--depth seed'"),
    ],
)
def test_misuse_is_told_before_anything_runs(checkout, arguments, reason):
    finished = checkout.run("search.sh", *arguments)
    assert finished.returncode == 2
    assert reason in finished.stderr
    assert checkout.calls() == []


def test_the_demo_is_searched_without_settings(checkout):
    finished = checkout.run("search.sh", "how do I sort a list")
    assert (finished.returncode, finished.stdout) == (0, "the answer\n")
    (call,) = checkout.calls()
    assert (call.script, call.processes) == ("search_collection", 0)
    assert call.flags | {"run_dir": f"{checkout.root}/runs/demo", "depth": "10", "fp16": ""} == call.flags
    assert {call.flags[name] for name in ("collection", "model_name_or_path", "model_type", "data_dir")} == {""}
    assert "--query=how do I sort a list" in call.values


def test_settings_reach_the_script_and_a_flag_wins(checkout):
    (checkout.work / "a checkpoint").mkdir()
    finished = checkout.run(
        "search.sh",
        *("--out_dir", "a run", "--collection", "sci fact", "--depth", 3, "--mixed_precision", 0, "what", "is  it"),
        DEPTH=5,
        CHECKPOINT="a checkpoint",
        MAX_QUERY_LENGTH=8,
        POOLING="mean",
        QUERY_PROMPT=" -$(touch ran) ",
        NORMALIZE=1,
    )
    assert finished.returncode == 0, finished.stderr
    (call,) = checkout.calls()
    assert call.flags | {"run_dir": "a run", "collection": "sci fact", "depth": "3"} == call.flags
    assert call.flags | {"model_name_or_path": "a checkpoint", "max_query_length": "8"} == call.flags
    assert call.flags | {"pooling": "mean", "normalize": "1", "query_prompt": " -$(touch ran) "} == call.flags
    assert not {"scale", "passage_prompt", "lowercase"} & set(call.flags), "what is not given is the run's"
    assert "fp16" not in call.flags
    assert "--query=what is  it" in call.values


def test_what_the_script_says_has_the_names_of_this_scripts_settings(checkout):
    assert checkout.run("search.sh", "--normalize", 1, "a question").returncode == 0
    (call,) = checkout.calls()
    called = checkout.names_of(call.script)
    known = {f"--{setting.lower()}" for setting in settings_of("search.sh")}
    assert {called.get(flag, f"--{flag}") for flag in call.flags.keys() - {"query"}} <= known
    assert called["model_name_or_path"] == "--checkpoint"


@pytest.mark.parametrize("question", ["--depth", "-1", "$(touch ran)", "`touch ran`", "a; touch ran", "*"])
def test_a_question_may_hold_anything(checkout, question):
    finished = checkout.run("search.sh", "--depth", 3, "--", question)
    assert finished.returncode == 0, finished.stderr
    (call,) = checkout.calls()
    assert f"--query={question}" in call.values
    assert not list(checkout.work.iterdir())


def test_without_a_question_they_are_asked_for(checkout):
    assert checkout.run("search.sh").returncode == 0
    (call,) = checkout.calls()
    assert "--query=" in call.values


def test_flags_may_have_dashes_and_equals_signs(checkout):
    assert checkout.run("search.sh", "--depth=2", "--text-lines", 0, "--data-dir=a=b", "why").returncode == 0
    (call,) = checkout.calls()
    assert call.flags | {"depth": "2", "text_lines": "0", "data_dir": "a=b"} == call.flags
    assert "--query=why" in call.values


def test_a_run_that_is_not_there_is_told_before_anything_is_installed(checkout):
    finished = checkout.run("search.sh", "--out_dir", "no/where", "why")
    assert (finished.returncode, "OUT_DIR is 'no/where', which is no folder" in finished.stderr) == (2, True)
    assert not (checkout.root.parent / "an environment").exists()
