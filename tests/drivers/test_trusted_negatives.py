"""Filters and examples through the real miner, in process: what it refuses, says, writes and what reads it again."""

import json
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data import export_mined, msmarco_data
from drivers import run_ann_data_gen
from model.reading import Reading
from tests.tiny_run import (
    PASSAGE_LENGTH,
    PASSAGES,
    QUERIES,
    QUERY_LENGTH,
    call,
    reading_flags,
    save_random_checkpoint,
    write_msmarco,
)
from utils.runtime.errors import InputError
from utils.stores.episode import open_scores, read_episode, read_result, result_file
from utils.stores.files import sha256_of_file, write_json
from utils.stores.mined_examples import examples_file, read_examples
from utils.stores.training_log import TrainingLog

COSINE, DOT = Reading("mean", True), Reading("mean", False)
LENGTHS = ("--max_seq_length", PASSAGE_LENGTH, "--max_query_length", QUERY_LENGTH)
NAME = "max_relative_score 0.999"


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """The tiny collection, its token stores, and a checkpoint with vectors of length 1."""
    folder = tmp_path_factory.mktemp("trusted")
    checkpoint = save_random_checkpoint(folder / "initial", "bert", COSINE)
    model = *reading_flags(COSINE), "--model_name_or_path", checkpoint
    raw = write_msmarco(folder / "raw")
    call(msmarco_data, "--data_dir", raw, "--out_data_dir", folder / "preprocessed", *model, *LENGTHS)
    mine(folder, "plain")
    mine(folder, "filtered", "--max_relative_score", 0.999)
    return folder


def mine(work: Path, name: str, *flags: object, reading: Reading = COSINE) -> Path:
    """Mines the first episode into a folder of that name; vectors of one reading are shared."""
    initial = next((work / "initial").glob("checkpoint-*"))
    places = "--init_model_dir", initial, "--training_dir", work / "none", "--data_dir", work / "preprocessed"
    drawing = "--topk_training", 25, "--negative_sample", 25, "--public_ann_data_dir", work / f"of {reading}"
    out = "--output_dir", work / name
    call(run_ann_data_gen, *reading_flags(reading), *LENGTHS, *places, *drawing, *out, "--no_cuda", *flags)
    return work / name


def negatives_of(folder: Path) -> dict[int, dict[int, float]]:
    """Of each query the scores of its negatives by their rows."""
    episode = read_episode(folder / "ann_training_data_0", len(QUERIES), len(PASSAGES), None)
    scores = open_scores(folder, folder, 0, episode)
    found: dict[int, dict[int, float]] = {query: {} for query in QUERIES}
    for line, query in enumerate(episode.query_rows.tolist()):
        rows = episode.negative_rows[episode.starts[line] : episode.starts[line + 1]].tolist()
        of_line = scores[line + episode.starts[line] + 1 :][: len(rows)].tolist()
        found[query] |= dict(zip(rows, of_line, strict=True))
    return found


def test_what_is_gone_from_the_mined_file_is_what_the_result_counts_and_the_examples_show(work, capsys):
    every, left = negatives_of(work / "plain"), negatives_of(work / "filtered")
    filtered = read_result(work / "filtered", 0)["filters"]
    examples = read_examples(work / "filtered", work / "filtered", 0, len(QUERIES), len(PASSAGES))
    assert [example.query for example in examples] == sorted(QUERIES)
    for example in examples:
        query, bound = example.query, 0.999 * example.positive.score
        gone = {row: score for row, score in every[query].items() if score > bound}
        assert left[query] == {row: score for row, score in every[query].items() if row not in gone}
        assert example.all_dropped == len(gone)
        best = sorted(gone, key=gone.get, reverse=True)[:5]
        assert [(each.passage, each.filter) for each in example.dropped] == [(row, NAME) for row in best]
        assert [each.passage for each in example.kept] == sorted(left[query], key=left[query].get, reverse=True)[:5]
        assert example.positives == 2
    candidates = sum(map(len, every.values()))
    dropped = candidates - sum(map(len, left.values()))
    assert 0 < dropped < candidates
    none_left = sum(not of_query for of_query in left.values())
    expected = {"candidates": candidates, "dropped": {NAME: dropped}, "queries_with_none_left": none_left}
    assert filtered == expected
    mine(work, "again", "--max_relative_score", 0.999)
    said = f"episode 0: of {candidates} candidates {NAME} dropped {dropped} ({dropped / candidates:.1%})"
    assert said in capsys.readouterr().out


