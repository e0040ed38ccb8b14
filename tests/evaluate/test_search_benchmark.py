"""The search benchmark: its contenders find the same, and its figures are written and shown."""

import json
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import pytest

from evaluate.benchmarks import contenders, search, table
from tests.evaluate.test_training_benchmark import call

SMALL = ["--passages", 500, "--queries", 20, "--dimensions", 16, "--k", 7, "--rounds", 2, "--product_size", 64]


def test_the_script_writes_every_figure_and_the_table_shows_it(tmp_path, monkeypatch):
    def version_on_a_gpu_installation(name: str) -> str:
        if name == "faiss-cpu":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(contenders, "version", version_on_a_gpu_installation)
    monkeypatch.setattr(contenders, "peak_of_fresh_process", lambda script, args, name: 0.25)
    call(search.main, "--out_dir", tmp_path, "--no_cuda", *SMALL)
    result = json.loads((tmp_path / "search-500-float32.json").read_text())
    assert result["versions"]["faiss"]
    assert result["file_gib"] == pytest.approx(500 * 16 * 4 / 2**30)
    assert list(result["contenders"]) == list(search.CONTENDERS)
    least_seconds = 2 * 20 * 500 * 16 / result["peak_operations_a_second"]["median"]
    for one in result["contenders"].values():
        assert len(one["seconds"]) == 2
        assert one["share_of_products"] == pytest.approx(least_seconds / one["median_seconds"])
        assert one["queries_per_second"] == pytest.approx(20 / one["median_seconds"])
    assert result["contenders"]["faiss"]["times_as_fast"] == 1

    call(table.main, "--out_dir", tmp_path)
    page = (tmp_path / "benchmarks.md").read_text()
    assert "## Search: 500 passages of 16 dimensions, float32" in page
    assert f"| ours | {result['contenders']['ours']['median_seconds']:.2f} |" in page


def test_contenders_that_find_other_scores_are_told():
    scores = np.random.default_rng(0).random((3, 5)).astype(np.float32)
    search.check_agreement({"ours": scores, "faiss": scores * (1 + 1e-6)})
    with pytest.raises(RuntimeError, match="the scores of faiss are off"):
        search.check_agreement({"ours": scores, "faiss": scores[::-1]})


def test_memory_is_measured_in_a_process_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    args = search.Arguments(out_dir=str(tmp_path), passages=500, queries=20, dimensions=16, k=7, no_cuda=True)
    search.make_vectors(args, "passages", 500)
    assert 0.1 < contenders.peak_of_fresh_process(search.__file__, args, "ours") < 4
