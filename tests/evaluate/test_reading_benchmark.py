"""The benchmark of reading training data: its pairs, that contenders write the same, what is written and shown."""

import json
from collections import Counter

import pytest

from evaluate.benchmarks import reading, table
from evaluate.benchmarks.processes import watch_python
from tests.evaluate.test_mining_benchmarks import call, watch_here
from utils.runtime.errors import InputError


def test_a_share_of_the_texts_comes_again_and_all_others_differ():
    pairs = [*reading.make_pairs(reading.Arguments(out_dir="", pairs=25_000))]
    for texts in zip(*pairs, strict=True):
        repeated = 1 - len({*texts}) / len(texts)
        assert 0.18 < repeated < 0.22
        assert max(Counter(texts).values()) > 2
    assert pairs == [*reading.make_pairs(reading.Arguments(out_dir="", pairs=25_000))]
    assert len({*reading.make_pairs(reading.Arguments(out_dir="", pairs=900, repeated=0))}) == 900


def test_the_script_writes_every_figure_and_the_table_shows_it(tmp_path, monkeypatch):
    monkeypatch.setattr(reading.processes, "watch_python", watch_here)
    call(reading.main, "--out_dir", tmp_path, "--pairs", 9_000, "--rounds", 2, "--repeated", 0.5)
    result = json.loads((tmp_path / "reading-9000.json").read_text())
    assert list(result["contenders"]) == ["ours", "dictionaries"]
    for one in result["contenders"].values():
        assert (one["seconds"], one["own_gib"], one["resident_gib"]) == ([1, 1], 0.5, 0.75)
        assert one["texts_per_second"] == 18_000
    assert 0 < result["written_gib"] < result["read_gib"] < 9_000 * 1_000 / 2**30

    call(table.main, "--out_dir", tmp_path)
    page = (tmp_path / "benchmarks.md").read_text()
    assert "## Reading training data: 9,000 pairs" in page
    assert "| ours | 1.0 | 18,000 | 1.00 | 0.50 | 0.75 |" in page


def test_contenders_that_write_different_things_are_told(tmp_path, monkeypatch):
    def with_another_passage(script, flags):
        stages = watch_here(script, flags)
        if script.stem == "dictionary_reader":
            (flags[-1] / "judgments.tsv").write_text("q1\tp2\t1\n")
        return stages

    monkeypatch.setattr(reading.processes, "watch_python", with_another_passage)
    with pytest.raises(RuntimeError, match="different things"):
        call(reading.main, "--out_dir", tmp_path, "--pairs", 50, "--rounds", 1)


@pytest.mark.parametrize(("flag", "value"), [("pairs", 0), ("repeated", 1.0), ("rounds", 0)])
def test_flags_that_make_no_sense_are_told(flag, value):
    with pytest.raises(InputError, match=flag):
        reading.Arguments(out_dir="", **{flag: value})


def test_a_pair_that_more_is_read_costs_some_hundred_bytes_of_memory(tmp_path):
    """By the real script: the texts, of 380 characters a pair, are not kept."""
    counts, held = (5_000, 85_000), []
    for count in counts:
        path = tmp_path / f"{count}.jsonl"
        reading.write_pairs(reading.Arguments(out_dir="", pairs=count), path)
        (stage,) = watch_python(*reading.make_command(reading.OURS, path, tmp_path / str(count)))
        held.append(stage.own_gib * 2**30)
    assert (held[1] - held[0]) / (counts[1] - counts[0]) < 300
