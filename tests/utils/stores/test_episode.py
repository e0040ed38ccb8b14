"""Mined files: what is written is read, and what is wrong is named by its line."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.runtime.errors import InputError
from utils.stores import episode as episode_module
from utils.stores.episode import (
    MinedLines,
    mined_file,
    newest_episode,
    open_episode,
    open_scores,
    read_episode,
    read_result,
    scores_file,
    write_mined_file,
    write_result,
)
from utils.stores.files import sha256_of_file

GOOD = "3\t4\t5,6,7\t1\t2\n1\t0\t9\t0.5\t0\n"


def read(folder, content, queries=10, passages=10, n_groups=3):
    path = folder / "ann_training_data_0"
    path.write_text(content)
    return read_episode(path, queries, passages, n_groups)


def random_lines(data, lines: int, most: int = 2**40) -> MinedLines:
    """Lines of up to 5 negatives, with clusters or without; numbers of any length, 0 among them."""
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))

    def rows(*shape: int) -> np.ndarray:
        return generator.integers(0, most, size=shape) >> generator.integers(0, most.bit_length(), size=shape)

    negatives = rows(lines, 5)
    for row in negatives:
        row[generator.integers(0, 6) :] = -1
    clusters = generator.integers(0, 4, size=lines) if data.draw(st.booleans()) else None
    scores = generator.normal(size=(lines, 6)).astype(np.float32)
    blocks = rows(lines) if data.draw(st.booleans()) else None
    return MinedLines(rows(lines), rows(lines), negatives, clusters, scores, blocks)


@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_a_mined_file_gives_back_what_was_written(tmp_path_factory, data):
    written = replace(random_lines(data, data.draw(st.integers(1, 30))), blocks=None)
    negatives, clusters = written.negatives, written.clusters
    path = tmp_path_factory.mktemp("mined") / "ann_training_data_0"
    triplets = write_mined_file(path, iter([written]))
    kept = (negatives >= 0).any(axis=1)
    assert triplets == (negatives >= 0).sum()
    if not triplets:
        with pytest.raises(InputError, match="empty"):
            read_episode(path, 2**40, 2**40, None)
        return
    got = read_episode(path, 2**40, 2**40, None if clusters is None else 4)
    assert np.array_equal(got.query_rows, written.query_rows[kept])
    assert np.array_equal(got.positive_rows, written.positive_rows[kept])
    assert np.array_equal(got.negative_rows, negatives[negatives >= 0])
    assert np.array_equal(np.diff(got.starts), (negatives[kept] >= 0).sum(1))
    assert np.array_equal(got.clusters, np.zeros(kept.sum()) if clusters is None else clusters[kept])
    assert got.line_of(np.arange(triplets)).tolist() == np.repeat(np.arange(kept.sum()), np.diff(got.starts)).tolist()


def text_of(lines: MinedLines) -> str:
    """What a mined file holds, line by line, in Python's own words."""
    nothing = [""] * len(lines.query_rows)
    clusters, blocks = nothing, nothing
    if lines.clusters is not None:
        clusters = [f"\t1\t{cluster}" for cluster in lines.clusters]
    elif lines.blocks is not None:
        clusters = ["\t1\t0" for _ in lines.blocks]
    if lines.blocks is not None:
        blocks = [f"\t{block}" for block in lines.blocks]
    ends = map(str.__add__, clusters, blocks)
    columns = zip(lines.query_rows, lines.positive_rows, lines.negatives.tolist(), ends, strict=True)
    return "".join(
        f"{query}\t{positive}\t{','.join(str(row) for row in negatives if row >= 0)}{end}\n"
        for query, positive, negatives, end in columns
        if max(negatives, default=-1) >= 0
    )


def scores_of(lines: MinedLines) -> list[float]:
    """What the file of scores holds of these lines, line by line."""
    return [
        score
        for negatives, scores in zip(lines.negatives.tolist(), lines.scores.tolist(), strict=True)
        if max(negatives, default=-1) >= 0
        for row, score in zip([0, *negatives], scores, strict=True)
        if row >= 0
    ]


