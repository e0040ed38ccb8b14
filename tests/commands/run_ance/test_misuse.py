"""What run_ance.sh refuses or warns of, before anything runs."""

from pathlib import Path

import pytest

from tests.commands.run_ance.running import READING, names, only


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--learning_rat", "1"], "unknown argument '--learning_rat'"),
        (["msmarco"], "unknown argument 'msmarco'"),
        (["--seed"], "--seed wants a value"),
        (["--steps", "0"], "STEPS is '0'; a whole number, at least 1"),
        (["--steps", "1e3"], "STEPS is '1e3'"),
        (["--episodes", "none"], "EPISODES is 'none'"),
        (["--model_size", "huge"], "MODEL_SIZE is 'huge'; it can be: base large"),
        (["--objective", "vrex"], "OBJECTIVE is 'vrex'; it can be: idro dro-greedy balanced erm"),
        (["--absent", "stay"], "ABSENT is 'stay'; it can be: auto drop keep"),
        (
            ["--absent=keep", "--objective=balanced"],
            "ABSENT is keep, and OBJECTIVE is balanced, which takes no weight",
        ),
        (["--normalize_weights=1", "--objective=erm"], "and OBJECTIVE is erm, whose coefficients sum to 1 in every"),
        (["--loss=contrastive", "--queries_together=0"], "QUERIES_TOGETHER is 0, so that there are no blocks"),
        (
            ["--loss=contrastive", "--queries_together=8", "--batch_size=4"],
            "BATCH_SIZE is 4, and a block has 8 lines, which stay together",
        ),
        (["--async", "yes"], "ASYNC is 'yes'; it can be: 0 1"),
        (["--async", "1", "--launcher", "mpirun"], "LAUNCHER is set, and ASYNC has two of its own"),
        (["--async", "1", "--num_training_steps", "9"], "cannot be set with ASYNC, where both are EPISODES x STEPS"),
        (["--total_training_steps", "3e5"], "TOTAL_TRAINING_STEPS is '3e5'; a whole number, at least 1"),
        (
            ["--steps=60001", "--num_training_steps=60000"],
            "STEPS is 60001, and beyond NUM_TRAINING_STEPS, 60000, the learning rate is 0",
        ),
        (["--gradient_checkpointing", "2"], "GRADIENT_CHECKPOINTING is '2'; it can be: 0 1"),
        (["--license", "My own"], "LICENSE is 'My own'; one of the hub's identifiers"),
        (["--license", "apache"], "LICENSE is 'apache'; one of the hub's identifiers"),
        (["--model_type", "bert"], "MODEL_TYPE is 'bert'; it can be: auto rdot_nll rdot_nll_multi"),
        (["--accumulation", "half"], "ACCUMULATION is 'half'; a whole number"),
        (["--groups", "nowhere"], "QUERY_GROUPS is 'nowhere', which is no file; it can be: clusters, source, or"),
        (["--groups", "source", "--clusters", "9"], "CLUSTERS is set, and QUERY_GROUPS is 'source': groups by name"),
        (["--data_dir", "nowhere"], "DATA_DIR is 'nowhere', and 'nowhere' is no folder or file"),
        (["--data_dir", "raw:nowhere"], "'nowhere' is no folder or file (a colon stands between two)"),
        (["--dev_share", "1"], "DEV_SHARE is '1'; a share between 0 and 1 is needed"),
        (["--given_negatives", "2"], "GIVEN_NEGATIVES is '2'; it can be: 0 1"),
        (["--max_relative_score", "95"], "MAX_RELATIVE_SCORE is '95'; a share above 0, at most 1, is needed"),
        (["--attention_dropout", "1"], "ATTENTION_DROPOUT is '1'; a share from 0 to below 1 is needed"),
        (["--eps", "0.0"], "EPS is '0.0'; iDRO needs a weight above 0"),
        (["--objective", "dro-greedy", "--alpha", "1.5"], "ALPHA is '1.5'; DRO-greedy needs a share of the data"),
        (["--objective=dro-greedy", "--ema=2"], "EMA is '2'; DRO-greedy needs a decay from 0 to 1"),
        (["--skip_ranks", "-1"], "SKIP_RANKS is '-1'; a whole number"),
        (["--zero_shot_dirs", "raw:nowhere"], "names 'nowhere', which is no folder"),
        (["--zero_shot_dirs", "raw:beir/../raw"], "two folders 'raw'"),
    ],
)
def test_misuse_is_told_before_anything_runs(run, flags, reason):
    finished = run(*flags)
    assert finished.returncode == 2
    assert finished.stderr.strip().splitlines()[-1].startswith("error: ")
    assert reason in finished.stderr
    assert run.calls() == []


