"""A run's report: what is read for it, and a page that holds it all and nothing that could act."""

import base64
import html
import io
import json
import re
import shutil
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from evaluate import compare_runs, report, results_table
from evaluate.reporting import finished_run, pictures, report_pictures
from evaluate.reporting.finished_run import (
    Curve,
    cluster_gains,
    metric_curves,
    read_results,
    sample_queries,
    trained_episodes,
)
from evaluate.reporting.report_pictures import shown_episodes
from tests.tiny_models import write_embeddings
from tests.tiny_run import COLLECTION, PASSAGES, QUERIES, STEP, call, make_run
from utils.mining.clustering import Clusters
from utils.mining.metrics import MEASURES
from utils.mining.named_groups import NamedGroups
from utils.runtime.errors import InputError
from utils.stores.episode import write_result
from utils.stores.files import write_json
from utils.stores.mined_examples import MinedExample, Scored, write_examples
from utils.stores.run_folder import RunFolder
from utils.stores.token_store import TokenStore
from utils.stores.training_log import TrainingLog

CLUSTERS = np.arange(len(QUERIES)) % 3
HOSTILE = '<script>alert("1")</script><img src=x onerror=alert(1)> & \' $x^{ \u202eevil\x07 {{ 7 * 7 }}'


def change_values(results: Path, step: int, change: float) -> None:
    """results/step-STEP becomes that of another checkpoint too, with other values."""
    shutil.copytree(results / f"step-{STEP}", results / f"step-{step}")
    for name in ("per_query", "metrics"):
        path = results / f"step-{step}" / f"{name}.json"
        content = json.loads(path.read_text())
        for values in content["queries"].values() if name == "per_query" else [content["metrics"]]:
            values |= {measure: value * change for measure, value in values.items()}
        write_json(path, content)


def log_training(run: Path, episode: int, first: int, last: int, clusters: int, names: Sequence[str] = ()) -> None:
    """What training logs of an episode, a step at a time, in a file whose name comes after the earlier ones'."""
    log = TrainingLog(run / "logs", first_step=first)
    named = {"cluster_names": names} if names else {}
    log.metrics(first, {"episode": episode, "ndcg": 0.1, **dict.fromkeys(MEASURES, 0.1), **named})
    for step in range(first + 1, last + 1):
        losses, counts = torch.arange(float(clusters)) + step, torch.arange(clusters) != step % clusters
        of_step = {"loss": torch.tensor(1.0), "gradient_norm": torch.tensor(1.0)}
        weights = torch.full((clusters,), 1 / step)
        held = {"counts": counts, "weights": weights, "at_eps": weights <= 0.2}
        log.step(step, SimpleNamespace(**of_step, cluster_losses=losses, **held), 0.1)
    log.close()
    files = sorted((run / "logs").glob("events.*"), key=lambda path: path.stat().st_mtime_ns)
    files[-1].rename(run / "logs" / f"events.out.tfevents.{len(files):010d}")


def tables(run: Path, names: list[str]) -> None:
    """What commands/run_ance.sh makes of the metrics."""
    results = run / "results"
    files = {
        step: ",".join(f"{results / name / f'step-{step}'}/metrics.json" for name in names) for step in (0, STEP)
    }
    rows = [f"initial checkpoint={files[0]}", f"after {HOSTILE.replace('=', '')}={files[STEP]}"]
    clusters = ("--clusters_dir", run / "ann_data" / "clusters_0", "--dev_query_dir", run / "preprocessed/dev-query")
    call(results_table, "--out_dir", results, *clusters, "--rows", *rows)
    call(compare_runs, "--out_dir", results, "--apart", 1, "--runs", *rows)


