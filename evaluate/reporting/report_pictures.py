"""The pictures of a run's report with what is said about them, from what the run left on the disk."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from textwrap import shorten

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from evaluate.metrics_file import measure, read_metrics
from evaluate.reporting import pictures
from evaluate.reporting.finished_run import (
    CLUSTER_MEASURE,
    Gains,
    QuerySample,
    Results,
    TrainedEpisode,
    metric_curves,
    sample_queries,
)
from evaluate.reporting.typical_words import typical_words
from utils.runtime.plain_text import printable
from utils.stores.embedding_store import open_embeddings
from utils.stores.run_folder import RunFolder

READ_QUERIES = 20_000  # that typical words are found in
DRAWN_QUERIES = 2_000  # dots of the map
WORDS, WORDS_IN_A_LABEL, EXAMPLES, EXAMPLE_CHARACTERS = 6, 2, 2, 160
LABEL = 40  # characters of a group's name in a picture
SHOWN_EPISODES = 3  # of more, the first one and the last ones


@dataclass(frozen=True)
class Picture:
    """A picture of the report: its file's name, what it shows, and what it says to who cannot see it."""

    name: str
    caption: str
    alt: str
    content: bytes = field(repr=False)

    @property
    def source(self) -> Markup:
        return Markup(f"data:image/png;base64,{base64.b64encode(self.content).decode('ascii')}")


@dataclass(frozen=True)
class Clusters:
    """The clusters of an episode, or its groups by name: their sizes, a sample of their queries, typical words."""

    number: int
    sample: QuerySample
    sizes: np.ndarray
    words: list[list[str]]

    @classmethod
    def read(cls, run: RunFolder, number: int) -> "Clusters":
        sample, sizes = sample_queries(run, number, READ_QUERIES)
        return cls(number, sample, sizes, typical_words(sample.texts, sample.clusters, len(sizes), WORDS))

    @property
    def kind(self) -> str:
        """What they are called."""
        return "group" if self.sample.names else "cluster"

    @cached_property
    def labels(self) -> list[str]:
        """A short name of each: that of a group by name; a cluster's number and what is most typical of it."""
        if self.sample.names:
            return [name if len(name) <= LABEL else f"{name[: LABEL - 1]}…" for name in self.sample.names]
        return [f"{i} {', '.join(words[:WORDS_IN_A_LABEL])}".strip() for i, words in enumerate(self.words)]

    def examples(self, cluster: int) -> list[str]:
        """Queries of a cluster, the shortest of those with several of its typical words."""
        words = set(self.words[cluster])
        own = [text for text, of in zip(self.sample.texts, self.sample.clusters, strict=True) if of == cluster]
        own.sort(key=lambda text: (-min(2, len(words & set(text.lower().split()))), len(text)))
        return [shorten(printable(text), EXAMPLE_CHARACTERS, placeholder=" …") for text in own[:EXAMPLES]]


def shown_episodes(episodes: Sequence[TrainedEpisode]) -> list[TrainedEpisode]:
    """Those with weights and losses of clusters, of many the first one and the last ones."""
    logged = [episode for episode in episodes if any(len(curve.steps) for curve in episode.weights.values())]
    return logged if len(logged) <= SHOWN_EPISODES else [logged[0], *logged[1 - SHOWN_EPISODES :]]


def draw(name: str, figure: Figure, caption: str, alt: str) -> Picture:
    return Picture(name, caption, alt, pictures.png(figure))


def picture_of_metrics(run: RunFolder, table: Results) -> Picture:
    curves, baselines = metric_curves(run, table), {}
    results = run.path / "results"
    zero_shot = [results / "zero_shot" / name / "bm25" / "metrics.json" for name in table.zero_shot]
    for label, name, files in (
        ("dev MRR@10", "mrr@10", [results / "dev" / "bm25" / "metrics.json"]),
        ("dev nDCG@10", "ndcg@10", [results / "dev" / "bm25" / "metrics.json"]),
        ("zero-shot nDCG@10", "ndcg@10", zero_shot),
    ):
        if files and all(path.is_file() for path in files):
            baselines[label] = float(np.mean([measure(read_metrics(path), name, path) for path in files]))
    ends = "; ".join(
        f"{name} from {curve.values[0]:.3f} to {curve.values[-1]:.3f}"
        for name, curve in curves.items()
        if len(curve.steps)
    )
    figure = pictures.metrics_over_training(curves, baselines)
    return draw("metrics", figure, "Metrics of the checkpoints over training.", f"Line chart: {ends}.")


def picture_of_clusters(clusters: Clusters, embedding_dir: Path) -> Picture:
    vectors, rows = open_embeddings(embedding_dir, "train-query", clusters.sample.tokens), clusters.sample.rows
    chosen = np.linspace(0, len(rows) - 1, min(DRAWN_QUERIES, len(rows))).round().astype(np.int64)
    points = pictures.in_two_dimensions(vectors.take(rows[chosen]))
    figure = pictures.cluster_map(points, clusters.sample.clusters[chosen], clusters.labels)
    caption = (
        f"{len(chosen):,} training queries by the initial checkpoint's vectors, in two dimensions (t-SNE). Near "
        "neighbours are near; distances between groups mean little."
    )
    if not clusters.sample.names:
        caption += " Labels: a cluster's number and typical words."
    return draw("clusters", figure, caption, f"Map of {len(clusters.sizes)} {clusters.kind}s of training queries.")


def picture_of_gains(gains: Gains, clusters: Clusters) -> Picture:
    figure = pictures.gains_by_cluster(gains, clusters.labels, CLUSTER_MEASURE.upper())
    caption = (
        f"What each {clusters.kind}'s dev queries gained in {CLUSTER_MEASURE.upper()} from the initial checkpoint to "
        "the last, with two standard errors to both sides."
    )
    known = ~np.isnan(gains.error)
    lost, of = int((gains.gain[known] < 0).sum()), int(known.sum())
    if not known.all():
        caption += f" {int((~known).sum())} {clusters.kind}s with fewer than two judged dev queries are left out."
    return draw(
        "gains", figure, caption, f"Dot chart: {of - lost} of {of} {clusters.kind}s gained or kept, {lost} lost."
    )


def picture_of_episode(run: RunFolder, episode: TrainedEpisode, first: Clusters) -> Picture:
    clusters = first if episode.number == first.number else Clusters.read(run, episode.number)
    figure = pictures.weights_and_losses(episode, clusters.labels)
    caption = (
        f"Episode {episode.number + 1}: weight and loss of each {clusters.kind} in its steps {episode.first + 1:,} "
        f"to {episode.last:,}, the highest mean weight on top. Grey: no logged batch held the {clusters.kind}."
    )
    return draw(
        f"episode-{episode.number}",
        figure,
        caption,
        f"Two heat maps of {len(episode.weights)} {clusters.kind}s by training step.",
    )
