"""Writes a run's report: one page that opens without a network, and its pictures, as files and into TensorBoard.

    python evaluate/report.py --run_dir runs/demo

RUN_DIR/report.html holds everything that it shows: tables, and pictures as data. It has no script and fetches
nothing, which its Content-Security-Policy also forbids. The pictures are in RUN_DIR/results/pictures and, as the run
"report", in RUN_DIR/logs too, where the last checkpoint's metrics are added to the curves. What is shown was measured
before: metrics by results_table.py and compare_runs.py, clusters and negatives by mining, weights and losses by
training.

Clusters are those of the first episode, by the initial checkpoint; the weights and losses of a later episode are of
clusters of its own. Groups by name, where a run has them in their place, are the same in all episodes. Of a path only
the last folder's name is shown. Queries and names from a collection are anybody's text: all of it is made printable,
and jinja2 escapes it.
"""

import io
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.image import imread
from torch.utils.tensorboard import SummaryWriter

from evaluate.compare_runs import read_comparison
from evaluate.reporting.finished_run import (
    Gains,
    TrainedEpisode,
    checkpoint_metrics,
    cluster_gains,
    read_results,
    trained_episodes,
)
from evaluate.reporting.mined_negatives import ShownExample, filtered_episodes, shown_examples, why_left_out
from evaluate.reporting.objectives import in_short, name_of
from evaluate.reporting.report_pictures import (
    Clusters,
    Picture,
    picture_of_clusters,
    picture_of_episode,
    picture_of_gains,
    picture_of_metrics,
    shown_episodes,
)
from utils.runtime.arguments import parse, required
from utils.runtime.errors import InputError, run
from utils.runtime.logs import say
from utils.runtime.plain_text import printable, without_folders
from utils.stores.embedding_store import has_embeddings
from utils.stores.files import atomic_file
from utils.stores.run_folder import RunFolder
from utils.stores.training_log import STEP_CURVES, log_evaluation

BASELINE = "BM25"  # the row that is not of a checkpoint
TEMPLATE = "report.html.jinja"
FACTS = {  # the settings that matter most, and what they say
    "CHECKPOINT": "initial checkpoint",
    "DATA_DIR": "training collection",
    "ZERO_SHOT": "zero-shot collections",
    "CLUSTERS": "clusters",
    "QUERY_GROUPS": "groups",
    "TOPK": "passages ranked a training query",
    "NEGATIVES": "negatives drawn of them",
    "SKIP_RANKS": "best ranks skipped",
    "MAX_RELATIVE_SCORE": "negatives' highest share of the positive's score",
    "MIN_MARGIN": "negatives' least margin in standard deviations",
    "LOSS": "loss",
    "BATCH_SIZE": "samples a process and backward pass",
    "OPTIMIZER": "optimizer",
    "LEARNING_RATE": "learning rate",
    "SEED": "seed",
}


@dataclass
class Arguments:
    run_dir: str = required("the folder of a run of commands/run_ance.sh")


def cluster_table(clusters: Clusters, gains: Gains, episode: TrainedEpisode | None) -> list[dict]:
    """A row a cluster, the largest first, with the means of its weights and losses that `episode` logged.

    Means, as iDRO leaves the least weight to whatever cluster the batch before did not hold: the last weight says
    little more than that.
    """
    rows = []
    for i in np.argsort(-clusters.sizes, kind="stable").tolist():
        curves = [curves.get(i) for curves in (episode.weights, episode.losses)] if episode else [None, None]
        weight, loss = (float(curve.values.mean()) if curve and len(curve.values) else None for curve in curves)
        rows.append(
            {
                "name": clusters.sample.names[i] if clusters.sample.names else i,
                "size": int(clusters.sizes[i]),
                "words": clusters.words[i],
                "examples": clusters.examples(i),
                "queries": int(gains.queries[i]),
                "before": _number(gains.before[i]),
                "after": _number(gains.after[i]),
                "weight": weight,
                "loss": loss,
            }
        )
    return rows


def read_examples(run: RunFolder, number: int) -> tuple[list[ShownExample], str]:
    """The examples of an episode, and why there are none."""
    try:
        return shown_examples(run, number), ""
    except InputError as error:
        say(f"warning: {error}; the examples of mined negatives are left out")
        return [], why_left_out(error, run)


def steps_table(episodes: Sequence[TrainedEpisode]) -> list[dict]:
    """A row an episode: what its steps held in the mean; none of a version that did not log it."""
    return [
        {"episode": episode.number + 1, **{name: episode.step_clusters.get(name) for name in STEP_CURVES}}
        for episode in episodes
        if episode.step_clusters
    ]


