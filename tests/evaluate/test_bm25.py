"""BM25 against its formula, and both layouts of a collection through the script."""

import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluate.bm25 import Index, main, rank, top_rows
from utils.runtime.errors import InputError

SCRIPT = Path(__file__).resolve().parents[2] / "evaluate" / "bm25.py"
TEXTS = [
    "wing flutter of a heated wing",
    "supersonic flow past a flat plate",
    "",
    "flutter flutter flutter",
    "heat transfer in supersonic flow along the plate of a wing",
]


def by_formula(texts: list[str], query: str, k1: float, b: float) -> np.ndarray:
    """Lucene's BM25 of each text: Σ idf · tf / (tf + k1 (1 - b + b · length / mean length))."""
    stop_words = {"a", "of", "in", "the", "and"}
    documents = [
        [word for word in text.lower().split() if word not in stop_words and len(word) > 1] for text in texts
    ]
    mean = sum(map(len, documents)) / len(documents)
    scores = np.zeros(len(texts))
    for word in query.lower().split():
        holding = sum(word in document for document in documents)
        idf = math.log(1 + (len(texts) - holding + 0.5) / (holding + 0.5))
        for i, document in enumerate(documents):
            count = Counter(document)[word]
            if count:
                scores[i] += idf * count / (count + k1 * (1 - b + b * len(document) / mean))
    return scores


@pytest.mark.parametrize(
    "query", ["flutter wing", "Supersonic PLATE", "wing wing heat", "unknown words", "the of", ""]
)
def test_scores_are_lucenes_formula(query):
    expected = by_formula(TEXTS, query if query != "the of" else "", k1=0.9, b=0.4)
    np.testing.assert_allclose(Index(TEXTS, 0.9, 0.4).score(query), expected, rtol=1e-5, atol=1e-7)


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0])), st.integers(1, 8))
def test_the_highest_scores_come_first_equal_ones_by_row_and_none_of_0(scores, depth):
    expected = sorted((-score, row) for row, score in enumerate(scores) if score > 0)[:depth]
    assert top_rows(np.array(scores, dtype=np.float32), depth).tolist() == [row for _, row in expected]


def test_rankings_are_padded_where_few_texts_match():
    rows, scores = rank(Index(TEXTS, 0.9, 0.4), ["flutter", "nothing"], 4)
    assert rows.tolist() == [[3, 0, -1, -1], [-1, -1, -1, -1]]
    assert (scores[0, :2] > 0).all()
    assert np.isneginf(scores[0, 2:]).all()
    assert (rows.dtype, scores.dtype) == (np.int64, np.float32)


@pytest.mark.parametrize(
    ("matching", "left_out"),
    [(0, True), (1, True), (2, False), (4, False)],
)
def test_where_most_queries_match_nothing_there_are_no_metrics_but_the_reason(
    tmp_path, bm25, capsys, matching, left_out
):
    texts = ["机翼在超音速气流中的颤振", "平板上的层流边界层", "高温下的热传导", "压缩机叶片的设计"]
    corpus = [{"_id": f"d{i}", "text": f"{text} word{i}"} for i, text in enumerate(texts)]
    queries = [
        {"_id": f"q{i}", "text": text[:4] + (f" word{i}" if i < matching else "")} for i, text in enumerate(texts)
    ]
    folder = write_beir(tmp_path / "set", corpus, queries, "".join(f"q{i}\td{i}\t1\n" for i in range(4)))
    out = tmp_path / "out"
    out.mkdir()
    stale = ("metrics.json", "per_query.json", "run.trec", "qrels.trec") if left_out else ("left_out.txt",)
    for name in stale:  # of an earlier run, on other texts
        (out / name).touch()
    bm25(folder, out)
    said = f"BM25 is left out on set: {4 - matching} of 4 queries share no word with any passage"
    assert (said in capsys.readouterr().out) == left_out
    if left_out:
        assert [path.name for path in out.iterdir()] == ["left_out.txt"]
        assert (out / "left_out.txt").read_text().startswith(said)
    else:
        assert {path.name for path in out.iterdir()} == {"metrics.json", "per_query.json", "run.trec", "qrels.trec"}


def test_a_collection_without_words_matches_nothing():
    assert Index(["", "! ?"], 0.9, 0.4).score("flutter ?").tolist() == [0, 0]


