"""The pictures as figures: what stands in them."""

import io

import numpy as np
import pytest
from matplotlib.image import imread
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_info, threadpool_limits

from evaluate.reporting import pictures
from evaluate.reporting.finished_run import Curve, Gains, TrainedEpisode

HOSTILE = r"$\undefined{ <b> 中 \x00"


def curve(*values: float) -> Curve:
    return Curve(np.arange(len(values)) * 10, np.array(values))


def texts(figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in (*axes.texts, *axes.get_yticklabels())]


def test_every_picture_is_a_png_whatever_stands_in_it():
    episode = TrainedEpisode(0, -1, 10, {0: curve(0.1, 0.9)}, {})  # no batch that was logged held a cluster
    points = np.random.default_rng(0).random((9, 2))
    gains = Gains(np.array([2]), *(np.array([value]) for value in (0.1, 0.4, 0.3, 0.05)))
    for figure in (
        pictures.cluster_map(points, np.zeros(9, np.int64), [HOSTILE]),
        pictures.metrics_over_training({HOSTILE: curve(0.1, 0.2)}, {HOSTILE: 0.3}),
        pictures.weights_and_losses(episode, [HOSTILE]),
        pictures.gains_by_cluster(gains, [HOSTILE], "MRR@10"),
    ):
        assert any(HOSTILE in text for text in texts(figure))
        image = imread(io.BytesIO(pictures.png(figure)))
        assert min(image.shape[:2]) > 150
        assert image.std() > 0.01, "an empty picture"


def test_the_cluster_of_the_highest_mean_weight_is_on_top_and_what_is_unknown_is_left_open():
    weights = {cluster: curve(0.0, cluster % 7) for cluster in range(50)}
    figure = pictures.weights_and_losses(
        TrainedEpisode(0, -10, 10, weights, {6: curve(5.0)}), list(map(str, range(50)))
    )
    heights = [float(text.split()[0]) % 7 for text in texts(figure)]
    assert heights == sorted(heights)
    of_weights, of_losses = (axes.collections[0].get_array() for axes in figure.axes[:2])
    np.testing.assert_array_equal(of_weights[:, 1], heights)
    assert of_losses.count() == 1
    assert of_losses[texts(figure).index("6"), 0] == 5


def test_spans_of_steps_cover_an_episode_and_have_the_means_of_their_points():
    steps = np.arange(1, 1001) * 10
    many = Curve(steps, np.sin(steps))
    edges = pictures.step_edges([many, Curve(steps[:3], steps[:3])], 0)
    assert (len(edges), edges[0], edges[-1]) == (pictures.COLUMNS + 1, 0, 10_000)
    means = pictures.binned_means(many, edges)
    for first, last, mean in zip(edges, edges[1:], means, strict=False):
        assert mean == pytest.approx(np.mean([np.sin(step) for step in steps if first < step <= last]))
    few = Curve(np.array([10, 20, 45]), np.array([1.0, 2.0, 3.0]))
    assert pictures.step_edges([few], 5).tolist() == [5, 10, 20, 45]
    found = pictures.binned_means(Curve(np.array([10, 45]), np.array([1.0, 3.0])), np.array([5, 10, 20, 45]))
    np.testing.assert_array_equal(found, [1, np.nan, 3])


def test_gains_are_shown_in_their_order_with_two_standard_errors_and_without_unknown_ones():
    values = np.array([0.1, np.nan, 0.3])
    gains = Gains(np.array([5, 0, 7]), values, values, values, np.array([0.01, np.nan, 0.02]))
    figure = pictures.gains_by_cluster(gains, ["a", "b", "c"], "MRR@10")
    assert texts(figure) == ["a  (5)", "c  (7)"]
    (container,) = figure.axes[0].containers
    ends = [segment[:, 0].tolist() for segment in container[2][0].get_segments()]
    assert ends == [pytest.approx([0.08, 0.12]), pytest.approx([0.26, 0.34])]


def test_labels_that_overlap_are_moved_apart_and_others_stay():
    sizes = np.array([[0.2, 0.1]] * 3 + [[0.8, 0.1], [0.6, 0.1]])
    places = np.array([[0.0, 0.0], [0.1, 0.02], [0.05, 0.02], [0.9, 0.0], [1.55, 0.01]])
    moved = pictures.moved_apart(places, sizes)
    heights = np.sort(moved[:3, 1])
    assert (np.diff(heights) > 0.09).all()
    assert moved[4, 1] - moved[3, 1] > 0.09, "wide labels"
    sizes[3:, 0] = 0.2
    np.testing.assert_array_equal(pictures.moved_apart(places, sizes)[3:], places[3:])
    np.testing.assert_array_equal(moved[:, 0], places[:, 0])


def test_neighbours_stay_neighbours_in_two_dimensions():
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(3, 20)) * 10
    clusters = np.arange(90) % 3
    points = pictures.in_two_dimensions((centres[clusters] + generator.normal(size=(90, 20))).astype(np.float32))
    distances = np.linalg.norm(points[:, None] - points[None], axis=2) + np.eye(90) * 1e9
    assert (clusters[distances.argmin(1)] == clusters).mean() == 1


def test_the_map_is_found_in_one_thread(monkeypatch):
    threads = []

    class Watched(TSNE):
        def fit_transform(self, *vectors):
            threads.extend(pool["num_threads"] for pool in threadpool_info())
            return super().fit_transform(*vectors)

    monkeypatch.setattr(pictures, "TSNE", Watched)
    with threadpool_limits(2):
        pictures.in_two_dimensions(np.random.default_rng(0).random((9, 4), dtype=np.float32))
        assert set(threads) == {1}
        assert {pool["num_threads"] for pool in threadpool_info()} == {2}, "others have theirs again"


@pytest.mark.parametrize("shape", [(1, 8), (3, 1), (4, 1), (5, 2), (6, 8)])
def test_few_queries_have_a_place_too(shape):
    points = pictures.in_two_dimensions(np.random.default_rng(0).random(shape, dtype=np.float32))
    assert points.shape == (shape[0], 2)
    assert np.isfinite(points).all()


@pytest.mark.parametrize("value", [0, 0.1, 1])
def test_queries_that_are_all_alike_are_in_one_place(value):
    points = pictures.in_two_dimensions(np.full((50, 6), value, np.float32))
    assert points.shape == (50, 2)
    assert np.isfinite(points).all()
    assert pictures.png(pictures.cluster_map(points, np.arange(50) % 3, ["a", "b", "c"]))
