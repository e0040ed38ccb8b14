"""Filters of candidates: each drops what a plain loop drops, and counts it; the draw of the rest is as it was."""

import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.processes import run_processes
from tests.utils.mining.stub_store import StubStore, unlike
from utils.mining import negatives as negatives_module
from utils.mining.drawing import EXAMPLES, SHOWN, Drawn, choose_examples, draw_for_all
from utils.mining.filters import FILTERS, Sieve, make_filters
from utils.mining.negatives import draw_negatives, random_keys
from utils.runtime import distributed
from utils.runtime.errors import InputError
from utils.stores.known_passages import KnownPassages
from utils.stores.qrels import Qrels

QUERIES, PASSAGES, DEPTH = 50, 60, 20
VALUES = {"skip_ranks": [0, 1, 3, 15], "max_relative_score": [0.05, 0.8, 0.95, 1.0], "min_margin": [0, 0.3, 1.5, 4.0]}
CASES = [(name, value) for name, values in VALUES.items() for value in values]


class Data:
    """Random scores of all pairs, judgments with one to four positives, passages of equal text, and rankings.

    In a third of them all scores are negative; a query's ranking may end early, or hold the query itself.
    """

    def __init__(self, seed: int) -> None:
        generator = np.random.default_rng(seed)
        self.scores = generator.normal(size=(QUERIES, PASSAGES)).astype(np.float32) + np.float32(
            generator.choice([-9, 0, 2])
        )
        self.texts = generator.integers(0, generator.choice([20, 10**9]), size=PASSAGES).astype(np.uint64)
        judged = []
        for query in range(QUERIES):
            best = np.argsort(-self.scores[query])[: generator.choice([6, 12, PASSAGES])]
            chosen = generator.choice(best, size=generator.integers(2, 6), replace=False).tolist()
            judged += [(query, row, 1) for row in chosen[1:]] + [(query, chosen[0], 0)] * int(query % 3 == 0)
        self.qrels = Qrels.of(judged)
        self.rows = np.argsort(-self.scores, axis=1, kind="stable")[:, :DEPTH]
        self.ranked_scores = np.take_along_axis(self.scores, self.rows, axis=1)
        for query, line in enumerate(self.rows):
            end = generator.integers(1, DEPTH + 5)
            line[end:], self.ranked_scores[query, end:] = -1, -np.inf
        self.itself: list[int | None] = []
        for line in self.rows[:, 0].tolist():
            copied = generator.random() < 0.3 and line not in self.itself
            self.itself.append(line if copied else None)

    def positives(self, query: int) -> list[int]:
        return self.qrels.positives[query].tolist()

    def ranking(self, query: int) -> list[tuple[int, float]]:
        """What is ranked for a query, the query itself left out."""
        pairs = zip(self.rows[query].tolist(), self.ranked_scores[query].astype(float).tolist(), strict=True)
        return [(row, score) for row, score in pairs if row >= 0 and row != self.itself[query]]

    def candidates(self, query: int) -> list[tuple[int, float]]:
        relevant = {self.texts[row] for row in self.positives(query)}
        return [(row, score) for row, score in self.ranking(query) if self.texts[row] not in relevant]

    def dropped(self, query: int, name: str, value: float) -> set[int]:
        """By one filter, in Python's own numbers."""
        candidates = self.candidates(query)
        if name == "skip_ranks":
            return {row for row, _ in candidates[:value]}
        bound = min(float(self.scores[query, row]) for row in self.positives(query))
        if name == "max_relative_score":
            bound -= (1 - value) * abs(bound)
        elif ranked := [score for _, score in self.ranking(query)]:
            bound -= value * statistics.pstdev(ranked)
        return {row for row, score in candidates if score > bound}


