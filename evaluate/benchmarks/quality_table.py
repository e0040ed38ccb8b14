"""The runs of evaluate/benchmarks/quality.py, a JSON file each, and the tables that are made of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluate.benchmarks.quality_budgets import Budgets
from evaluate.compare_objectives import INITIAL, Values, as_json, cell, intervals, measure
from evaluate.dev_clusters import DevClusters
from evaluate.metrics_file import COLLAPSED
from evaluate.reporting.tables import markdown
from utils.stores.files import read_json, write_json

LIBRARY = "sentence-transformers"
COLUMNS = ("dev nDCG@10", "worst cluster nDCG@10", "zero-shot nDCG@10")
FIRST_SEED = 1  # that tries all rates
BUDGETS = {"seconds": "as many seconds", "texts": "as many texts encoded"}


@dataclass(frozen=True)
class Runs:
    """The folder of the results. One is of a contender, steps, rate and seed, or of the initial checkpoint."""

    folder: Path

    def _path(self, *key: object) -> Path:
        name, *rest = key
        return self.folder / f"{'-'.join([str(name).replace(' ', '_'), *map(str, rest)])}.json"

    def find(self, name: str, *key: object) -> dict | None:
        """The result of a run by its contender, steps, rate and seed; None where it was not made."""
        path = self._path(name, *key)
        return read_json(path, "remove it, and it is made again") if path.exists() else None

    def write(self, result: dict) -> None:
        """Writes a run's result."""
        write_json(
            self._path(*(result[part] for part in ("contender", "steps", "rate", "seed") if part in result)), result
        )

    def of(self, name: str, steps: int) -> list[dict]:
        """A contender's results with so many steps, by rate and seed."""
        found = [read_json(path, "remove it, and it is made again") for path in sorted(self.folder.glob("*.json"))]
        found = [one for one in found if one["contender"] == name and one.get("steps") == steps]
        return sorted(found, key=lambda one: (one["rate"], one["seed"]))


def dev_mean(result: dict) -> float:
    """A run's nDCG@10 on the dev queries."""
    return float(np.mean(list(result["dev"].values())))


def best_rate(results: Sequence[dict]) -> float:
    """The rate with the best dev nDCG@10 in the first seed; of equals the lowest."""
    first = [one for one in results if one["seed"] == FIRST_SEED]
    return max(first, key=lambda one: (dev_mean(one), -one["rate"]))["rate"]


def values_of(results: Sequence[dict], clusters: DevClusters) -> Values:
    """The values a query of these runs, with the dev queries in the clusters' order."""
    zero_shot = sorted(results[0]["zero_shot"])
    return Values(
        np.array([[one["dev"][query] for query in clusters.ids] for one in results]),
        {"zero shot": np.array([[one["zero_shot"][query] for query in zero_shot] for one in results])},
        any(one["collapsed"] for one in results),
    )


def reached(values: Values, clusters: DevClusters) -> np.ndarray:
    """The `COLUMNS` of each seed, float64 (seeds, 3)."""
    everything = {"": np.arange(values.dev.shape[1])}
    everything |= {name: np.arange(of_set.shape[1]) for name, of_set in values.zero_shot.items()}
    return measure(values, clusters, np.arange(len(values.dev)), everything)


def summarize(runs: Runs, budgets: Budgets, clusters: DevClusters) -> dict:
    """Of each budget its contenders with rates tried, rate chosen, means and differences from the library's."""
    library = runs.of(LIBRARY, budgets.library_steps)
    content: dict = {"columns": COLUMNS, "budgets": {}}
    content["initial"] = as_json(reached(values_of([runs.find(INITIAL)], clusters), clusters))[0]
    for budget in BUDGETS:
        of_budget = {LIBRARY: library} | {
            name: runs.of(name, budgets.most_steps(budget, name)) for name in budgets.names
        }
        of_budget = {
            name: found for name, found in of_budget.items() if any(one["seed"] == FIRST_SEED for one in found)
        }
        if set(of_budget) - {LIBRARY}:
            content["budgets"][budget] = {
                name: {"seconds": budgets.seconds(name, found[0]["steps"])} | _summary(found, library, clusters)
                for name, found in of_budget.items()
            }
    return content


