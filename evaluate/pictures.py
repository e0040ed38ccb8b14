"""The pictures of a run's report, drawn from plain arrays.

Each function returns a matplotlib figure. Of fifty clusters nobody can tell fifty colours apart: lines are grey but
for the few that stand out, and those are labelled where they end. Colours are Okabe and Ito's, which colour-blind
people can tell apart. Text is drawn as it is, without matplotlib's mathematics: a collection's words stand in it.
"""

import io
import warnings
from collections.abc import Sequence
from contextlib import contextmanager

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from evaluate.finished_run import Curve, Gains, TrainedEpisode

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
GREY, INK = "#b8bfc6", "#1f2933"
STYLE = {
    "text.parse_math": False,
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#7b8794",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": "#e4e7eb",
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.facecolor": "white",
    "legend.frameon": False,
}
WIDTH = 8.5  # inches
DOTS_AN_INCH = 150
OUTSTANDING = 6  # lines that are labelled
PCA_DIMENSIONS = 50


LABEL = np.array([0.16, 0.028])  # width and height of a label on the map, as shares of it


@contextmanager
def drawing():
    """matplotlib's settings for these pictures; a letter that its font lacks is drawn as a box without a word."""
    with rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    with drawing():
        FigureCanvasAgg(figure).print_figure(buffer, format="png", dpi=DOTS_AN_INCH, bbox_inches="tight")
    return buffer.getvalue()


def in_two_dimensions(vectors: np.ndarray, seed: int = 0) -> np.ndarray:
    """Points that keep neighbours together, float32 (n, 2), of vectors (n, dimensions): t-SNE after PCA.

    t-SNE: van der Maaten and Hinton, JMLR 2008; PCA takes away noise and time first, as they advise. In one thread:
    scikit-learn's sums, and so the picture, depend on the number of threads, and where other programs are at work
    its threads wait for one another, for minutes instead of seconds.
    """
    if len(vectors) < 4:
        return np.pad(vectors[:, :2], ((0, 0), (0, max(0, 2 - vectors.shape[1])))).astype(np.float32)
    dimensions = min(PCA_DIMENSIONS, *vectors.shape)
    perplexity = min(30.0, (len(vectors) - 1) / 3)
    projection = TSNE(2, perplexity=perplexity, init="pca" if dimensions > 1 else "random", random_state=seed)
    with threadpool_limits(1):
        return projection.fit_transform(PCA(dimensions, random_state=seed).fit_transform(vectors))


def cluster_map(points: np.ndarray, clusters: np.ndarray, labels: Sequence[str]) -> Figure:
    """Queries as dots in two dimensions, `points` (n, 2), a label of each cluster in its middle.

    `clusters` int64 (n,). Neighbouring clusters may share a colour, of which there are six.
    """
    with drawing():
        figure = Figure(figsize=(WIDTH, 7), layout="constrained")
        axes = figure.subplots()
        axes.grid(False)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        colours = np.array(COLOURS)[clusters % len(COLOURS)]
        axes.scatter(*points.T, c=colours, s=9, alpha=0.55, linewidths=0)
        there = np.unique(clusters)
        middles = np.array([np.median(points[clusters == cluster], axis=0) for cluster in there])
        for cluster, place in zip(there, moved_apart(middles, np.ptp(points, axis=0) * LABEL), strict=True):
            axes.text(
                *place,
                labels[cluster],
                ha="center",
                va="center",
                fontsize=8.5,
                weight="bold",
                color=INK,
                bbox={"boxstyle": "round,pad=0.25", "facecolor": "white", "alpha": 0.75, "edgecolor": "none"},
            )
    return figure


def moved_apart(places: np.ndarray, size: np.ndarray) -> np.ndarray:
    """The middles of labels of one size (2,), (n, 2), moved up and down until few overlap."""
    places = places.astype(np.float64)
    for _ in range(100):
        away = places[:, None] - places[None]  # n, n, 2
        above = np.where(
            away[..., 1] == 0,
            np.sign(np.subtract.outer(np.arange(len(places)), np.arange(len(places)))),
            np.sign(away[..., 1]),
        )
        overlap = np.maximum(size[1] - np.abs(away[..., 1]), 0) * (np.abs(away[..., 0]) < size[0])
        moves = (above * overlap).sum(1) / 2
        if not moves.any():
            break
        places[:, 1] += moves
    return places


