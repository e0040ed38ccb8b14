"""TREC files: any id is one field and comes back, and other readers see what was written."""

import ir_measures
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.mining.metrics import MEASURES, evaluate_run
from utils.runtime.errors import InputError
from utils.stores.qrels import Qrels
from utils.stores.trec import decode_id, encode_id, read_trec_run, write_trec_qrels, write_trec_run

ids = st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(" %\t\u2003\x1c\x85")), min_size=1)


@given(ids)
def test_every_id_is_one_field_and_comes_back(text_id):
    field = encode_id(text_id)
    assert field.split() == [field]
    assert field.encode().split() == [field.encode()]
    assert decode_id(field) == text_id


def test_usual_ids_stay_as_they_are_and_blanks_and_percent_signs_are_encoded():
    for text_id in ("7067032", "D1555982", "msmarco_passage_00_100", "MED-10", "doc/ä+1.pdf", "a:b"):
        assert encode_id(text_id) == text_id
    assert encode_id("annual report 100%.pdf") == "annual%20report%20100%25.pdf"
    assert encode_id("a%20b") == "a%2520b"


def test_files_read_back_by_ir_measures_give_the_same_metrics(tmp_path):
    generator = np.random.default_rng(1)
    ranked = np.array([generator.permutation(30)[:20] for _ in range(6)])
    ranked[3, 15:] = -1
    scores = -np.sort(-generator.random((6, 20)).astype(np.float32), axis=1)
    qrels = Qrels.of((q, int(p), grade) for q in range(6) for grade, p in enumerate(generator.permutation(30)[:3]))
    query_ids, passage_ids = [f"q {i}" for i in range(6)], [f"MED-{i}%" for i in range(30)]
    write_trec_run(tmp_path / "run.trec", query_ids, passage_ids, ranked, scores, "Episode 1")
    write_trec_qrels(tmp_path / "qrels.trec", query_ids, passage_ids, qrels)

    fields = [line.split(" ") for line in (tmp_path / "run.trec").read_text().splitlines()]
    assert len(fields) == 5 * 20 + 15
    assert fields[0] == ["q%200", "Q0", f"MED-{ranked[0, 0]}%25", "1", fields[0][4], "Episode-1"]
    assert np.float32(fields[0][4]) == scores[0, 0]
    judged, run = (str(tmp_path / name) for name in ("qrels.trec", "run.trec"))
    assert len((tmp_path / "qrels.trec").read_text().splitlines()) == len(qrels) == 18
    from_files = ir_measures.calc_aggregate(
        MEASURES.values(), list(ir_measures.read_trec_qrels(judged)), list(ir_measures.read_trec_run(run))
    )
    means = evaluate_run(ranked, qrels).means
    assert {name: from_files[measure] for name, measure in MEASURES.items()} == pytest.approx(means)

    expected = {
        query_ids[i]: {passage_ids[p]: float(s) for p, s in zip(ranked[i], scores[i], strict=True) if p >= 0}
        for i in range(6)
    }
    found = read_trec_run(run)
    assert [list(of_query) for of_query in found.values()] == [list(of_query) for of_query in expected.values()]
    assert {q: {p: np.float32(s) for p, s in of.items()} for q, of in found.items()} == expected


@pytest.mark.parametrize(("query_id", "passage_id"), [("", "p"), ("q", "")])
def test_an_empty_id_is_refused_and_nothing_is_written(tmp_path, query_id, passage_id):
    with pytest.raises(InputError, match=r"the (query|passage) of row 0 has an empty id"):
        write_trec_run(tmp_path / "run.trec", [query_id], [passage_id, ""], np.array([[0]]), np.ones((1, 1)), "t")
    assert list(tmp_path.iterdir()) == []


def test_a_line_that_is_no_runs_is_named(tmp_path):
    (tmp_path / "run.trec").write_text("q Q0 p 1 0.5 t\nq Q0 a b 2 0.4 t\n")
    with pytest.raises(InputError, match=r"run\.trec:2: expected query, Q0, passage, rank, score and tag"):
        read_trec_run(tmp_path / "run.trec")