@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_every_byte_of_a_mined_file_is_as_python_writes_it(tmp_path_factory, data):
    passes = [random_lines(data, data.draw(st.integers(0, 9)), 2**62) for _ in range(3)]
    nothing = MinedLines(np.arange(3), np.arange(3), np.empty((3, 0), np.int64), scores=np.ones((3, 1), np.float32))
    passes.append(nothing)  # a pass without any negative
    path = tmp_path_factory.mktemp("mined") / "ann_training_data_0"
    scores_path = path.with_name("scores.npy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(episode_module, "BLOCK_LINES", 4)
        write_mined_file(path, iter(passes), scores_path)
    assert path.read_bytes().decode() == "".join(map(text_of, passes))
    scores = np.load(scores_path)
    assert (scores.dtype, scores.tolist()) == (np.float32, [score for lines in passes for score in scores_of(lines)])


def test_blocks_of_a_large_file_join_without_a_seam(tmp_path, monkeypatch):
    content = "".join(f"{i}\t{i + 1}\t{','.join(str(j) for j in range(i % 7 + 1))}\t1\t{i % 3}\n" for i in range(500))
    whole = read(tmp_path, content, 1000, 1000)
    monkeypatch.setattr(episode_module, "BLOCK_BYTES", 100)
    parts = read(tmp_path, content, 1000, 1000)
    for name, value in vars(whole).items():
        assert np.array_equal(getattr(parts, name), value), name


@pytest.mark.parametrize("clusters", [None, np.array([2, 2, 0, 2, 1])])
@pytest.mark.parametrize("part_bytes", [7, 10**6])
def test_blocks_are_read_as_they_were_written(tmp_path, monkeypatch, clusters, part_bytes):
    monkeypatch.setattr(episode_module, "BLOCK_BYTES", part_bytes)
    rows, blocks = np.array([0, 1, 1, 0, 2]), np.array([0, 0, 1, 2, 3])
    lines = MinedLines(rows, rows + 3, rows[:, None], clusters, None, blocks)
    write_mined_file(mined_file(tmp_path, 0), iter([lines]))
    for n_groups in (None, 3):
        episode = read_episode(mined_file(tmp_path, 0), 3, 6, n_groups)
        assert episode.block_starts.tolist() == [0, 2, 3, 4, 5]
        assert episode.clusters.tolist() == ([0] * 5 if clusters is None or not n_groups else clusters.tolist())
    assert read(tmp_path, GOOD).block_starts is None


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("3\t4\t5\t1\t2\t1", "block 1 has query 3 again"),
        ("4\t4\t5\t1\t0\t1", "block 1 has a line of cluster 0"),
        ("4\t4\t5\t1\t2\t3", "block 3 does not follow block 1"),
        ("4\t4\t5\t1\t2\t0", "block 0 does not follow block 1"),
        (f"4\t4\t5\t1\t2\t{2**60}", "block .* is no number of a block"),
        ("4\t4\t5\t1\t2\t1.5", "block 1.5 is no number of a block"),
        ("4\t4\t5\t1\t2", "expected query.*weight, cluster, block between tabs"),
    ],
)
def test_a_line_that_is_not_of_its_block_is_named(tmp_path, line, complaint):
    good = "0\t4\t5\t1\t2\t0\n3\t4\t5,6\t1\t2\t1\n"
    assert read(tmp_path, good + "4\t4\t5\t1\t2\t1\n").block_starts.tolist() == [0, 1, 3]
    with pytest.raises(InputError, match=rf"ann_training_data_0:3: ({complaint})"):
        read(tmp_path, good + line + "\n")
    with pytest.raises(InputError, match=r"ann_training_data_0:1: block 1 does not follow block -1"):
        read(tmp_path, good.replace("\t0\n", "\t1\n"))


def test_a_file_whose_blocks_begin_late_has_none_before(tmp_path, monkeypatch):
    monkeypatch.setattr(episode_module, "BLOCK_BYTES", 1)  # a line a part
    with pytest.raises(InputError, match=r"ann_training_data_0:1: block -1 does not follow block -1"):
        read(tmp_path, "3\t4\t5\t1\t2\n1\t4\t5\t1\t2\t0\n")


def test_blocks_without_clusters_are_no_clusters(tmp_path):
    lines = MinedLines(np.arange(2), np.arange(2), np.arange(2)[:, None] + 3, blocks=np.zeros(2, int))
    path = mined_file(tmp_path, 0)
    write_mined_file(path, iter([lines]))
    write_result(tmp_path, 0, {"ndcg": 0.5, "mrr": 0.5, "mined_sha256": sha256_of_file(path)})
    assert open_episode(tmp_path, tmp_path, 0, 10, 10, None).block_starts.tolist() == [0, 2]
    with pytest.raises(InputError, match=r"ann_ndcg_0: episode 0 was mined without clusters.*--cluster_query"):
        open_episode(tmp_path, tmp_path, 0, 10, 10, 3)


def test_weights_are_read(tmp_path):
    assert read(tmp_path, GOOD).weights.tolist() == [1, 0.5]


def test_clusters_are_left_aside_without_groups(tmp_path):
    assert read(tmp_path, GOOD, n_groups=None).clusters.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("3\t4", "expected query"),
        ("3\t4\t5\t1", "expected query"),
        ("3\t4\t\t1\t2", "expected query"),
        ("3\t4\t5,,6\t1\t2", "expected query"),
        ("3\tx\t5\t1\t2", "expected query"),
        ("3\t4\t5 6\t1\t2", "expected query"),
        ("-3\t4\t5\t1\t2", "expected query|query -3"),
        ("10\t4\t5\t1\t2", "query 10 is no row"),
        ("3\t10\t5\t1\t2", "positive 10 is no row"),
        ("3\t4\t5,10\t1\t2", "negative 10 is no row"),
        ("3\t4\t5\t1\t3", "cluster 3 is not among the 3 of --n_groups"),
        ("3\t4\t5\t0\t2", "weight 0 is not above 0"),
        ("3\t4\t5\tnan\t2", "expected query"),
        ("3\t4\t5", "expected query"),
        ("", "expected query"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, complaint):
    with pytest.raises(InputError, match=rf"ann_training_data_0:3: ({complaint})"):
        read(tmp_path, GOOD + line + "\n" + GOOD)


