"""Hyperparameters by size: what is chosen, within which bounds, and what stays as it is given or published."""

from itertools import pairwise, product
from math import ceil

import pytest

from drivers.training_arguments import NUM_TRAINING_STEPS, TOTAL_TRAINING_STEPS
from model.hyperparameters import MINED_PASSES, NAMES, PUBLISHED, Size, choose, choose_published
from model.optimizers import LearningRate

QUERIES = (1, 3, 30, 300, 1_000, 4_404, 10_000, 100_000, 399_999, 500_000, 10_000_000)
PASSAGES = (1, 12, 300, 5_000, 8_841_823)
WIDTHS = (32, 384, 768, 1_024, 4_096)
SIZES = [
    Size(*numbers, processes=processes)
    for *numbers, processes in product(QUERIES, PASSAGES, WIDTHS, (False, True), (1, 3, 8))
]


COUNTS = {
    name for name, value in PUBLISHED["base"].items() if type(value) is int and value and name != "WARMUP_STEPS"
}


def values(size: Size, **given) -> dict:
    """All settings: those that are given and those that are chosen around them."""
    chosen = {name: choice.value for name, choice in choose(size, given).items()}
    assert not chosen.keys() & given.keys()
    assert chosen.keys() | given.keys() == set(NAMES)
    return chosen | given


def step_of(settings: dict, size: Size) -> int:
    return settings["BATCH_SIZE"] * settings["ACCUMULATION"] * size.processes


@pytest.mark.parametrize(
    ("queries", "passages", "expected"),
    [  # STEPS from an encoder that is made for vectors, and from another; triplets a step, CLUSTERS, TOPK. Contrasted
        # lines are whole blocks of 8 or 16 in each pass.
        (30, 300, (10, 10, 16, 2, 24)),
        (300, 1_000, (60, 94, 16, 4, 45)),
        (1_000, 5_000, (63, 313, 16, 8, 100)),
        (4_404, 5_000, (138, 689, 32, 16, 100)),
        (10_000, 100_000, (209, 1_042, 48, 24, 200)),
        (100_000, 1_000_000, (618, 3_087, 162, 50, 200)),
        (399_999, 8_841_823, (1_250, 6_250, 320, 50, 200)),
        (500_000, 8_841_823, (1_413, 7_063, 354, 50, 200)),
    ],
)
def test_what_is_chosen_at_sizes_that_people_have(queries, passages, expected):
    steps, steps_of_plain, step, clusters, topk = expected
    for declared, length in ((True, steps), (False, steps_of_plain)):
        size = Size(queries, passages, 384, declared)
        chosen = values(size)
        taken = step_of(chosen, size)
        if declared:
            assert abs(taken - step) <= chosen["QUERIES_TOGETHER"] / 2 * chosen["ACCUMULATION"]
            length = ceil(queries / taken) if taken != step else length
        else:
            assert taken == step
        assert chosen["STEPS"] == length
        assert (chosen["CLUSTERS"], chosen["TOPK"], chosen["NEGATIVES"]) == (clusters, topk, 5)
        rate = {30: 2e-5}.get(queries, 5e-5) if declared else 1e-4
        assert (chosen["OPTIMIZER"], chosen["LEARNING_RATE"]) == ("adamW", rate)
        assert chosen["EPISODES"] == (2 if declared else 3)


def test_whatever_the_size_there_is_at_least_a_step_that_learns_and_nothing_is_beyond_what_there_is():
    for size in SIZES:
        chosen = values(size)
        assert all(chosen[name] >= 1 for name in COUNTS)
        assert chosen["CLUSTERS"] <= min(50, size.queries)
        assert 2 * chosen["CLUSTERS"] <= max(step_of(chosen, size), 2)
        assert chosen["TOPK"] <= max(1, size.passages / 2)
        assert chosen["BATCH_SIZE"] <= 64
        together = chosen["QUERIES_TOGETHER"]
        assert (chosen["LOSS"] == "contrastive") == size.declared == (together > 0)
        assert not together or chosen["BATCH_SIZE"] % together == 0
        assert together in (0, 8) or (together == 16 and step_of(chosen, size) >= 32)
        assert 1e-7 < chosen["LEARNING_RATE"] <= 1e-4
        assert 0 <= chosen["WARMUP_STEPS"] < chosen["STEPS"] == chosen["NUM_TRAINING_STEPS"]
        schedule = chosen["WARMUP_STEPS"], chosen["NUM_TRAINING_STEPS"], chosen["TOTAL_TRAINING_STEPS"]
        for episode in range(chosen["EPISODES"]):
            first = episode * chosen["STEPS"]
            peak = LearningRate(1.0, first, *schedule).at(first + chosen["WARMUP_STEPS"])
            assert peak == pytest.approx(max(0.2, 1 - episode / chosen["EPISODES"]))