def _shown(value: object) -> object:
    """What stands for a value on the page, before it is escaped; `Markup` is of the template itself."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def render(run: RunFolder) -> tuple[str, list[Picture]]:
    """The page and its pictures."""
    table, comparison = read_results(run), read_comparison(run.path / "results" / "comparison.json")
    episodes = [episode for episode in trained_episodes(run) if episode.first < table.step]
    clusters = Clusters.read(run, 0)
    gains = cluster_gains(run, 0, 0, table.step)
    shown = shown_episodes(episodes)
    first = next((episode for episode in shown if episode.number == 0), None)
    mined_last = episodes[-1].number if episodes else 0
    filtered, (examples, no_examples) = filtered_episodes(run), read_examples(run, mined_last)
    of_episodes = [picture_of_episode(run, episode, clusters) for episode in shown]
    drawn = {
        "metrics": picture_of_metrics(run, table),
        "gains": picture_of_gains(gains, clusters),
    }
    if has_embeddings(run.initial_embeddings, "train-query"):
        drawn["clusters"] = picture_of_clusters(clusters, run.initial_embeddings)
    else:
        say(f"warning: {run.initial_embeddings}: holds no embeddings of train-query: the map of clusters is left out")
    objective = name_of(run)
    settings = {name: without_folders(value) for name, value in run.settings.items()}
    facts = settings | {"ZERO_SHOT": ", ".join(table.zero_shot)}
    facts["DATA_DIR"] = settings.get("DATA_FROM") or settings["DATA_DIR"]  # what the user calls it
    facts["CLUSTERS" if clusters.sample.names else "QUERY_GROUPS"] = ""
    initial = next(cells for label, cells in table.rows if label != BASELINE)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("reporting")),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    page = environment.get_template(TEMPLATE).render(
        name=run.path.resolve().name,
        objective=in_short(objective, clusters.kind),
        kind=clusters.kind,
        weighted=objective != "erm",
        facts={label: facts[name] for name, label in FACTS.items() if facts.get(name, "off") not in ("", "off")},
        last_step=table.step,
        columns=table.columns,
        tiles=[tile for tile in zip(table.columns, initial, table.rows[-1][1], strict=True) if None not in tile],
        rows=table.rows,
        comparison=comparison,
        pictures=drawn,
        of_episodes=of_episodes,
        steps=steps_table(shown),
        all_episodes=len(episodes),
        clusters=cluster_table(clusters, gains, first),
        has_weights=first is not None,
        filtered=filtered,
        filter_names=list(dict.fromkeys(name for _, filters in filtered for name in filters["dropped"])),
        mined_last=mined_last,
        examples=examples,
        no_examples=no_examples,
        settings=settings,
    )
    return page, [*drawn.values(), *of_episodes]


def write_pictures(run: RunFolder, drawn: Sequence[Picture], step: int) -> None:
    """As PNG files, and as images of the run "report" in TensorBoard, which replace those of an earlier report."""
    for picture in drawn:
        with atomic_file(run.path / "results" / "pictures" / f"{picture.name}.png", "wb") as handle:
            handle.write(picture.content)
    folder = run.path / "logs" / "report"
    shutil.rmtree(folder, ignore_errors=True)
    with SummaryWriter(str(folder)) as writer:
        for picture in drawn:
            image = imread(io.BytesIO(picture.content))[..., :3]
            writer.add_image(picture.name, image, step, dataformats="HWC")


def log_last_checkpoint(run: RunFolder, step: int) -> None:
    """Its metrics into TensorBoard, beside those of the checkpoints before, which mining has measured."""
    results = run.path / "results"
    zero_shot = {name: checkpoint_metrics(results / "zero_shot" / name) for name in read_results(run).zero_shot}
    log_evaluation(
        run.path / "logs",
        step,
        checkpoint_metrics(results / "dev").get(step, {}),
        {name: of_steps[step] for name, of_steps in zero_shot.items() if step in of_steps},
    )


def main() -> None:
    args = parse(Arguments, __doc__)
    run_folder = RunFolder(Path(args.run_dir))
    page, drawn = render(run_folder)
    step = read_results(run_folder).step
    write_pictures(run_folder, drawn, step)
    log_last_checkpoint(run_folder, step)
    path = run_folder.path / "report.html"
    with atomic_file(path) as handle:
        handle.write(page)
    say(f"report: {path}")


if __name__ == "__main__":
    run(main)
