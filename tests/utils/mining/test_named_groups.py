"""Groups of queries by name, as they are read from a file and kept on the disk."""

import gzip
import random
from pathlib import Path

import numpy as np
import pytest

from evaluate.dev_clusters import DevClusters
from tests.tiny_models import random_store
from utils.mining.clustering import evaluate_clusters, read_assignment
from utils.mining.named_groups import HEADINGS, read_named_groups, read_names
from utils.runtime.errors import InputError
from utils.stores.token_store import TokenizerInfo, TokenStore, create_token_store

TRAIN = {"t1": "law", "t 2": "code", "é": "law", "4": "a/b", "5": "code"}
DEV = {"d1": "code", "d2": "", "d3": "seen by nobody", "d4": "law"}


def store(folder: Path, ids: list[str]) -> TokenStore:
    (folder.parent / "raw.tsv").write_text("raw")
    with create_token_store(folder, TokenizerInfo("t", "f", 9, 0), 4, folder.parent / "raw.tsv") as writer:
        writer.append(ids, [[1, 2]] * len(ids))
    return TokenStore(folder)


@pytest.fixture
def stores(tmp_path) -> tuple[TokenStore, TokenStore]:
    return store(tmp_path / "train-query", [*TRAIN]), store(tmp_path / "dev-query", [*DEV])


def lines() -> list[str]:
    return [f"{query}\t{name}" for query, name in (TRAIN | DEV | {"stranger": "law", "other": "x"}).items() if name]


def write(path: Path, content: list[str], zipped: bool = False) -> Path:
    data = "".join(f"{line}\n" for line in content).encode()
    path.write_bytes(gzip.compress(data) if zipped else data)
    return path


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("heading", [None, *HEADINGS, "Query-ID"])
def test_groups_are_numbered_by_name_whatever_the_files_order(stores, tmp_path, zipped, heading, capsys):
    content = lines() + lines()[:2]  # a line may be there twice
    random.Random(f"{heading}").shuffle(content)
    path = write(tmp_path / "groups.tsv", [f"{heading}\tgroup"] * (heading is not None) + content, zipped)
    groups, dev = read_named_groups(path, *stores)
    assert groups.names == ["a/b", "code", "law"]
    assert [groups.names[g] for g in groups.assignment] == [*TRAIN.values()]
    assert groups.sizes.tolist() == [1, 2, 2]
    assert dev.tolist() == [1, -1, -1, 2]
    said = capsys.readouterr().out
    assert "groups of the training queries (3): a/b, code, law" in said
    assert "2 of 4 dev queries are in none of these groups" in said
    assert "2 ids there are of no training or dev query" in said


def test_they_are_kept_on_disk_with_their_names_and_without_centroids(stores, tmp_path):
    groups, dev = read_named_groups(write(tmp_path / "groups.tsv", lines()), *stores)
    folder = tmp_path / "clusters_0"
    groups.save(folder, dev)
    names = {"assignment.npy", "dev_assignment.npy", "sizes.npy", "names.json"}
    assert {path.name for path in folder.iterdir()} == names
    assert read_names(folder, 3) == groups.names
    assert read_assignment(folder, "assignment", 5)[0].tolist() == groups.assignment.tolist()
    found = DevClusters.read(folder, stores[1].folder)
    assert (found.assignment.tolist(), found.count, found.names, found.kind) == (
        [1, -1, -1, 2],
        3,
        groups.names,
        "group",
    )


def test_a_dev_query_without_a_group_counts_in_none(stores, tmp_path):
    groups, dev = read_named_groups(write(tmp_path / "groups.tsv", lines()), *stores)
    found = evaluate_clusters(groups, dev, np.array([0.5, 1.0, 1.0, 0.25]))
    assert found == {
        "cluster_names": ["a/b", "code", "law"],
        "clusters": 3,
        "cluster_sizes": [1, 2, 2],
        "cluster_dev_queries": [0, 1, 1],
        "cluster_mrr": [None, 0.5, 0.25],
    }


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lines()[1:], r"groups\.tsv: 1 of 5 training queries have no group there, 't1' the first; add a line"),
        (lines()[2:4], r"groups\.tsv: 3 of 5 training queries have no group there, 't1' the first"),
        ([*lines(), "t1\tcode"], r"groups\.tsv:11: query 't1' is in group 'code', and on line 1 in 'law'"),
        (["qid\tgroup", *lines(), "t1\tcode"], r"groups\.tsv:12: query 't1' is in group 'code', and on line 2 in"),
        (["t1", *lines()], r"groups\.tsv:1: expected a query's id, a tab and its group's name, found 't1'"),
        ([*lines()[:2], "t9\t"], r"groups\.tsv:3: expected a query's id, a tab"),
        ([*lines()[:2], "\tlaw"], r"groups\.tsv:3: expected a query's id, a tab"),
        ([*lines()[:2], "t9\tlaw\t1"], r"groups\.tsv:3: expected a query's id, a tab"),
        ([*lines()[:2], "t9\tlaw "], r"groups\.tsv:3: the group's name is 'law '; .*write it without"),
        ([*lines()[:2], "t9\tla\u202ew"], r"groups\.tsv:3: the group's name is 'la\\u202ew'"),
        (["qid\tgroup"], r"groups\.tsv: holds a heading only"),
        ([], r"groups\.tsv: the file is empty"),
        ([*lines()[:2], "", *lines()[2:]], r"groups\.tsv:3: the line is blank"),
    ],
)
def test_what_is_wrong_with_the_file_is_said_with_its_line_and_the_cure(stores, tmp_path, content, reason):
    with pytest.raises(InputError, match=reason):
        read_named_groups(write(tmp_path / "groups.tsv", content), *stores)
    with pytest.raises(InputError, match="none: no such file"):
        read_named_groups(tmp_path / "none", *stores)


def test_a_first_line_that_may_be_a_heading_or_a_query_is_refused(tmp_path):
    stores = store(tmp_path / "train-query", ["a", "id"]), store(tmp_path / "dev-query", ["b"])
    content = ["id\tlaw", "a\tlaw"]
    with pytest.raises(InputError, match=r"groups\.tsv:1: 'id' may be a heading or the query of that id; remove"):
        read_named_groups(write(tmp_path / "groups.tsv", content), *stores)
    assert read_named_groups(write(tmp_path / "groups.tsv", content[::-1]), *stores)[0].names == ["law"]


def test_of_many_queries_every_one_gets_its_own_group(tmp_path):
    train, dev = (random_store(tmp_path / name, 3_000, seed=i) for i, name in enumerate(("train-query", "dev-query")))
    names = {query: f"of {hash(query) % 7}" for query in {*train.ids, *dev.ids}}
    content = [f"{query}\t{name}" for query, name in names.items()]
    random.Random(0).shuffle(content)
    groups, of_dev = read_named_groups(write(tmp_path / "groups.tsv", content), train, dev)
    for assignment, of in ((groups.assignment, train), (of_dev, dev)):
        assert [groups.names[group] for group in assignment] == [names[query] for query in of.ids]


@pytest.mark.parametrize("content", [b"x", b"[]", b"{}", b'{"names": ["a"]}', b'{"names": ["a", "a", "b"]}'])
def test_damaged_names_are_refused(stores, tmp_path, content):
    folder = tmp_path / "clusters_0"
    groups, dev = read_named_groups(write(tmp_path / "groups.tsv", lines()), *stores)
    groups.save(folder, dev)
    (folder / "names.json").write_bytes(content)
    with pytest.raises(InputError, match="mine the episode again"):
        DevClusters.read(folder, stores[1].folder)