def _summary(results: Sequence[dict], library: Sequence[dict], clusters: DevClusters) -> dict:
    rate = best_rate(results)
    chosen = {one["seed"]: one for one in results if one["rate"] == rate}
    values = values_of([*chosen.values()], clusters)
    summary = {
        "rate": rate,
        "tried": {f"{one['rate']:g}": dev_mean(one) for one in results if one["seed"] == FIRST_SEED},
        "steps": results[0]["steps"],
        "seeds": sorted(chosen),
        "texts": float(np.mean([one["texts"] for one in chosen.values()])),
        "reached": as_json(reached(values, clusters)),
        "collapsed": values.collapsed,
    }
    if not any(one["seed"] == FIRST_SEED for one in library):
        return summary
    baseline = {one["seed"]: one for one in library if one["rate"] == best_rate(library)}
    both = sorted(set(chosen) & set(baseline))
    pair = {name: values_of([of[seed] for seed in both], clusters) for name, of in (("", baseline), ("own", chosen))}
    gain = reached(pair["own"], clusters).mean(0) - reached(pair[""], clusters).mean(0)
    return summary | {
        "compared_seeds": both,
        "difference": as_json(gain[None])[0],
        "interval": as_json(intervals(pair, clusters, seed=0)["own"]),
    }


def page(content: dict) -> str:
    """The tables as Markdown."""
    parts = []
    for budget, of_budget in content["budgets"].items():
        parts += [
            f"With {BUDGETS[budget]}, means over seeds (lowest to highest):",
            markdown(_means(content, of_budget)),
        ]
        parts += [f"Differences from {LIBRARY}, with 95% intervals:", markdown(_differences(of_budget))]
        parts += ["Dev nDCG@10 of the learning rates, seed 1:", markdown(_rates(of_budget))]
    return "\n".join(parts)


def _array(rows: list) -> np.ndarray:
    return np.array(rows, dtype=float)  # None becomes nan


def _means(content: dict, of_budget: dict) -> list[list[str]]:
    heading = ["", "rate", "steps", "seeds", "seconds", "texts", *COLUMNS]
    initial = _array([content["initial"]])[0]
    lines = [[INITIAL, *[""] * 5, *(cell(value, value, value) for value in initial)]]
    for name, one in of_budget.items():
        found = _array(one["reached"])
        lines.append(
            [
                f"{name} {COLLAPSED}" if one["collapsed"] else name,
                f"{one['rate']:g}",
                f"{one['steps']:,}",
                str(len(one["seeds"])),
                f"{one['seconds']:,.0f}",
                f"{one['texts']:,.0f}",
                *map(cell, found.mean(0), found.min(0), found.max(0)),
            ]
        )
    return [heading, *lines]


def _differences(of_budget: dict) -> list[list[str]]:
    lines = [
        [
            name,
            str(len(one["compared_seeds"])),
            *(
                cell(gain, *ends, "+.3f")
                for gain, ends in zip(_array(one["difference"]), _array(one["interval"]), strict=True)
            ),
        ]
        for name, one in of_budget.items()
        if name != LIBRARY and "difference" in one
    ]
    return [["", "seeds", *COLUMNS], *lines]


def _rates(of_budget: dict) -> list[list[str]]:
    rates = sorted({rate for one in of_budget.values() for rate in one["tried"]}, key=float)
    lines = [
        [name, *(f"{one['tried'][rate]:.4f}" if rate in one["tried"] else "-" for rate in rates)]
        for name, one in of_budget.items()
    ]
    return [["", *rates], *lines]
