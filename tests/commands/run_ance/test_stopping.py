"""A run that stopped, failed or was killed, and how the same command goes on."""

import os
import shutil
import signal

import pytest

from tests.commands.run_ance.running import (
    CARD,
    CHOICE,
    READING,
    REPORT,
    STORES,
    TABLES,
    is_gone,
    names,
    only,
    start_and_hang,
)


def test_a_run_that_stopped_goes_on_where_it_stopped(run):
    run.checkout.let_fail("run_ann")
    assert run().returncode != 0
    assert names(run.calls()) == [*READING, *STORES, *CHOICE, "run_ann_data_gen", "run_ann"]
    run.checkout.let_fail("run_ann", False)
    assert run().returncode == 0
    assert names(run.calls())[5:8] == ["run_ann", "run_ann_data_gen", "run_ann"]


@pytest.mark.parametrize(
    ("script", "typo"),
    [
        ("msmarco_data", {"CHECKPOINT": "bert-bass", "LEARNING_RATE": "5e-66", "CLUSTERS": 5000}),
        ("run_ann_data_gen", {"CLUSTERS": 5000, "LEARNING_RATE": "5e-66"}),
        ("run_ann", {"LEARNING_RATE": "5e-66", "MODEL_SIZE": "large"}),
    ],
)
def test_a_stage_that_fails_holds_nobody_to_its_settings(run, script, typo):
    run.checkout.let_fail(script)
    assert run(**typo).returncode == 2
    run.checkout.let_fail(script, False)
    mended = run()
    assert mended.returncode == 0, mended.stderr
    assert run(**typo).returncode == 2, "now there are files that follow from the mended settings"


def test_a_killed_training_holds_to_the_settings_of_its_checkpoint(run):
    assert run(EPISODES=1).returncode == 0
    shutil.move(run.out / "saved_models" / "checkpoint-45000", run.out / "saved_models" / "checkpoint-5000")
    assert "BATCH_SIZE was '64' and is '32'" in run(EPISODES=1, BATCH_SIZE=32).stderr


def test_without_its_checkpoints_a_run_is_held_to_what_it_mined_with_them(run):
    assert run().returncode == 0
    shutil.rmtree(run.out / "saved_models")
    assert "BATCH_SIZE was '64' and is '32'" in run(BATCH_SIZE=32).stderr


def test_a_checkpoint_that_is_trained_anew_is_evaluated_anew(run):
    assert run().returncode == 0
    run.calls()
    shutil.rmtree(run.out / "saved_models" / "checkpoint-90000")
    assert run().returncode == 0
    calls = run.calls()
    assert names(calls) == [
        *READING,
        *STORES,
        *CHOICE,
        "run_ann",
        "evaluate_beir",
        "evaluate_beir",
        *TABLES,
        *CARD,
        *REPORT,
    ]
    assert {flags["model_name_or_path"] for flags in only(calls, "evaluate_beir")} == {
        str(run.out / "saved_models" / "checkpoint-90000")
    }


def test_training_is_asked_for_a_last_checkpoint_that_nothing_has_gone_on_from_though_it_has_mined(run):
    run.checkout.let_fail("run_ann")
    results = run.out / "results"
    assert run(STEPS=9).returncode == 2
    for number in (0, 1):
        (results / f"ann_ndcg_{number}").touch()
    run.checkout.let_fail("run_ann", False)
    run.calls()
    assert run(STEPS=9).returncode == 0
    assert [flags["round"] for flags in only(run.calls(), "run_ann")] == ["0", "1"]


@pytest.mark.parametrize("damaged", [True, False])
def test_a_last_checkpoint_without_its_metrics_is_handed_to_training_which_tells_whether_it_is_good(run, damaged):
    flags = {"EPISODES": 1, "STEPS": 9}
    assert run(**flags).returncode == 0
    run.calls()
    sums = run.out / "saved_models" / "checkpoint-9" / "checksums.json"
    sums.write_text("sums of what was there\n" if damaged else sums.read_text())
    (run.out / "results" / "dev" / "step-9" / "metrics.json").unlink()
    assert run(**flags).returncode == 0
    evaluated = ["evaluate_beir"] * (2 if damaged else 1)  # on the zero-shot collection too, with the new weights
    assert names(run.calls())[: 6 + len(evaluated)] == [*READING, *STORES, *CHOICE, "run_ann", *evaluated]