def test_an_episode_takes_the_mined_file_at_most_once_and_a_pass_where_that_is_enough():
    for size in SIZES:
        chosen = values(size)
        mined, step = size.queries * chosen["NEGATIVES"], step_of(chosen, size)
        assert chosen["STEPS"] <= ceil(mined / step)
        if size.declared and chosen["STEPS"] > 60:
            assert chosen["STEPS"] == ceil(size.queries / step)
        if not size.declared:
            assert chosen["STEPS"] == ceil(mined / step)


def test_more_queries_never_mean_fewer_clusters_or_triplets_and_a_wider_encoder_no_higher_rate():
    for declared in (False, True):
        sizes = [Size(queries, 10_000, 384, declared) for queries in range(1, 20_000, 7)]
        all_chosen = [(values(size), size) for size in sizes]
        for (fewer, size), (more, larger) in pairwise(all_chosen):
            assert fewer["CLUSTERS"] <= more["CLUSTERS"]
            assert step_of(fewer, size) <= step_of(more, larger)
            # In whole steps.
            assert (fewer["STEPS"] - 1) * step_of(fewer, size) < more["STEPS"] * step_of(more, larger)
    widths = 64, 384, 512, 768, 1_024, 2_048
    for declared, expected in ((True, [5e-5, 2.5e-5, 1.9e-5]), (False, [1e-4, 2.5e-5, 1.4e-5])):
        rates = [values(Size(1_000, 10_000, width, declared))["LEARNING_RATE"] for width in widths]
        assert rates == sorted(rates, reverse=True)
        assert [rates[1], *rates[3:5]] == expected


@pytest.mark.parametrize("batch", [1, 3, 4, 8, 12, 64])
def test_of_a_given_batch_a_block_is_no_larger_part_than_all(batch):
    given = {"BATCH_SIZE": batch, "LOSS": "contrastive"}
    for declared in (False, True):
        chosen = values(Size(1_000, 10_000, 384, declared), **given)
        assert chosen["QUERIES_TOGETHER"] == min(batch, 16 if batch == 64 else 8)
    assert choose_published("large", given)["QUERIES_TOGETHER"].value == min(batch, 16)


@pytest.mark.parametrize("model_size", ["base", "large"])
def test_the_published_values_are_those_of_the_publication(model_size):
    steps, batch = {"base": (45_000, 64), "large": (30_000, 32)}[model_size]
    chosen = {name: choice.value for name, choice in choose_published(model_size, {}).items()}
    assert chosen == {
        "LOSS": "pairwise",
        "QUERIES_TOGETHER": 0,
        "NEGATIVES_A_QUERY": 0,
        "MAX_RELATIVE_SCORE": "off",
        "ABSENT": "drop",
        "NORMALIZE_WEIGHTS": 0,
        "TOPK": 200,
        "NEGATIVES": 30,
        "CLUSTERS": 50,
        "EPISODES": 3,
        "STEPS": steps,
        "BATCH_SIZE": batch,
        "ACCUMULATION": 1,
        "OPTIMIZER": "lamb",
        "LEARNING_RATE": 5e-6,
        "WARMUP_STEPS": 3_000,
        "NUM_TRAINING_STEPS": NUM_TRAINING_STEPS,
        "TOTAL_TRAINING_STEPS": TOTAL_TRAINING_STEPS,
        "SAVE_STEPS": 5_000,
    }
    given = choose_published(model_size, {"TOPK": 7})
    assert {name: choice.value for name, choice in given.items()} | {"TOPK": 200} == chosen
    assert choose_published(model_size, {"STEPS": 70_000})["NUM_TRAINING_STEPS"].value == 70_000
    assert choose_published(model_size, {"NUM_TRAINING_STEPS": 9})["STEPS"].value == 9