def test_a_file_without_clusters_is_refused_where_groups_are_asked_for(tmp_path):
    with pytest.raises(InputError, match="--cluster_query"):
        read(tmp_path, "3\t4\t5,6\n")
    assert read(tmp_path, "3\t4\t5,6\n", n_groups=None).triplets == 2


def test_a_file_that_was_cut_off_is_recognised(tmp_path):
    with pytest.raises(InputError, match="cut off"):
        read(tmp_path, GOOD[:-3])


def test_an_empty_or_missing_file_is_an_error(tmp_path):
    with pytest.raises(InputError, match="empty"):
        read(tmp_path, "")
    with pytest.raises(InputError, match="no such file"):
        read_episode(tmp_path / "absent", 1, 1, None)


def test_the_scores_of_an_episode_are_read_as_they_were_written_or_refused(tmp_path):
    lines = MinedLines(np.arange(2), np.arange(2), np.array([[3, 4], [5, -1]]), scores=np.arange(6.0).reshape(2, 3))
    path = scores_file(tmp_path, 0)
    write_mined_file(mined_file(tmp_path, 0), iter([lines]), path)
    episode, result = read_episode(mined_file(tmp_path, 0), 2, 6, None), {"ndcg": 0.5, "mrr": 0.25}
    write_result(tmp_path, 0, result)  # of a version without scores
    assert open_scores(tmp_path, tmp_path, 0, episode) is None
    write_result(tmp_path, 0, result | {"scores_sha256": sha256_of_file(path)})
    assert open_scores(tmp_path, tmp_path, 0, episode).tolist() == [0, 1, 2, 3, 4]
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(InputError, match=r"scores_0\.npy: is damaged.*remove .*ann_ndcg_0 and mine"):
        open_scores(tmp_path, tmp_path, 0, episode)
    np.save(path, np.zeros(4, np.float32))
    write_result(tmp_path, 0, result | {"scores_sha256": sha256_of_file(path)})
    with pytest.raises(InputError, match=r"holds float32 \(4,\), not 5 float32"):
        open_scores(tmp_path, tmp_path, 0, episode)
    path.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        open_scores(tmp_path, tmp_path, 0, episode)


def test_an_episode_is_ready_when_its_result_is_there(tmp_path):
    assert newest_episode(tmp_path) == -1
    with pytest.raises(InputError, match="not ready"):
        read_result(tmp_path, 0)
    for number in (0, 9, 10):
        write_result(tmp_path, number, {"ndcg": 0.5, "mrr": 0.25, "checkpoint": "x"})
    (tmp_path / "ann_ndcg_11.tmp").write_text("")
    assert newest_episode(tmp_path) == 10
    assert read_result(tmp_path, 9)["ndcg"] == 0.5


GOOD_RESULT = {
    "ndcg": 0.5,
    "mrr": 1,
    "checkpoint": "x",
    "step": 3,
    "cluster_mrr": [None, 0.5],
    "zero_shot": {"a": {}},
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("ndcg", "high"), ("mrr", None), ("mrr@10", []), ("step", 10**30), ("step", True), ("checkpoint", 7)),
        *(("mined_sha256", ["x"]), ("cluster_mrr", 0.5), ("cluster_mrr", ["x"]), ("zero_shot", [])),
        *(("zero_shot", {"a": 1}), ("zero_shot", {"a": {"ndcg": "x"}})),
    ],
)
def test_a_result_with_another_kind_of_value_is_told(tmp_path, name, value):
    write_result(tmp_path, 0, GOOD_RESULT)
    assert read_result(tmp_path, 0) == GOOD_RESULT
    write_result(tmp_path, 0, GOOD_RESULT | {name: value})
    with pytest.raises(InputError, match=rf"ann_ndcg_0: {name} is .*mine the episode again"):
        read_result(tmp_path, 0)


def test_a_mined_file_with_one_digit_changed_is_refused(tmp_path):
    path = tmp_path / "ann_training_data_0"
    path.write_text(GOOD)
    write_result(tmp_path, 0, {"ndcg": 0.5, "mrr": 0.25, "clusters": 3, "mined_sha256": sha256_of_file(path)})
    expected = open_episode(tmp_path, tmp_path, 0, 10, 10, 3)
    altered = GOOD.replace("5", "7", 1)
    path.write_text(altered)
    assert read_episode(path, 10, 10, 3).triplets == expected.triplets, "it can be read, and is not what was mined"
    with pytest.raises(InputError, match=r"data_0: is damaged.*ann_ndcg_0 and, .* beyond step 0; then mine it"):
        open_episode(tmp_path, tmp_path, 0, 10, 10, 3)
