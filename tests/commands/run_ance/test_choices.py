"""Groups by name and filters of negatives: what the scripts are told, and what a run is held to."""

import pytest

from tests.commands.run_ance.running import (
    CHOICE,
    FILTERS,
    READING,
    REPORT,
    STORES,
    TABLES,
    names,
    only,
    write_groups,
)
from utils.stores.run_folder import RunFolder


@pytest.mark.parametrize("objective", ["idro", "erm"])
def test_groups_by_name_reach_the_miner_and_training_counts_them(run, objective):
    path = write_groups(run)
    finished = run("--groups", "groups.tsv", OBJECTIVE=objective)
    assert finished.returncode == 0, finished.stderr
    calls = run.calls()
    for mined in only(calls, "run_ann_data_gen"):
        assert (mined["groups_file"], mined["group"]) == (str(path), str(int(objective == "idro")))
        assert not {"cluster_query", "cluster_centroids"} & {*mined}
    assert [trained["n_groups"] for trained in only(calls, "run_ann")] == ["0", "0"]
    assert only(calls, "choose_settings")[0]["clusters"] == "1"  # so that none are chosen
    assert RunFolder(run.out).setting("QUERY_GROUPS") == str(path)
    assert RunFolder(run.out).setting("CLUSTERS") == ""


@pytest.mark.parametrize(
    ("first", "second", "difference"),
    [
        ("groups.tsv", "moved.tsv", None),
        ("groups.tsv", "source", None),
        ("source", "groups.tsv", None),
        ("groups.tsv", "other.tsv", "QUERY_GROUPS was '{work}/groups.tsv' and is '{work}/other.tsv'"),
        ("clusters", "groups.tsv", "QUERY_GROUPS was 'clusters' and is '{work}/groups.tsv'"),
        ("groups.tsv", "clusters", "QUERY_GROUPS was '{work}/groups.tsv' and is 'clusters'"),
    ],
)
def test_a_run_is_held_to_what_its_groups_file_says_wherever_it_lies(run, first, second, difference):
    for name in ("groups.tsv", "moved.tsv", "raw/sources.tsv"):
        write_groups(run, name)
    write_groups(run, "other.tsv", "1\tcode\n")
    assert run(QUERY_GROUPS=first).returncode == 0
    run.calls()
    finished = run("--query_groups", second)
    if difference is None:
        assert finished.returncode == 0, finished.stderr
        assert names(run.calls()) == [*READING, *STORES, *CHOICE, *TABLES, *REPORT]
    else:
        assert finished.returncode == 2
        assert difference.format(work=run.checkout.work) in finished.stderr


def test_a_groups_file_that_was_changed_since_is_refused(run):
    path = write_groups(run)
    assert run(QUERY_GROUPS=path).returncode == 0
    path.write_text("1\tcode\n")
    refused = run(QUERY_GROUPS=path)
    assert refused.returncode == 2
    assert f"QUERY_GROUPS was '{path}' and is '{path}' with other files" in refused.stderr


def test_filters_reach_the_miner_and_are_held_to(run):
    assert run(NORMALIZE=1, **FILTERS).returncode == 0
    for mined in only(run.calls(), "run_ann_data_gen"):
        assert {name: mined[name.lower()] for name in FILTERS} == FILTERS
    refused = run(NORMALIZE=1, **FILTERS | {"MIN_MARGIN": "off"})
    assert (refused.returncode, "MIN_MARGIN was '0.5' and is 'off'" in refused.stderr) == (2, True)


@pytest.mark.parametrize("settings", [{"MODEL_TYPE": "rdot_nll_condenser"}, {"QUERIES_TOGETHER": 0}])
def test_the_demo_of_a_published_type_or_without_blocks_trains_by_the_published_loss_without_a_filter(run, settings):
    run.settings = {"OUT_DIR": "out of all", "EPISODES": 1}
    assert run(**settings).returncode == 0
    calls = run.calls()
    (mined,), (trained,) = only(calls, "run_ann_data_gen"), only(calls, "run_ann")
    assert (mined["queries_together"], "max_relative_score" in mined) == ("0", False)
    assert (trained["loss"], trained["absent"], "normalize_weights" in trained) == ("pairwise", "drop", False)


def test_a_filter_that_is_given_takes_the_place_of_the_one_that_is_chosen(run):
    run.settings = {"OUT_DIR": "out of all", "EPISODES": 1}  # the demo, whose vectors have length 1
    for given, filters in (({}, {"max_relative_score"}), ({"MIN_MARGIN": "0.5"}, {"min_margin"})):
        assert run(**given, OUT_DIR=f"with {len(given)}").returncode == 0
        (mined,) = only(run.calls(), "run_ann_data_gen")
        assert {name.lower() for name in FILTERS} & {*mined} == filters