@pytest.mark.parametrize(
    ("queries", "declared", "published"),
    [(400_000, False, True), (399_999, False, False), (400_000, True, False), (3, True, False)],
)
def test_the_published_values_are_meant_for_many_queries_and_a_plain_encoder(queries, declared, published):
    assert Size(queries, 8_841_823, 768, declared).is_published == published


@pytest.mark.parametrize("name", NAMES)
def test_each_setting_can_be_given_alone_and_stays(name):
    words = {
        "OPTIMIZER": ("lamb", "adamW"),
        "LOSS": ("pairwise", "contrastive"),
        "MAX_RELATIVE_SCORE": ("off", "0.9"),
    }
    for size in SIZES[::7]:
        for value in words.get(name, (1, PUBLISHED["base"][name])):
            chosen = values(size, **{name: value})
            assert chosen[name] == value
            assert all(chosen[other] >= 1 for other in ("STEPS", "BATCH_SIZE", "ACCUMULATION", "TOPK", "CLUSTERS"))
            assert chosen["STEPS"] <= chosen["NUM_TRAINING_STEPS"] or name == "NUM_TRAINING_STEPS"
            assert name in ("WARMUP_STEPS", "STEPS") or chosen["WARMUP_STEPS"] < chosen["STEPS"]


def test_what_is_given_moves_what_follows_from_it():
    size = Size(10_000, 100_000, 384, True)
    as_chosen = values(size)
    assert step_of(as_chosen, size) == 48
    for given, step in (
        ({"BATCH_SIZE": 8}, 48),
        ({"BATCH_SIZE": 8, "ACCUMULATION": 1}, 8),
        ({"ACCUMULATION": 4}, 64),  # 12 in each, in whole blocks
        ({"BATCH_SIZE": 200}, 200),
    ):
        chosen = values(size, **given)
        assert step_of(chosen, size) == step
        assert chosen["STEPS"] == max(60, ceil(size.queries / step))
    on_eight = Size(10_000, 100_000, 384, True, processes=8)
    assert (step_of(values(on_eight), on_eight), values(on_eight)["BATCH_SIZE"]) == (64, 8)
    pairwise_on_eight = values(on_eight, LOSS="pairwise")
    assert (step_of(pairwise_on_eight, on_eight), pairwise_on_eight["BATCH_SIZE"]) == (48, 6)
    assert values(size, NEGATIVES=30)["STEPS"] == as_chosen["STEPS"], "a pass over the queries"
    assert values(size, NEGATIVES=30, LOSS="pairwise")["STEPS"] == ceil(10_000 * 30 / MINED_PASSES / 48)
    assert values(size, LOSS="pairwise")["QUERIES_TOGETHER"] == 0
    for loss, objective, options in (
        ("contrastive", "idro", ("keep", 1)),
        ("contrastive", "balanced", ("drop", 0)),
        ("pairwise", "idro", ("drop", 0)),
    ):
        for chosen in (choose(size, {"LOSS": loss}, objective), choose_published("large", {"LOSS": loss}, objective)):
            assert (chosen["ABSENT"].value, chosen["NORMALIZE_WEIGHTS"].value) == options
    assert values(size, QUERIES_TOGETHER=0)["LOSS"] == "pairwise"
    assert values(size, QUERIES_TOGETHER=4)["LOSS"] == "contrastive"
    plain = Size(10_000, 100_000, 384, False)
    assert (values(plain)["LOSS"], values(plain, LOSS="contrastive")["QUERIES_TOGETHER"]) == ("pairwise", 16)
    published = choose_published("base", {"LOSS": "contrastive"})
    assert (published["QUERIES_TOGETHER"].value, published["NEGATIVES_A_QUERY"].value) == (16, 1)
    assert values(Size(10_000, 1_000, 384, True), NEGATIVES=30)["TOPK"] == 120
    assert values(size, TOPK=3)["NEGATIVES"] == 3
    assert values(size, STEPS=1_000) | {
        "WARMUP_STEPS": 100,
        "NUM_TRAINING_STEPS": 1_000,
        "TOTAL_TRAINING_STEPS": 2_000,
        "SAVE_STEPS": 500,
    } == values(size, STEPS=1_000)
    assert values(size, EPISODES=5)["TOTAL_TRAINING_STEPS"] == 5 * as_chosen["STEPS"]
    assert values(size, NUM_TRAINING_STEPS=7)["STEPS"] == 7
    assert values(size, OPTIMIZER="lamb")["LEARNING_RATE"] == 1.3e-3  # to two digits