def test_a_share_of_scores_is_refused_for_vectors_of_any_length_before_the_data_are_looked_at(run):
    refused = run(MAX_RELATIVE_SCORE="0.95")
    assert (refused.returncode, "give MIN_MARGIN instead" in refused.stderr) == (2, True)
    assert names(run.calls()) == READING[:1]


def test_sources_that_are_not_there_are_said_before_anything_is_tokenized(run):
    refused = run("--groups=source")
    assert refused.returncode == 2
    assert "QUERY_GROUPS is 'source', and there is no" in refused.stderr
    assert "raw/sources.tsv: the data have one source, so one group only; give" in refused.stderr
    assert names(run.calls()) == READING
    assert run("--groups=source", DATA_DIR="raw:other raw").returncode == 0
    groups = f"{run.out}/collection/imported/sources.tsv"
    assert only(run.calls(), "run_ann_data_gen")[0]["groups_file"] == groups


def test_a_mistake_is_told_before_anything_is_installed(run):
    for mistake in ({"DATA_DIR": "nowhere"}, {"CHECKPOINT": "no/such/folder"}, {"MODEL_TYPE": "bert"}):
        assert run(**mistake).returncode == 2
        assert not Path(run.checkout.environment["ANCE_VENV"]).exists()


@pytest.mark.parametrize(
    "flags", [("--batch-size", 9, "--seed=5"), ("--batch_size=9", "--seed", 5), ("--BATCH-SIZE=9", "--seed=5")]
)
def test_flags_may_have_dashes_and_equals_signs(run, flags):
    finished = run(*flags, "--index_parameters=nprobe=64", "--index_factory=IVF16,Flat")
    assert finished.returncode == 0, finished.stderr
    calls = run.calls()
    trained, mined = only(calls, "run_ann")[0], only(calls, "run_ann_data_gen")[0]
    assert (trained["per_gpu_train_batch_size"], trained["seed"]) == ("9", "5")
    assert mined["index_parameters"] == "nprobe=64"


def test_outside_slurm_its_script_has_help_and_tells_how_it_is_started(checkout):
    shown = checkout.run("slurm_ance.sbatch", "--help")
    assert (shown.returncode, shown.stderr, "sbatch commands/slurm_ance.sbatch" in shown.stdout) == (0, "", True)
    assert "#SBATCH" not in shown.stdout
    refused = checkout.run("slurm_ance.sbatch", "--seed", 5)
    assert (refused.returncode, refused.stderr.splitlines()) == (
        2,
        ["error: this is no Slurm job; submit it: sbatch commands/slurm_ance.sbatch FLAG…"],
    )


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--learning_rate", "fast"], "LEARNING_RATE is 'fast'; a number is needed"),
        (["--alpha=1,5"], "ALPHA is '1,5'; a number"),
        (["--index_parameters", "nprobe=3"], "INDEX_PARAMETERS are of an approximate index"),
        (["--out_dir", "a file/out"], "cannot make the folder a file/out"),
        (["--zero_shot_dirs", "beir/sci fact:beir/none"], "ZERO_SHOT_DIRS names 'beir/none', which is no folder"),
    ],
)
def test_what_would_fail_after_mining_is_told_before_anything_runs(run, flags, reason):
    (run.checkout.work / "a file").touch()
    refused = run(*flags)
    assert (refused.returncode, reason in refused.stderr) == (2, True), refused.stderr
    assert run.calls() == []


def test_a_variable_of_the_environment_that_a_script_uses_inside_changes_nothing(run):
    refused = run("--learning_rat", "1", hands_on=1, next_heading="x", demo=1, told=1)
    assert (refused.returncode, "unknown argument" in refused.stderr) == (2, True)


def test_an_episode_that_ends_within_its_warm_up_is_said_and_one_that_does_not_is_not(run):
    warned = run(STEPS=9).stderr
    assert "an episode has 9 steps, and WARMUP_STEPS is 3000" in warned
    assert "WARMUP_STEPS" not in run(STEPS=9, OUT_DIR="another", WARMUP_STEPS=3).stderr


def test_a_learning_rate_of_ones_own_is_not_compared_with_the_published_steps(run):
    assert "published are 512" in run().stderr
    assert "published are" not in run(OUT_DIR="another", LEARNING_RATE="1e-4").stderr
