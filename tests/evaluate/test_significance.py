"""Intervals and p-values against what can be computed in another way."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from evaluate.significance import bootstrap_interval, compare, holm, mean_of_means, randomisation_test

RNG = np.random.default_rng(7)


@pytest.mark.parametrize("sizes", [(9,), (4, 6), (1, 7)])
def test_of_few_queries_every_change_of_signs_is_counted(sizes):
    collections = [[RNG.normal(0.3, 1, size)] for size in sizes]
    observed = abs(mean_of_means(collections))
    as_far = total = 0
    for signs in product((-1, 1), repeat=sum(sizes)):
        flipped = np.split(np.concatenate([values for (values,) in collections]) * signs, np.cumsum(sizes)[:-1])
        as_far += abs(mean_of_means([[values] for values in flipped])) >= observed - 1e-12
        total += 1
    assert randomisation_test(collections) == pytest.approx(as_far / total)


def test_of_many_queries_interval_and_p_are_those_of_the_normal_distribution():
    collections = [[RNG.normal(0.05, 0.4, 2_000)], [RNG.normal(0.0, 0.2, 500)]]
    mean = mean_of_means(collections)
    error = np.sqrt(sum(values.var() / len(values) for (values,) in collections)) / 2
    low, high = bootstrap_interval(collections)
    assert low == pytest.approx(mean - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(mean + 1.96 * error, abs=0.1 * error)
    assert randomisation_test([[RNG.normal(0, 1, 1_000) + 1]]) < 0.001


def test_of_many_queries_p_is_that_of_the_normal_distribution():
    values = RNG.normal(0, 1, 400)
    values += 1.5 / 20 - values.mean()  # 1.5 standard errors from 0
    expected = 2 * norm.sf(values.mean() * 20 / np.sqrt(np.mean(values**2)))
    assert randomisation_test([[values]]) == pytest.approx(expected, abs=0.015)


def test_parts_count_alike_and_queries_are_drawn_within_them():
    small, large = RNG.normal(0.5, 0.3, 100), RNG.normal(-0.5, 0.1, 900)
    assert mean_of_means([[small, large]]) == pytest.approx((small.mean() + large.mean()) / 2)
    low, high = bootstrap_interval([[small, large]])
    error = np.sqrt(small.var() / 100 + large.var() / 900) / 2  # what lies between the parts does not count
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)
    # A collection of two parts and one of one count alike, too.
    other = RNG.normal(0, 1, 50)
    mean = ((small.mean() + large.mean()) / 2 + other.mean()) / 2
    assert compare([[0 * small, 0 * large], [0 * other]], [[small, large], [other]]).mean == pytest.approx(mean)


def test_the_other_way_round_the_difference_has_the_other_sign_and_the_same_p():
    first, second = [[RNG.random(40)]], [[RNG.random(40)]]
    one, other = compare(first, second), compare(second, first)
    assert one.mean == -other.mean == pytest.approx(second[0][0].mean() - first[0][0].mean())
    assert one.p == pytest.approx(other.p, abs=0.02)
    assert one.low < one.mean < one.high


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.5, 0.5], [0.0, 1.0]])
def test_a_run_is_not_better_than_itself(values):
    found = compare([[np.array(values)]], [[np.array(values)]])
    assert (found.mean, found.low, found.high, found.p) == (0, 0, 0, 1)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holms_p_is_the_least_level_at_which_the_step_down_procedure_rejects(p_values):
    adjusted = holm(p_values)
    for level in (*adjusted, 0.05, 0.3):
        rejected = set()
        for step, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
            if min(1.0, p_values[i] * (len(p_values) - step)) > level:
                break
            rejected.add(i)
        assert rejected == {i for i, p in enumerate(adjusted) if p <= level}
