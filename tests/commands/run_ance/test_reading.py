"""How the checkpoint is read reaches every script, prompts included."""

import json

import pytest

from data import msmarco_data
from tests import tiny_run
from tests.commands.run_ance.running import CHOICE, PROMPTS, STORES, names, readings
from tests.tiny import tiny_bert_tokenizer
from utils.runtime.errors import InputError
from utils.stores.run_folder import RunFolder


@pytest.mark.parametrize("prompts", PROMPTS)
def test_prompts_arrive_as_they_were_given_and_a_second_run_accepts_them(run, prompts):
    variables = dict(zip(("QUERY_PROMPT", "PASSAGE_PROMPT"), prompts, strict=True))
    flags = "--query_prompt", prompts[0], f"--passage-prompt={prompts[1]}"
    for finished in (run(EPISODES=1, **variables), run(*flags, EPISODES=1)):
        assert finished.returncode == 0, finished.stderr
    calls = run.calls()
    assert {told[-3:-1] for told in readings(calls)} == {prompts}
    assert names(calls).count("run_ann") == 1
    lines = (run.out / "settings.tokenize").read_text().splitlines()
    assert {f"{name}={prompt}" for name, prompt in variables.items()} <= set(lines)
    refused = run("--query_prompt", "another", EPISODES=1, **variables)
    assert f"QUERY_PROMPT was '{prompts[0]}' and is 'another'" in refused.stderr
    assert not list(run.checkout.work.rglob("ran"))


def test_the_real_script_makes_stores_with_prompts_of_what_it_is_told_and_keeps_them_in_a_second_run(run):
    tiny_run.write_msmarco(run.checkout.work / "texts")
    tiny_bert_tokenizer(run.checkout.work / "bert")
    prompt = r" -it's \n `how` $1 "
    stores, bert = run.out / "preprocessed", {"DATA_DIR": "texts", "CHECKPOINT": "bert", "MAX_SEQ_LENGTH": 64}
    for _ in range(2):
        assert run(EPISODES=1, QUERY_PROMPT=prompt, PASSAGE_PROMPT="", **bert).returncode == 0
        told = next(told for told in run.calls() if told.script == "msmarco_data")
        tiny_run.call(msmarco_data, *told.values)
        for name, expected in (("train-query", " -it's \n `how` $1 "), ("passages", "")):
            assert json.loads((stores / name / "meta.json").read_text())["prompt"] == expected
    assert "in_use" in told.flags
    with pytest.raises(InputError, match="in use"):
        tiny_run.call(msmarco_data, *told.values, "--passage_prompt", "another ")


def test_how_the_checkpoint_is_read_is_found_once_told_to_every_script_and_held_to(run):
    (run.checkout.work / "initial" / "modules.json").touch()
    expected = "auto", "mean", "1", "20", "", "", "0"
    assert run(EPISODES=1).returncode == 0
    calls = run.calls()
    assert names(calls).count("find_reading") == 1
    assert set(readings(calls)) == {expected}
    assert {call.script for call in calls if "model_type" in call.flags} == {
        "find_reading",
        *STORES,
        *CHOICE,
        "run_ann_data_gen",
        "run_ann",
        "evaluate_beir",
    }
    noted = RunFolder(run.out).settings
    order = "MODEL_TYPE", "POOLING", "NORMALIZE", "SCALE", "QUERY_PROMPT", "PASSAGE_PROMPT", "LOWERCASE"
    assert tuple(noted[name] for name in order) == expected
    assert run(EPISODES=1, POOLING="mean", SCALE=20).returncode == 0, "the same, said by flags"
    for name, value in (("POOLING", "cls"), ("NORMALIZE", "0"), ("SCALE", "5"), ("LOWERCASE", "1")):
        refused = run(EPISODES=1, **{name: value})
        assert f"{name} was '{noted[name]}' and is '{value}'" in refused.stderr
    (run.checkout.work / "initial" / "modules.json").unlink()
    assert "MODEL_TYPE was 'auto' and is 'rdot_nll_condenser'" in run(EPISODES=1).stderr


@pytest.mark.parametrize("demo", [False, True])
def test_a_checkpoint_that_cannot_be_read_is_told_before_anything_is_tokenized(run, demo):
    run.checkout.let_fail("find_reading")
    failed = run(DATA_DIR="" if demo else "raw")
    assert (failed.returncode, "told to fail" in failed.stderr) == (2, True)
    assert names(run.calls()) == [*["demo_data"] * demo, "find_reading"]
    assert not list(run.out.glob("settings*"))
