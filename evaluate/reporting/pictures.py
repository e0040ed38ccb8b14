"""The pictures of a run's report, drawn from plain arrays.

Each function returns a matplotlib figure. Of fifty clusters nobody can tell fifty lines apart: their weights and
losses are a row each of a heat map, darker for more. Colours are Okabe and Ito's, which colour-blind people can tell
apart. Text is drawn as it is, without matplotlib's mathematics: a collection's words stand in it.
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
from matplotlib.patheffects import withStroke
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from evaluate.reporting.finished_run import Curve, Gains, TrainedEpisode

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
GREY, INK, MISSING = "#b8bfc6", "#1f2933", "#e9edf1"
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
PCA_DIMENSIONS = 50
COLUMNS = 60  # of a heat map

LETTER = np.array([0.0102, 0.03])  # width and height of a letter of a label on the map, as shares of it


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
    if np.allclose(vectors, vectors[0]):  # t-SNE would end the process
        return np.zeros((len(vectors), 2), np.float32)
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
        sizes = np.array([[len(labels[cluster]), 1] for cluster in there]) * LETTER * np.ptp(points, axis=0)
        halo = [withStroke(linewidth=3, foreground="white", alpha=0.85)]
        for cluster, place in zip(there, moved_apart(middles, sizes), strict=True):
            centred = {"ha": "center", "va": "center"}
            axes.text(*place, labels[cluster], fontsize=8.5, weight="bold", path_effects=halo, **centred)
    return figure


def moved_apart(places: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The middles (n, 2) of labels, of these widths and heights (n, 2), moved up and down until few overlap."""
    places = places.astype(np.float64)
    least = (sizes[:, None] + sizes[None]) / 2  # n, n, 2
    for _ in range(100):
        away = places[:, None] - places[None]  # n, n, 2
        above = np.where(
            away[..., 1] == 0,
            np.sign(np.subtract.outer(np.arange(len(places)), np.arange(len(places)))),
            np.sign(away[..., 1]),
        )
        overlap = np.maximum(least[..., 1] - np.abs(away[..., 1]), 0) * (np.abs(away[..., 0]) < least[..., 0])
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


def weights_and_losses(episode: TrainedEpisode, labels: Sequence[str]) -> Figure:
    """Weight and loss of each cluster, a row each, over an episode's steps; the highest mean weight on top."""
    edges = step_edges([*episode.weights.values(), *episode.losses.values()], episode.first)
    order = sorted(episode.weights, key=lambda cluster: _mean(episode.weights[cluster]))
    with drawing():
        figure = Figure(figsize=(WIDTH, 1.6 + 0.2 * len(order)), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, curves, title in zip(panels, (episode.weights, episode.losses), ("weight", "loss"), strict=True):
            table = np.array([binned_means(curves[i], edges) if i in curves else edges[1:] * np.nan for i in order])
            axes.set_facecolor(MISSING)
            axes.grid(False)
            mesh = axes.pcolormesh(edges, np.arange(len(order) + 1) - 0.5, table, cmap="YlGnBu", vmin=0)
            axes.set(title=title, xlabel="training step")
            axes.xaxis.get_major_locator().set_params(integer=True, nbins=5)
            figure.colorbar(mesh, ax=axes, location="bottom", fraction=0.35 / figure.get_figheight(), aspect=40)
        panels[0].set_yticks(np.arange(len(order)), [labels[i] for i in order])
    return figure


def step_edges(curves: Sequence[Curve], first: int) -> np.ndarray:
    """Ends of at most `COLUMNS` spans of the steps after `first`, int64 (spans + 1,); a point lies in each."""
    steps = np.unique(np.concatenate([curve.steps for curve in curves]))
    spans = min(COLUMNS, len(steps))
    return np.concatenate([[first], steps[np.linspace(-1, len(steps) - 1, spans + 1).round().astype(np.int64)[1:]]])


def binned_means(curve: Curve, edges: np.ndarray) -> np.ndarray:
    """The mean of the points after one edge up to the next, float64 (edges - 1,); nan where there is none."""
    spans = np.searchsorted(edges, curve.steps) - 1
    counts = np.bincount(spans, minlength=len(edges) - 1)
    sums = np.bincount(spans, curve.values, minlength=len(edges) - 1)
    return np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)


def _mean(curve: Curve) -> float:
    return float(curve.values.mean()) if len(curve.values) else 0.0


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