@pytest.fixture
def bm25(monkeypatch):
    """Runs the script's main in this process with these arguments."""

    def run(folder: Path, out: Path, *arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["bm25.py", "--data_dir", str(folder), "--out_dir", str(out), *arguments])
        main()

    return run


def write_beir(folder: Path, corpus: list[dict], queries: list[dict], qrels: str, split: str = "test") -> Path:
    (folder / "qrels").mkdir(parents=True)
    for name, records in (("corpus", corpus), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    (folder / "qrels" / f"{split}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{qrels}")
    return folder


def test_a_beir_folder_gives_metrics_and_a_run_without_self_matches(tmp_path):
    corpus = [{"_id": f"d{i}", "title": "", "text": text} for i, text in enumerate(TEXTS)]
    corpus[1] = {"_id": "d1", "title": "flutter", "text": TEXTS[1]}
    queries = [{"_id": "d3", "text": TEXTS[3]}, {"_id": "q2", "text": "supersonic"}, {"_id": "q3", "text": "wing"}]
    folder = write_beir(
        tmp_path / "tiny set", corpus, queries, "d3\td1\t1\nq2\td2\t1\nq2\td4\t2\nq3\tgone\t1\n", "dev"
    )
    finished = subprocess.run(
        [sys.executable, SCRIPT, "--data_dir", folder, "--out_dir", "out", "--split", "dev", "--depth", "2"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    run = [line.split() for line in (tmp_path / "out" / "run.trec").read_text().splitlines()]
    assert [line[2] for line in run if line[0] == "d3"] == ["d0", "d1"], "d3 is the query itself; d1 matches by title"
    assert [line[2] for line in run if line[0] == "q2"] == ["d1", "d4"]
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert {key: value for key, value in written.items() if key != "metrics"} == {
        "run": "BM25",
        "collection": "tiny set",
        "checkpoint": None,
        "queries": 3,
        "parts": [],
        "collapsed": False,
    }
    # What is relevant to q3 is not in the collection: 0.
    assert written["metrics"]["mrr@10"] == pytest.approx((0.5 + 0.5 + 0) / 3)
    assert written["metrics"]["recall@100"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert written["metrics"]["ndcg@10"] == pytest.approx(
        (1 / math.log2(3) + (2 / math.log2(3)) / (2 + 1 / math.log2(3)) + 0) / 3
    )
    assert "BM25 on tiny set (3 queries): ndcg@10" in finished.stdout


def test_an_ms_marco_folder_is_measured_on_its_dev_queries(tmp_path, bm25):
    folder = tmp_path / "msmarco"
    folder.mkdir()
    (folder / "collection.tsv").write_text("".join(f"{10 + i}\t{text}\n" for i, text in enumerate(TEXTS)))
    (folder / "queries.dev.small.tsv").write_text("1\tflutter\n2\tflat plate\n3\tnever judged\n")
    (folder / "qrels.dev.small.tsv").write_text("1\t0\t10\t1\n2\t0\t11\t1\n")
    bm25(folder, tmp_path / "out", "--collection", "dev", "--run_name", "baseline")
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (written["run"], written["collection"], written["queries"]) == ("baseline", "dev", 2)
    assert written["metrics"]["mrr@10"] == 0.75


def test_documents_are_searched_in_url_title_and_body(tmp_path, bm25):
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "msmarco-docs.tsv").write_text("D1\thttp://x\tflutter\tbody\nD2\thttp://y\ttitle\tflutter of a wing\n")
    (folder / "msmarco-docdev-queries.tsv").write_text("1\twing\n")
    (folder / "msmarco-docdev-qrels.tsv").write_text("1 0 D2 1\n")
    bm25(folder, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["metrics"]["mrr"] == 1.0


def test_an_id_given_twice_is_named_with_its_line_and_nothing_is_written(tmp_path, bm25):
    corpus = [{"_id": "same", "text": "one"}, {"_id": "same", "text": "two"}]
    folder = write_beir(tmp_path / "set", corpus, [{"_id": "q", "text": "one"}], "q\tsame\t1\n")
    with pytest.raises(InputError, match=r"corpus\.jsonl:2: the id 'same' was given before"):
        bm25(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_in_neither_layout_is_named(tmp_path, bm25):
    with pytest.raises(InputError, match=r"holds none of collection\.tsv, msmarco-docs\.tsv") as raised:
        bm25(tmp_path, tmp_path / "out")
    assert str(tmp_path) in str(raised.value)
