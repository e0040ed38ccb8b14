"""From the rankings of all training queries to their negatives, with the scores of these and of the positives.

What `utils.mining.negatives` draws for a block of queries is gathered here over blocks and processes. What filters
took is counted, and kept for a few queries, as examples that a person can judge.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from utils.mining.filters import Filter, Sieve
from utils.mining.negatives import check_candidates, draw_negatives, given_negatives, random_keys, relevant_pairs
from utils.runtime import distributed
from utils.runtime.errors import InputError
from utils.runtime.logs import say
from utils.stores.known_passages import KnownPassages
from utils.stores.mined_examples import MinedExample, Scored
from utils.stores.qrels import Qrels
from utils.stores.token_store import TokenStore

EXAMPLES = 30  # queries that are shown
SHOWN = 5  # of the negatives of each, and of what filters dropped
EXAMPLE = 0xE8A3B1E  # stands in the place of an episode when they are chosen: they are the same in each


@dataclass(frozen=True)
class Drawn:
    """Negatives of the training queries, padded with -1 and -inf: `rows` int64, `scores` float32, (queries, count).

    `positive_scores` float32 (judgments,) are those of the relevant judgments, in their order. `filters` are the
    names of those at work, `counts` and `dropped` what their `Sieve` has of it, `shown` int64 the examples' queries.
    """

    rows: np.ndarray
    scores: np.ndarray
    positive_scores: np.ndarray
    filters: list[str]
    counts: np.ndarray
    dropped: np.ndarray
    shown: np.ndarray

    def check(self, topk: int) -> None:
        """`InputError` where no query has a single negative of the `topk` passages ranked: nothing to train on."""
        if self.counts[-2] and not (self.rows >= 0).any():
            flags = ", ".join(f"--{name}" for name in self.filters)
            raise InputError(
                f"{flags}: every one of the {self.counts[-2]:,} candidates of all queries was dropped, so there is "
                "no negative to train on; drop less, or rank more passages (--topk_training)"
            )
        check_candidates(self.rows, topk)

    def say_filtered(self, number: int) -> None:
        """Says of an episode what its filters took, if there are any, and warns where that is most of it."""
        if self.filters:
            *dropped, candidates, none_left = self.counts.tolist()
            took = (
                f"{name} dropped {count:,} ({count / max(candidates, 1):.1%})"
                for name, count in zip(self.filters, dropped, strict=True)
            )
            left = f"{none_left:,} queries have none left"
            say(f"episode {number}: of {candidates:,} candidates {', '.join(took)}; {left}")
            if sum(dropped) > candidates / 2:
                flags = ", ".join(f"--{name}" for name in self.filters)
                say(
                    f"warning: {flags}: more than half of the candidates were dropped, and queries with none left "
                    "are not trained on. Scores that lie close together, as some encoders' do, want a filter that "
                    "drops less: --max_relative_score nearer to 1, or --min_margin"
                )

    @property
    def filtered(self) -> dict[str, Any]:
        """What `ann_ndcg_N` says of the filters; nothing where there are none."""
        if not self.filters:
            return {}
        *dropped, candidates, none_left = self.counts.tolist()
        of_each = dict(zip(self.filters, dropped, strict=True))
        return {"filters": {"candidates": candidates, "dropped": of_each, "queries_with_none_left": none_left}}

    def examples(self, qrels: Qrels) -> list[MinedExample]:
        """Of each query shown the lowest positive, the hardest negatives, and the best of what was dropped."""
        relevant = qrels.only(qrels.relevance > 0)
        examples = []
        for query in self.shown.tolist():
            first, last = np.searchsorted(relevant.query_rows, [query, query + 1]).tolist()
            lowest = first + int(np.argmin(self.positive_scores[first:last]))
            hardest = np.argsort(-self.scores[query], kind="stable")[:SHOWN]
            kept = zip(self.rows[query, hardest].tolist(), self.scores[query, hardest], strict=True)
            dropped = self.dropped[self.dropped["query"] == query]
            examples.append(
                MinedExample(
                    query,
                    last - first,
                    _scored(int(relevant.passage_rows[lowest]), self.positive_scores[lowest]),
                    [_scored(*each) for each in kept if each[0] >= 0],
                    [_scored(int(row), score, self.filters[by]) for _, row, score, by in dropped[:SHOWN]],
                    len(dropped),
                )
            )
        return examples


def _scored(row: int, score: np.float32, name: str = "") -> Scored:
    return Scored(row, float(f"{score:.9g}"), name)  # the same number to float32, of as few digits as that takes


def choose_examples(queries: int, seed: int) -> np.ndarray:
    """The rows of the queries that are shown, int64, ascending: `EXAMPLES`, each as likely as any other."""
    keys = random_keys(seed, EXAMPLE, np.arange(queries))
    return np.sort(np.argsort(keys, kind="stable")[:EXAMPLES])


def draw_for_all(
    rankings: Iterable[tuple[int, np.ndarray, np.ndarray]],
    queries: TokenStore,
    passages: TokenStore,
    qrels: Qrels,
    score: Callable[[np.ndarray, np.ndarray], np.ndarray],
    count: int,
    *,
    given: bool,
    filters: Sequence[Filter] = (),
    seed: int,
    episode: int,
) -> Drawn:
    """Up to `count` negatives a query: of all queries on the main process, of its share elsewhere.

    `rankings` as `utils.mining.search.search_rows` gives them; `score` as `given_negatives` takes it. What is no
    negative whatever it scores, `KnownPassages` says. `given`: the passages that are judged not relevant take the
    place of the ranking. Of these `filters` drop none: whoever judged them knows better than a score.
    """
    known = KnownPassages(queries, passages, qrels)
    shown = choose_examples(len(queries), seed)
    sieve = Sieve(filters, shown)
    parts = []
    for first, scores, rows in rankings:
        query_rows = first + np.arange(len(rows))
        ranking = query_rows, rows, scores
        positives = relevant_pairs(qrels, first, first + len(rows))
        positive_scores = score(*positives)
        lowest = np.full(len(rows), np.nan, dtype=np.float32)
        np.fmin.at(lowest, positives[0] - first, positive_scores)
        if given:
            ranking = query_rows, *given_negatives(*ranking, qrels, score)
            lowest[np.isin(query_rows, qrels.query_rows[qrels.relevance <= 0])] = np.nan
        sifting = {"sieve": sieve, "lowest": lowest}
        negatives = draw_negatives(*ranking, known, count, seed=seed, episode=episode, **sifting)
        parts.append((*negatives, positive_scores))
    drawn = (distributed.gather_rows(np.concatenate(part)) for part in zip(*parts, strict=True))
    counts, dropped = distributed.gather_rows(sieve.counts[None]).sum(axis=0), distributed.gather_rows(sieve.dropped)
    return Drawn(*drawn, [str(each) for each in filters], counts, dropped, shown)