def test_without_filters_nothing_is_said_of_them_and_examples_are_of_the_hardest_negatives_alone(work):
    assert "filters" not in read_result(work / "plain", 0)
    every = negatives_of(work / "plain")
    for example in read_examples(work / "plain", work / "plain", 0, len(QUERIES), len(PASSAGES)):
        hardest = sorted(every[example.query], key=every[example.query].get, reverse=True)[:5]
        assert ([each.passage for each in example.kept], example.dropped) == (hardest, [])


def test_tensorboard_and_the_export_say_what_filters_took(work, tmp_path, capsys):
    result = read_result(work / "filtered", 0)
    log = TrainingLog(tmp_path / "logs")
    log.metrics(0, result)
    log.close()
    events = EventAccumulator(str(tmp_path / "logs")).Reload()
    found = {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"] if tag.startswith("filters/")}
    share = result["filters"]["dropped"][NAME] / result["filters"]["candidates"]
    none_left = result["filters"]["queries_with_none_left"]
    assert found == pytest.approx({"filters/max_relative_score": share, "filters/queries_with_none_left": none_left})
    for name, said in (("filtered", f"with the filters {NAME}"), ("plain", "without filters")):
        places = "--token_dir", work / "preprocessed", "--data_dir", work / "raw", "--ann_dir", work / name
        out = "--result_dir", work / name, "--out_file", tmp_path / "triplets.jsonl"
        call(export_mined, *places, *out)
        assert f"episode 0 was mined {said}" in capsys.readouterr().out


def test_a_share_of_dot_products_is_refused_before_anything_is_encoded_and_a_margin_is_not(work):
    with pytest.raises(InputError, match=r"--max_relative_score is a share .* give --min_margin"):
        mine(work, "dot", "--max_relative_score", 0.95, reading=DOT)
    assert not (work / f"of {DOT}").exists()
    folder = mine(work, "dot", "--min_margin", 0.5, reading=DOT)
    assert read_result(folder, 0)["filters"]["dropped"]["min_margin 0.5"] > 0


def test_filters_that_leave_nothing_are_named(work):
    with pytest.raises(InputError, match=r"--skip_ranks 24: every one of the \d+ candidates of all queries"):
        mine(work, "nothing", "--skip_ranks", 24)
    assert not result_file(work / "nothing", 0).exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda content: content.pop("queries"), "does not hold examples"),
        (lambda content: content["queries"][0].pop("positive"), "KeyError: 'positive'"),
        (lambda content: content["queries"][0].update(query=len(QUERIES)), "8 is no number below 8"),
        (lambda content: content["queries"][1]["kept"][0].update(passage=len(PASSAGES)), "30 is no number below 30"),
        (lambda content: content["queries"][1]["kept"][0].update(score="high"), "is no passage with its score"),
        (lambda content: content["queries"][1].update(kept=7), "TypeError"),
    ],
)
def test_examples_that_are_not_as_they_were_written_are_named(work, change, reason, tmp_path):
    path, content = examples_file(tmp_path, 0), json.loads(examples_file(work / "filtered", 0).read_text())
    change(content)
    write_json(path, content)
    result = read_result(work / "filtered", 0)
    write_json(result_file(tmp_path, 0), result)
    with pytest.raises(InputError, match=r"ann_training_examples_0\.json: is damaged.*mine the episode again"):
        read_examples(tmp_path, tmp_path, 0, len(QUERIES), len(PASSAGES))
    write_json(result_file(tmp_path, 0), result | {"examples_sha256": sha256_of_file(path)})
    with pytest.raises(InputError, match=reason):
        read_examples(tmp_path, tmp_path, 0, len(QUERIES), len(PASSAGES))


@pytest.mark.parametrize(
    "filters", [7, {}, {"candidates": 1, "dropped": {"a": -1}, "queries_with_none_left": 0}, {"candidates": 1}]
)
def test_counts_that_cannot_be_are_refused(work, tmp_path, filters):
    write_json(result_file(tmp_path, 0), read_result(work / "plain", 0) | {"filters": filters})
    with pytest.raises(InputError, match="filters is "):
        read_result(tmp_path, 0)


def test_an_episode_of_a_version_without_examples_has_none(work, tmp_path):
    result = read_result(work / "plain", 0)
    result.pop("examples_sha256")
    write_json(result_file(tmp_path, 0), result)
    assert read_examples(tmp_path, tmp_path, 0, len(QUERIES), len(PASSAGES)) is None
    assert np.isfinite(result["ndcg"])