def draw(
    data: Data, filters: dict[str, float], *, given: bool = False, blocks: int = 3, share: slice = slice(None)
) -> Drawn:
    """All that is left of each query, in the order of the draw; `share`: of the queries, a process's."""
    numbers = np.arange(QUERIES)[share]
    windows = [numbers[: len(numbers) // 2], numbers[len(numbers) // 2 :]]
    rankings = ((int(rows[0]), data.ranked_scores[rows], data.rows[rows]) for rows in windows)
    own = [str(100 + query) if row is None else f"p{row}" for query, row in enumerate(data.itself)]
    queries = StubStore(own, np.uint64(2**60) + np.arange(QUERIES, dtype=np.uint64))
    passages = StubStore([f"p{row}" for row in range(PASSAGES)], data.texts)
    scores, made = (lambda q, p: data.scores[q, p]), make_filters(filters)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(negatives_module, "BLOCK_CANDIDATES", blocks * DEPTH)
        drawing = {"given": given, "filters": made, "seed": 3, "episode": 1}
        return draw_for_all(rankings, queries, passages, data.qrels, scores, DEPTH, **drawing)


def in_drawing_order(query: int, rows: set[int]) -> list[int]:
    ordered = sorted(rows, key=lambda row: int(random_keys(3, 1, query, row)))
    return ordered + [-1] * (DEPTH - len(ordered))


@pytest.mark.parametrize(("name", "value"), CASES)
@settings(deadline=None, max_examples=8)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_filter_drops_what_a_plain_loop_drops_and_leaves_the_draw_of_the_rest_alone(name, value, seed):
    data = Data(seed)
    drawn = draw(data, {name: value})
    dropped = [data.dropped(query, name, value) for query in range(QUERIES)]
    candidates = [{row for row, _ in data.candidates(query)} for query in range(QUERIES)]
    for query in range(QUERIES):
        assert drawn.rows[query].tolist() == in_drawing_order(query, candidates[query] - dropped[query])
    none_left = sum(bool(has) and has == taken for has, taken in zip(candidates, dropped, strict=True))
    assert drawn.filtered["filters"] == {
        "candidates": sum(map(len, candidates)),
        "dropped": {f"{name} {value:g}": sum(map(len, dropped))},
        "queries_with_none_left": none_left,
    }
    assert np.isneginf(drawn.scores[drawn.rows < 0]).all()


def test_the_values_tried_drop_something_everything_and_nothing():
    shares = []
    for name, value in CASES:
        found = draw(Data(1), {name: value}).filtered["filters"]
        (dropped,) = found["dropped"].values()
        shares.append(dropped / found["candidates"])
    assert shares[0] == 0
    assert max(shares) > 0.8
    assert sum(0.05 < share < 0.95 for share in shares) > 5
    assert {name for name, _ in CASES} == FILTERS.keys(), "every filter is tried"


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1))
def test_of_several_filters_what_any_drops_is_gone_and_counts_once_for_the_first(seed):
    data, filters = Data(seed), {"skip_ranks": 2, "max_relative_score": 0.9, "min_margin": 0.5}
    drawn, counts = draw(data, filters), dict.fromkeys(filters, 0)
    for query in range(QUERIES):
        left = {row for row, _ in data.candidates(query)}
        for name, value in filters.items():
            taken = data.dropped(query, name, value) & left
            counts[name] += len(taken)
            left -= taken
        assert drawn.rows[query].tolist() == in_drawing_order(query, left)
    said = drawn.filtered["filters"]
    assert list(said["dropped"].values()) == list(counts.values())
    assert said["candidates"] - sum(counts.values()) == (drawn.rows >= 0).sum()


def test_blocks_of_queries_do_not_matter(monkeypatch):
    data, filters = Data(5), {"skip_ranks": 1, "min_margin": 0.5}
    together, apart = (draw(data, filters, given=True, blocks=blocks) for blocks in (1000, 1))
    for name, value in vars(together).items():
        assert np.array_equal(getattr(apart, name), value), name


def test_without_filters_nothing_is_dropped_counted_or_said(capsys):
    data = Data(6)
    drawn = draw(data, {})
    plain = draw_negatives(
        np.arange(QUERIES),
        np.array(
            [[-1 if row == data.itself[q] else row for row in line] for q, line in enumerate(data.rows.tolist())]
        ),
        data.ranked_scores,
        KnownPassages(*unlike(QUERIES, data.texts), data.qrels),
        DEPTH,
        seed=3,
        episode=1,
    )
    assert np.array_equal(drawn.rows, plain[0])
    assert np.array_equal(drawn.scores, plain[1])
    drawn.say_filtered(0)
    assert (drawn.filtered, len(drawn.dropped), capsys.readouterr().out) == ({}, 0, "")


@pytest.mark.parametrize(("filters", "warns"), [({"max_relative_score": 0.5}, True), ({"skip_ranks": 1}, False)])
def test_filters_that_take_most_of_the_candidates_are_warned_of(capsys, filters, warns):
    drawn = draw(Data(6), filters)
    *dropped, candidates, _ = drawn.counts.tolist()
    assert (sum(dropped) > candidates / 2) == warns
    drawn.say_filtered(0)
    warnings = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert len(warnings) == warns
    assert all("--max_relative_score 0.5: more than half" in line for line in warnings)


def test_negatives_that_the_data_bring_along_are_not_filtered():
    data, filters = Data(7), {"skip_ranks": 3, "max_relative_score": 0.05}
    drawn, unfiltered, mined = draw(data, filters, given=True), draw(data, {}, given=True), draw(data, filters)
    brought = np.unique(data.qrels.query_rows[data.qrels.relevance <= 0])
    assert np.array_equal(drawn.rows[brought], unfiltered.rows[brought])
    assert (drawn.rows[brought] >= 0).sum() > len(brought) / 2
    others = np.setdiff1d(np.arange(QUERIES), brought)
    assert np.array_equal(drawn.rows[others], mined.rows[others])
    candidates = sum(len(data.candidates(query)) for query in others.tolist())
    assert drawn.filtered["filters"]["candidates"] == candidates