def test_an_episode_that_is_gone_while_later_ones_are_there_is_not_mistaken_for_the_next(run):
    assert run(STEPS=9).returncode == 0
    (run.out / "results" / "ann_ndcg_0").unlink()
    run.calls()
    failed = run(STEPS=9)
    assert failed.returncode == 2
    assert "ann_ndcg_0 is gone, and later ones are there; remove those too, and all checkpoints beyond step 0" in (
        failed.stderr
    )
    assert "run_ann_data_gen" not in names(run.calls())


@pytest.mark.parametrize("last", ["msmarco/qrels.dev.small.tsv", "python-docs/qrels/test.tsv"])
def test_a_demo_collection_that_was_cut_short_is_built_again(checkout, last):
    checkout.run("run_ance.sh", OUT_DIR="a demo")
    checkout.calls()
    (checkout.work / "a demo" / "collection" / last).unlink()
    assert checkout.run("run_ance.sh", OUT_DIR="a demo").returncode == 0
    assert names(checkout.calls()) == ["demo_data", "find_reading", *STORES, *TABLES, *REPORT]


@pytest.mark.parametrize(("script", "data_dir"), [("run_ann_data_gen", "raw"), ("demo_data", "")])
def test_a_folder_has_one_run_at_a_time_also_where_a_killed_script_left_its_processes(run, script, data_dir):
    run.settings["DATA_DIR"] = data_dir
    process = start_and_hang(run, script)
    refused = run()
    assert (refused.returncode, "another run is at work" in refused.stderr) == (2, True)
    process.kill()
    process.wait()
    assert "another run is at work" in run().stderr
    os.kill(int(run.checkout.process_of(script)[0]), signal.SIGKILL)
    process.communicate()
    run.checkout.let_hang(script, False)
    assert run().returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("script", ["msmarco_data", "run_ann_data_gen", "run_ann", "compare_runs", "report"])
def test_a_script_that_is_stopped_passes_it_on_and_the_same_command_goes_on(run, script, number):
    process = start_and_hang(run, script)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, "run this again" in stderr) == (143, True)
    assert is_gone(run, script)
    run.checkout.let_hang(script, False)
    assert run().returncode == 0


@pytest.mark.parametrize("ignored", [False, True])
def test_under_nohup_a_closed_terminal_means_nothing_to_the_launcher(run, ignored):
    process = run.checkout.start(run.script, ignoring=(signal.SIGHUP,) * ignored, **run.settings)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    told = ["--signals-to-handle", "SIGTERM,SIGINT,SIGQUIT"]
    trained = next(call for call in run.calls() if call.script == "run_ann")
    assert (trained.launcher[2:4] == told) == ignored


def test_the_reason_of_a_failure_is_told_last_and_only_once(run):
    launcher = run.checkout.work / "launcher"
    launcher.write_text(
        'echo "error (rank 0): a/b: is damaged" >> "$ANCE_ERRORS"\n'
        'echo "error (rank 1): rank 0 of 2 is dead" >> "$ANCE_ERRORS"\n'
        "echo much by torchrun >&2\nexit 1\n"
    )
    for _ in range(2):
        failed = run("--launcher", "bash ./launcher")
        assert failed.returncode == 1
        assert failed.stderr.splitlines()[-4:] == [
            "much by torchrun",
            "",
            "error (rank 0): a/b: is damaged",
            "in: settings of mining and training (what is done stays done: mend that, and run this again)",
        ]
        assert not (run.out / ".errors").exists()
    launcher.write_text("exit 9\n")
    assert "\nexit code 9; see above\n" in run("--launcher", "bash ./launcher").stderr


def test_a_refused_run_is_told_who_is_at_work(run):
    process = start_and_hang(run, "run_ann")
    assert f"(process {process.pid} on " in run().stderr
    process.terminate()
    process.communicate(timeout=60)