def metrics_over_training(curves: dict[str, Curve], baselines: dict[str, float]) -> Figure:
    """Metrics of the checkpoints by their steps; a baseline (BM25's) of the same name is a dashed line."""
    with drawing():
        figure = Figure(figsize=(WIDTH, 4), layout="constrained")
        axes = figure.subplots()
        ends = []
        for i, (name, curve) in enumerate(curves.items()):
            if len(curve.steps):
                axes.plot(curve.steps, curve.values, "o-", color=COLOURS[i], linewidth=2, markersize=5)
                ends.append((curve.values[-1], name, COLOURS[i]))
                if name in baselines:
                    axes.axhline(baselines[name], color=COLOURS[i], linestyle=(0, (4, 3)), linewidth=1)
        axes.set(xlabel="training step", title="dashed: BM25" if baselines else "", ylim=(0, None))
        _label_ends(axes, ends)
        axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


def cluster_curves(episode: TrainedEpisode, labels: Sequence[str]) -> Figure:
    """Weight and loss of each cluster over an episode's steps; those of the highest means are labelled."""
    with drawing():
        figure = Figure(figsize=(WIDTH, 7), layout="constrained")
        panels = figure.subplots(2, sharex=True)
        for axes, curves, title in zip(
            panels, (episode.weights, episode.losses), ("weight of a cluster", "loss of a cluster"), strict=True
        ):
            _outstanding_curves(axes, curves, labels)
            axes.set_title(title)
        panels[1].set_xlabel("training step")
        panels[1].xaxis.get_major_locator().set_params(integer=True)
    return figure


def gains_by_cluster(gains: Gains, labels: Sequence[str], measure: str) -> Figure:
    """The gain of each cluster's dev queries with two standard errors to both sides, the largest on top.

    A cluster of fewer than two judged queries has no standard error, and is left out.
    """
    known = np.flatnonzero(~np.isnan(gains.error))
    order = known[np.argsort(gains.gain[known], kind="stable")]
    with drawing():
        figure = Figure(figsize=(WIDTH, 1.2 + 0.26 * len(order)), layout="constrained")
        axes = figure.subplots()
        places = np.arange(len(order))
        axes.axvline(0, color=INK, linewidth=1)
        axes.errorbar(
            gains.gain[order],
            places,
            xerr=2 * gains.error[order],
            fmt="o",
            color=COLOURS[0],
            ecolor=GREY,
            elinewidth=2,
        )
        axes.set_yticks(places, [f"{labels[i]}  ({gains.queries[i]})" for i in order])
        axes.set(xlabel=f"gain in {measure} of the dev queries (their number)", ylim=(-0.7, len(order) - 0.3))
        axes.grid(False, axis="y")
    return figure


def _outstanding_curves(axes: Axes, curves: dict[int, Curve], labels: Sequence[str]) -> None:
    """All curves in grey, and in colour, with labels, the `OUTSTANDING` ones of the highest means."""
    there = {cluster: curve for cluster, curve in curves.items() if len(curve.steps)}
    chosen = sorted(there, key=lambda cluster: -there[cluster].values.mean())[:OUTSTANDING]
    ends = []
    for cluster in there.keys() - set(chosen):
        curve = there[cluster]
        axes.plot(curve.steps, curve.values, ".-", color=GREY, linewidth=0.9, markersize=3)
    for colour, cluster in zip(COLOURS, chosen, strict=False):
        curve = there[cluster]
        axes.plot(curve.steps, curve.values, ".-", color=colour, linewidth=2)
        ends.append((curve.values[-1], labels[cluster], colour))
    _label_ends(axes, ends)


def _label_ends(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Labels to the right of the axes, (height, text, colour) each, moved apart where they would overlap."""
    axes.margins(x=0.02)
    axes.autoscale_view()
    low, high = axes.get_ylim()
    least, place = 0.075, -np.inf
    heights = []
    for value, _, _ in sorted(ends):
        place = max((value - low) / (high - low), place + least)
        heights.append(place)
    over = max(0.0, heights[-1] - 1) if heights else 0.0
    for (_, text, colour), height in zip(sorted(ends), heights, strict=True):
        axes.text(1.01, height - over, text, color=colour, transform=axes.transAxes, va="center", fontsize=9)