@pytest.fixture(scope="module")
def made_run(tmp_path_factory) -> Path:
    """A finished run of one episode, whose queries and names are hostile."""
    run = make_run(tmp_path_factory.mktemp("of a report") / "<b>run")
    for name in ("dev", f"zero_shot/{COLLECTION}"):
        change_values(run / "results" / name, 0, 0.5)
    queries = run / "collection" / "msmarco" / "queries.train.tsv"
    queries.write_text("".join(f"{i}\t{text} {HOSTILE}\n" for i, text in QUERIES.items()))
    vectors = np.random.default_rng(0).random((len(QUERIES), 6), dtype=np.float32)
    clusters = Clusters(vectors[:3], np.bincount(CLUSTERS), CLUSTERS)
    clusters.save(run / "ann_data" / "clusters_0", CLUSTERS)
    tokens = TokenStore(run / "preprocessed" / "train-query").meta.sha256
    write_embeddings(run / "ann_data" / "embeddings-0", "train-query", tokens, vectors)
    write_result(run / "results", 0, {"step": 0, "episode": 0, "ndcg": 0.1, **dict.fromkeys(MEASURES, 0.1)})
    log_training(run, 0, 0, STEP, 3)
    tables(run, ["dev", f"zero_shot/{COLLECTION}"])
    return run


@pytest.fixture
def run(made_run, tmp_path, monkeypatch) -> Path:
    """A copy of it, for a report with small pictures."""
    monkeypatch.setattr(pictures, "DOTS_AN_INCH", 30)
    copy = shutil.copytree(made_run, tmp_path / "beside" / made_run.name, symlinks=True)
    shutil.copytree(made_run.parent / COLLECTION, tmp_path / "beside" / COLLECTION)
    return copy