def test_the_query_itself_is_no_negative_of_it_though_the_data_bring_it_along():
    data = Data(12)
    copied = [query for query, row in enumerate(data.itself) if row is not None and row not in data.positives(query)]
    brought = [(query, data.itself[query], 0) for query in copied]
    others = [(query, next(row for row in range(PASSAGES) if row != data.itself[query]), -1) for query in copied]
    judged = {(query, row): grade for query, row, grade in [*others, *brought, *data.qrels]}
    data.qrels = Qrels.of((query, row, grade) for (query, row), grade in judged.items())
    drawn = draw(data, {}, given=True)
    assert len(copied) > 5
    assert all(data.itself[query] not in drawn.rows[query] for query in copied)


def draw_share() -> dict[str, list]:
    """What a process has of it all; with one process, everything."""
    first, last = (QUERIES * (distributed.rank() + end) // distributed.world_size() for end in (0, 1))
    drawn = draw(Data(8), {"skip_ranks": 1, "min_margin": 0.5}, given=True, share=slice(first, last))
    examples = [str(example) for example in drawn.examples(Data(8).qrels)] if distributed.is_main() else []
    return {"examples": examples} | {name: np.asarray(value).tolist() for name, value in vars(drawn).items()}


def test_two_processes_draw_drop_count_and_show_what_one_does():
    one, (first, second) = draw_share(), run_processes(draw_share, 2)
    assert first == one
    assert len(one["examples"]) == EXAMPLES
    assert len(second["rows"]) == QUERIES - QUERIES // 2


def test_examples_are_a_uniform_sample_with_the_lowest_positive_the_hardest_kept_and_the_best_dropped():
    data, filters = Data(9), {"skip_ranks": 2, "max_relative_score": 0.9}
    examples = draw(data, filters).examples(data.qrels)
    assert [example.query for example in examples] == choose_examples(QUERIES, 3).tolist()
    for example in examples:
        query, candidates = example.query, data.candidates(example.query)
        by = {row: name for name, value in reversed(filters.items()) for row in data.dropped(query, name, value)}
        positives = {float(data.scores[query, row]): row for row in data.positives(query)}
        assert (example.positives, example.positive.passage) == (len(positives), positives[min(positives)])
        assert np.float32(example.positive.score) == np.float32(min(positives))
        kept = [(row, score) for row, score in candidates if row not in by]
        assert [(p.passage, np.float32(p.score)) for p in example.kept] == kept[:SHOWN]
        gone = [(row, f"{by[row]} {filters[by[row]]:g}") for row, _ in candidates if row in by]
        assert [(p.passage, p.filter) for p in example.dropped] == gone[:SHOWN]
        assert example.all_dropped == len(gone)
    assert len({str(choose_examples(1000, seed)) for seed in range(4)}) == 4
    often = np.bincount(np.concatenate([choose_examples(100, seed) for seed in range(2000)]), minlength=100)
    assert abs(often - 600).max() < 5 * np.sqrt(600 * 0.7)  # hypergeometric
    assert choose_examples(4, 0).tolist() == [0, 1, 2, 3]


def test_where_all_is_dropped_the_filters_are_named_and_where_nothing_was_there_they_are_not():
    drawn = draw(Data(10), {"skip_ranks": DEPTH})
    with pytest.raises(
        InputError, match=r"--skip_ranks 20: every one of the \d+ candidates of all queries was dropped"
    ):
        drawn.check(DEPTH)
    draw(Data(10), {"skip_ranks": 1}).check(DEPTH)
    nothing = Drawn(
        drawn.rows, drawn.scores, drawn.positive_scores, ["skip_ranks 20"], drawn.counts * 0, *[np.zeros(0)] * 2
    )
    with pytest.raises(InputError, match="is relevant to it or equals a relevant one"):
        nothing.check(DEPTH)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("skip_ranks", -1),
        ("max_relative_score", 0),
        ("max_relative_score", 1.01),
        ("max_relative_score", float("nan")),
        ("min_margin", -0.1),
        ("min_margin", float("inf")),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_the_flags_name(name, value):
    with pytest.raises(InputError, match=f"--{name} is "):
        make_filters({name: value})


def test_a_share_of_scores_is_for_vectors_of_length_1_and_says_what_else_there_is():
    for name, value in (("skip_ranks", 1), ("min_margin", 1.0), ("max_relative_score", 0.95)):
        (made,) = make_filters({name: value})
        made.check_reading(normalized=True)
        if name != "max_relative_score":
            made.check_reading(normalized=False)
    with pytest.raises(InputError, match="--min_margin"):
        made.check_reading(normalized=False)


def test_of_thousands_of_candidates_the_sieve_keeps_those_of_the_queries_shown():
    sieve = Sieve(make_filters({"skip_ranks": 1}), np.array([2]))
    rows, scores = np.arange(12).reshape(4, 3), -np.arange(12, dtype=np.float32).reshape(4, 3)
    left = sieve.leave(np.arange(4), rows, scores, rows >= 0, np.zeros(4, np.float32))
    assert left.tolist() == [[False, True, True]] * 4
    assert sieve.dropped.tolist() == [(2, 6, -6.0, 0)]