class Page(HTMLParser):
    """Every element with its attributes, and all text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data) -> None:
        self.text += data


def test_the_page_holds_all_of_it_and_nothing_that_acts_or_fetches(run):
    call(report, "--run_dir", run)
    page = Page(run / "report.html")
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form", "a", "b"} - {"b"}
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name in ("href", "srcset", "action")]
        assert "src" not in attributes or (tag, attributes["src"][:22]) == ("img", "data:image/png;base64,")
    policy = next(a["content"] for tag, a in page.elements if tag == "meta" and "http-equiv" in a)
    assert (
        policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    )
    assert "url(" not in (run / "report.html").read_text()
    assert "@import" not in (run / "report.html").read_text()
    images = [attributes for tag, attributes in page.elements if tag == "img"]
    assert len(images) == 4
    for image in images:
        assert image["alt"]
        assert imread(io.BytesIO(base64.b64decode(image["src"].partition(",")[2]))).ndim == 3


def test_what_a_collection_says_is_text(run):
    call(report, "--run_dir", run)
    page = Page(run / "report.html")
    assert '<script>alert("1")</script>' in page.text
    assert "{{ 7 * 7 }}" in page.text
    assert r"\u202eevil\x07" in page.text
    assert not set("\u202e\x07") & set(page.text)
    assert "<b>run" in page.text
    assert "<h1>&lt;b&gt;run</h1>" in (run / "report.html").read_text()


def test_tables_are_those_of_the_results(run):
    call(report, "--run_dir", run)
    text = html.unescape((run / "report.html").read_text())
    dev = json.loads((run / "results" / "dev" / f"step-{STEP}" / "metrics.json").read_text())["metrics"]
    assert f"<td>{dev['mrr@10']:.3f}</td><td>{dev['ndcg@10']:.3f}</td>" in text
    assert f'<b>{dev["mrr@10"]:.3f}</b><span class="soft">was {dev["mrr@10"] / 2:.3f}</span>' in text
    difference = json.loads((run / "results" / "comparison.json").read_text())["differences"]
    (of_run,) = difference.values()
    assert f"<td>{of_run['dev']['mean']:+.3f}</td>" in text
    weight = np.mean([1 / step for step in range(1, STEP + 1)])
    loss = np.mean([2 + step for step in range(1, STEP + 1) if step % 3 != 2])  # of cluster 2, as it was logged
    assert f"<td>{weight:.3f}</td><td>{loss:.3f}</td>" in text
    # Two of three clusters in each step, which weigh 1 / step, from the fifth step on the least weight.
    row = f"<td>2.0 of 3</td><td>2.0</td><td>{(STEP - 4) / STEP:.2f}</td><td>{2 * weight:.2f}</td>"
    assert f'<th scope="row">1</th>{row}' in text


def test_a_mean_over_steps_weighs_each_point_by_the_steps_that_it_stands_for():
    values = np.arange(11.0)
    curve = Curve.of({14: values[:4].mean(), 18: values[4:8].mean(), 21: values[8:].mean()})
    assert curve.mean(10) == pytest.approx(values.mean())


def test_logs_of_a_version_that_counted_no_clusters_a_step_are_shown_without_that_table(run, monkeypatch):
    monkeypatch.setattr(finished_run, "STEP_CURVES", {})
    call(report, "--run_dir", run)
    text = Page(run / "report.html").text
    assert "What a training step held" not in text
    assert "Weights and losses" in text


def test_the_objective_stands_in_the_head_with_its_options(run):
    (run / "settings.train").write_text("OBJECTIVE=idro\nABSENT=keep\nNORMALIZE_WEIGHTS=1\n")
    call(report, "--run_dir", run)
    assert (
        "trained by ANCE, clusters re-weighted by iDRO (idro+keep+normalized): 7 steps"
        in Page(run / "report.html").text
    )


def test_pictures_are_files_and_in_tensorboard_once(run):
    for _ in range(2):
        call(report, "--run_dir", run)
    names = {"metrics", "clusters", "gains", "episode-0"}
    assert {path.stem for path in (run / "results" / "pictures").iterdir()} == names
    events = EventAccumulator(str(run / "logs" / "report"))
    events.Reload()
    assert set(events.Tags()["images"]) == names
    assert [[image.step for image in events.Images(name)] for name in sorted(names)] == [[STEP]] * 4
    assert len(list((run / "logs" / "report").iterdir())) == 1


def test_gains_are_means_of_paired_differences_with_their_standard_errors(made_run):
    found = cluster_gains(RunFolder(made_run), 0, 0, STEP)
    values = [
        json.loads((made_run / "results" / "dev" / f"step-{step}" / "per_query.json").read_text())["queries"]
        for step in (0, STEP)
    ]
    for cluster in range(3):
        own = [str(query) for query in QUERIES if CLUSTERS[list(QUERIES).index(query)] == cluster]
        gains = np.array([values[1][query]["mrr@10"] - values[0][query]["mrr@10"] for query in own])
        assert found.queries[cluster] == len(own)
        assert found.gain[cluster] == pytest.approx(gains.mean())
        assert found.error[cluster] == pytest.approx(gains.std(ddof=1) / len(own) ** 0.5)
        assert found.after[cluster] - found.before[cluster] == pytest.approx(gains.mean())


def test_a_cluster_without_judged_queries_has_no_gain_and_one_of_a_single_query_no_error(run):
    folder = run / "ann_data" / "clusters_0"
    np.save(folder / "dev_assignment.npy", np.array([0] * (len(QUERIES) - 1) + [1]))
    found = cluster_gains(RunFolder(run), 0, 0, STEP)
    assert found.queries.tolist() == [len(QUERIES) - 1, 1, 0]
    assert np.isnan(found.error).tolist() == [False, True, True]
    assert np.isnan(found.gain).tolist() == [False, False, True]
    call(report, "--run_dir", run)


def test_metrics_are_those_of_evaluated_checkpoints_and_of_those_that_mined(run):
    zero_shot = {COLLECTION: {"ndcg@10": 0.25}}
    result = {"step": 3, "episode": 1, "ndcg": 0.75, **dict.fromkeys(MEASURES, 0.75), "zero_shot": zero_shot}
    write_result(run / "results", 1, result)
    folder = RunFolder(run)
    curves = metric_curves(folder, read_results(folder))
    own = [
        json.loads((run / "results" / "dev" / f"step-{step}" / "metrics.json").read_text())["metrics"]["ndcg@10"]
        for step in (0, STEP)
    ]
    assert curves["dev nDCG@10"].steps.tolist() == [0, 3, STEP]
    np.testing.assert_allclose(curves["dev nDCG@10"].values, [own[0], 0.75, own[1]])
    assert curves["zero-shot nDCG@10"].steps.tolist() == [0, 3, STEP]
    assert curves["zero-shot nDCG@10"].values[1] == 0.25


def test_what_the_table_does_not_hold_is_not_shown_either(run):
    expected = metric_curves(RunFolder(run), read_results(RunFolder(run)))
    results = run / "results"
    shutil.copytree(results / "zero_shot" / COLLECTION, results / "zero_shot" / "dropped")
    write_json(results / "zero_shot" / "dropped" / "step-0" / "metrics.json", {})
    change_values(results / "dev", STEP + 100, 0.1)
    found = metric_curves(RunFolder(run), read_results(RunFolder(run)))
    for label, curve in expected.items():
        np.testing.assert_array_equal(found[label].steps, curve.steps)
        np.testing.assert_array_equal(found[label].values, curve.values)
    call(report, "--run_dir", run)
    assert f"{STEP} steps" in Page(run / "report.html").text


def test_shared_embeddings_of_the_initial_checkpoint_are_found_and_others_refused(run, tmp_path):
    (run / "ann_data" / "embeddings-0").rename(tmp_path / "shared")
    (run / "settings.evaluate").write_text(f"PUBLIC_ANN_DATA_DIR={tmp_path / 'shared'}\n")
    call(report, "--run_dir", run)
    manifest = tmp_path / "shared" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["matrices"]["train-query"]["tokens"] = "of others"
    write_json(manifest, content)
    with pytest.raises(InputError, match="shared: holds embeddings of another train-query"):
        call(report, "--run_dir", run)


def test_an_episodes_curves_are_those_of_its_own_steps_also_after_a_crash(run):
    log_training(run, 1, STEP, STEP + 9, 3)  # 5 of these steps are lost
    log_training(run, 1, STEP, STEP + 4, 3)
    first, second = trained_episodes(RunFolder(run))
    assert (first.number, first.first, first.last) == (0, 0, STEP)
    assert (second.number, second.first, second.last) == (1, STEP, STEP + 4)
    assert second.weights[2].steps.tolist() == list(range(STEP + 1, STEP + 5))
    np.testing.assert_allclose(first.weights[0].values, 1 / np.arange(1, STEP + 1))
    present = [step for step in range(1, STEP + 1) if step % 3 != 1]
    assert first.losses[1].steps.tolist() == present
    np.testing.assert_allclose(first.losses[1].values, np.array(present) + 1)


def test_of_many_episodes_the_first_and_the_last_ones_are_shown(run):
    (episode,) = trained_episodes(RunFolder(run))
    assert [shown is episode for shown in shown_episodes([episode] * 5)] == [True] * 3
    many = [SimpleNamespace(number=i, weights=episode.weights) for i in range(6)]
    assert [shown.number for shown in shown_episodes(many)] == [0, 4, 5]


def test_a_run_without_weights_or_zero_shot_collections_says_so(run):
    shutil.rmtree(run / "logs")
    log_training(run, 0, 0, STEP, 1)
    shutil.rmtree(run / "results" / "zero_shot")
    settings = run / "settings.train"
    settings.write_text(settings.read_text().replace("idro", "erm"))
    tables(run, ["dev"])
    call(report, "--run_dir", run)
    page = Page(run / "report.html")
    assert "all queries alike (ERM)" in page.text
    assert "it has no weights or losses of clusters" in page.text
    assert "weight</th>" not in (run / "report.html").read_text()
    assert "was \u2013" not in page.text


def test_groups_by_name_are_shown_by_their_names(run):
    names = ["07", "law & <b>order</b>", f"tenant {'x' * 60}"]
    clusters, dev_groups = run / "ann_data" / "clusters_0", np.where(np.arange(len(QUERIES)) == 7, -1, CLUSTERS)
    shutil.rmtree(clusters)
    NamedGroups(names, np.bincount(CLUSTERS), CLUSTERS).save(clusters, dev_groups)
    result = {"step": 0, "episode": 0, "ndcg": 0.1, "clusters": 3, "cluster_names": names}
    write_result(run / "results", 0, result | dict.fromkeys(MEASURES, 0.1))
    shutil.rmtree(run / "logs")
    log_training(run, 0, 0, STEP, 3, names)
    settings = (run / "settings.mine").read_text()
    (run / "settings.mine").write_text(f"{settings}CLUSTERS=\n")
    (run / "settings.evaluate").write_text("PUBLIC_ANN_DATA_DIR=\nQUERY_GROUPS=/data of mine/by tenant.tsv\n")
    tables(run, ["dev", f"zero_shot/{COLLECTION}"])

    folder = RunFolder(run)
    (episode,) = trained_episodes(folder)
    assert [*episode.weights] == [*episode.losses] == [0, 1, 2]
    assert episode.losses[1].values.tolist() == [1 + step for step in range(1, STEP + 1) if step % 3 != 1]
    assert cluster_gains(folder, 0, 0, STEP).queries.tolist() == [3, 2, 2]
    assert report_pictures.Clusters.read(folder, 0).labels == [*names[:2], f"{names[2][:39]}…"]

    call(report, "--run_dir", run)
    page = Page(run / "report.html")
    for text in (*names, "groups re-weighted by iDRO", "by tenant.tsv", "worst group MRR@10", "Groups by name"):
        assert text in page.text
    assert "cluster" not in page.text.partition("All ")[0]
    assert "The groups are the same in all episodes." in page.text


def test_a_run_that_mined_beside_training_shows_the_episodes_it_trained_on(run):
    settings = run / "settings.train"
    settings.write_text(settings.read_text().replace("idro", "dro-greedy") + "ASYNC=1\n")
    for number in (1, 2):  # training went on from 0 to 2
        result = {"step": number, "episode": number, "ndcg": 0.1, **dict.fromkeys(MEASURES, 0.1)}
        write_result(run / "results", number, result)
        shutil.copytree(run / "ann_data" / "clusters_0", run / "ann_data" / f"clusters_{number}")
    log_training(run, 0, 0, 4, 3)
    log_training(run, 2, 4, STEP, 3)
    assert [(e.number, e.first, e.last) for e in trained_episodes(RunFolder(run))] == [(0, 0, 4), (2, 4, STEP)]
    call(report, "--run_dir", run)
    page = Page(run / "report.html")
    assert "re-weighted by DRO-greedy, mined beside training" in page.text
    assert {"of-episode-0", "of-episode-2"} <= {attributes.get("id") for _, attributes in page.elements}
    assert (run / "results" / "pictures" / "episode-2.png").is_file()


def test_each_table_has_a_caption_and_what_was_run_comes_first(run):
    call(report, "--run_dir", run)
    content = (run / "report.html").read_text()
    assert content.count("<caption>") == content.count("<table") == 5
    facts = html.unescape(content[content.index("<dl") : content.index("</dl>")])
    for name, value in (
        ("initial checkpoint", "initial"),
        ("training collection", "collection/msmarco"),
        ("zero-shot collections", COLLECTION),
        ("learning rate", "5e-6"),
    ):
        assert f"<dt>{name}</dt><dd>{value}</dd>" in facts


def test_tensorboard_has_the_metrics_of_the_last_checkpoint_once_however_often_it_is_reported(run):
    for _ in range(2):
        call(report, "--run_dir", run)
    events = EventAccumulator(str(run / "logs")).Reload()
    for name, folder in (("dev", "dev"), (f"zero_shot/{COLLECTION}", f"zero_shot/{COLLECTION}")):
        measured = json.loads((run / "results" / folder / f"step-{STEP}" / "metrics.json").read_text())["metrics"]
        for measure, value in measured.items():
            last = [event.value for event in events.Scalars(f"{name}/{measure}") if event.step == STEP]
            assert last == [pytest.approx(value)]


def test_no_path_of_the_machine_is_shown(run, made_run):
    elsewhere = run.parent / "shared vectors"
    shutil.copytree(run / "ann_data" / "embeddings-0", elsewhere)
    (run / "settings.evaluate").write_text(f"PUBLIC_ANN_DATA_DIR={elsewhere}\n")
    assert RunFolder(run).setting("CHECKPOINT").startswith(str(made_run.parent))
    call(report, "--run_dir", run)
    page = html.unescape((run / "report.html").read_text())
    assert '<td class="text">shared vectors</td>' in page
    for folder in (run.parent, made_run.parent):
        assert str(folder) not in page


def test_a_run_whose_logs_were_removed_says_so(run):
    shutil.rmtree(run / "logs")
    call(report, "--run_dir", run)
    assert "logs holds no weights or losses of clusters: they were removed" in Page(run / "report.html").text


def test_a_run_whose_first_embeddings_were_removed_says_so(run, capsys):
    shutil.rmtree(run / "ann_data" / "embeddings-0")
    call(report, "--run_dir", run)
    assert "embeddings-0: holds no embeddings of train-query: the map" in capsys.readouterr().out
    assert "Their map is left out" in Page(run / "report.html").text
    assert not (run / "results" / "pictures" / "clusters.png").exists()
    assert (run / "results" / "pictures" / "gains.png").exists()


def test_a_sample_of_the_queries_has_their_texts_and_clusters(made_run):
    sample, sizes = sample_queries(RunFolder(made_run), 0, 5)
    assert len(sample.rows) == len(sample.texts) == 5
    assert sample.texts == [f"{QUERIES[row]} {HOSTILE}" for row in sample.rows.tolist()]
    np.testing.assert_array_equal(sample.clusters, CLUSTERS[sample.rows])
    np.testing.assert_array_equal(sizes, np.bincount(CLUSTERS))


def keep_examples(run: Path, filters: dict[str, int]) -> None:
    """What mining keeps of two queries; passage 3 is hostile, and the files are those that were tokenized."""
    data, tokens = run / "collection" / "msmarco", run / "preprocessed"
    lines = (data / "collection.tsv").read_text().splitlines(keepends=True)
    lines[3] = f"103\t{HOSTILE}\n"
    (data / "collection.tsv").write_text("".join(lines))
    for store, source in (("passages", "collection.tsv"), ("train-query", "queries.train.tsv")):
        meta = json.loads((tokens / store / "meta.json").read_text())
        write_json(tokens / store / "meta.json", meta | {"source_size": (data / source).stat().st_size})
    name = next(iter(filters), "")
    dropped = [Scored(3, 0.625, name), Scored(4, 0.375, name)] if filters else []
    examples = [
        MinedExample(2, 1, Scored(2, 0.75), [Scored(5, 0.5), Scored(6, -0.25)], dropped, 7 if filters else 0),
        MinedExample(6, 3, Scored(16, 0.125), [], [], 0),
    ]
    result = {"examples_sha256": write_examples(run / "ann_data", 0, examples)}
    if filters:
        result["filters"] = {"candidates": 4000, "dropped": filters, "queries_with_none_left": 1234}
    path = run / "results" / "ann_ndcg_0"
    write_json(path, json.loads(path.read_text()) | result)


def rows_of(page: str) -> list[list[str]]:
    """The cells of the rows of all tables, as text."""
    return [
        [html.unescape(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)]
        for row in re.findall(r"<tr>(.*?)</tr>", page)
    ]


def test_mined_negatives_are_shown_with_their_texts_and_what_filters_dropped(run):
    keep_examples(run, {"min_margin 0.5": 1500})
    call(report, "--run_dir", run)
    content = (run / "report.html").read_text()
    rows = rows_of(content[content.index("<h2>Mined negatives") :])
    assert rows[:2] == [
        ["episode", "candidates", "min_margin 0.5", "queries with none left"],
        ["1", "4,000", "1,500", "1,234"],
    ]
    heading = ["passage", "score", "text"]
    hostile = " ".join(HOSTILE.split()).replace("\u202e", r"\u202e").replace("\x07", r"\x07")
    assert rows[2:8] == [
        heading,
        ["positive", "0.750", PASSAGES[2]],
        ["negative", "0.500", PASSAGES[5]],
        ["negative", "-0.250", PASSAGES[6]],
        ["dropped by min_margin 0.5", "0.625", hostile],
        ["dropped by min_margin 0.5", "0.375", PASSAGES[4]],
    ]
    assert rows[8:10] == [heading, ["lowest positive", "0.125", PASSAGES[16]]]
    summaries = re.findall(r'<details class="mined"( open)?><summary>(.*?)</summary>', content)
    assert [opened for opened, _ in summaries] == [" open", ""]
    assert html.unescape(summaries[0][1]).startswith(f"{QUERIES[2]} <script>alert")
    assert "5 more were dropped." in content
    assert "<script" not in content
    assert content.count("<caption>") == content.count("<table") == 8


def test_without_filters_the_hardest_negatives_are_shown_alone(run):
    keep_examples(run, {})
    call(report, "--run_dir", run)
    content = (run / "report.html").read_text()
    assert "2 training queries by chance, with the hardest negatives that episode 1 drew for them." in content
    assert "dropped" not in content[content.index("<h2>Mined negatives") : content.index("<h2>Settings")]


def change(path: Path) -> None:
    path.write_text(path.read_text() + "more\n")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda run: write_result(run / "results", 0, {"ndcg": 0.1, "mrr": 0.1}), "by a version that kept none."),
        (lambda run: change(run / "collection/msmarco/collection.tsv"), "out: collection.tsv: has "),
        (lambda run: (run / "collection/msmarco/collection.tsv").unlink(), "out: collection.tsv: no such file"),
        (lambda run: change(run / "ann_data/ann_training_examples_0.json"), "examples_0.json: is damaged"),
    ],
)
def test_where_examples_cannot_be_shown_the_report_says_why_without_the_machines_folders(run, capsys, spoil, reason):
    keep_examples(run, {"min_margin 0.5": 1500})
    spoil(run)
    call(report, "--run_dir", run)
    page = Page(run / "report.html")
    assert reason in page.text
    assert str(run) not in page.text
    assert "the examples of mined negatives are left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("results/dev/step-0", r"step-0/per_query\.json: no such file"),
        ("results/results.json", r"results\.json"),
        ("results/comparison.json", r"comparison\.json"),
        ("ann_data/clusters_0/assignment.npy", r"assignment\.npy: cannot be read"),
        ("collection/msmarco/queries.train.tsv", r"queries\.train\.tsv: no such file; the report shows queries"),
        ("settings.train", r"settings\.train: no such file"),
    ],
)
def test_what_is_missing_is_named(run, path, reason):
    path = run / path
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(InputError, match=reason):
        call(report, "--run_dir", run)
    assert not (run / "report.html").exists()


def test_queries_that_changed_since_are_refused(run):
    path = run / "collection" / "msmarco" / "queries.train.tsv"
    path.write_text(path.read_text().partition("\n")[2])
    with pytest.raises(InputError, match="lacks query '0' of"):
        call(report, "--run_dir", run)
