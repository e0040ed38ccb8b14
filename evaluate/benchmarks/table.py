"""Gathers what the benchmarks wrote into one JSON file and one page of Markdown tables.

    python evaluate/benchmarks/table.py --out_dir runs/benchmarks

Reads the benchmarks' JSON files in the folder (training-….json, search-….json and so on), and writes benchmarks.json
and benchmarks.md there. Nothing is measured here: the tables can be made again at any time.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from evaluate.benchmarks import quality_table
from evaluate.reporting.tables import markdown
from utils.runtime.arguments import parse, required
from utils.runtime.errors import InputError, run
from utils.stores.files import atomic_file, read_json, write_json


@dataclass
class Arguments:
    out_dir: str = required("folder with the benchmarks' results, which gets benchmarks.json and benchmarks.md")


def tokenizing_section(result: dict) -> str:
    """A table of evaluate/benchmarks/tokenizing.py: a contender a line."""
    return (
        f"## Tokenizing\n\n{_machine(result)}, {result['settings']['rounds']} rounds of {result['texts']:,} texts, "
        f"{result['tokens']:,} tokens.\n\n{markdown(_speeds(result))}"
    )


def encoding_section(result: dict) -> str:
    """A table of evaluate/benchmarks/encoding.py: a contender a line."""
    return (
        f"## Encoding: {result['layers']} layers, {result['width']} wide, {result['dtype']}, {_reading(result)}\n\n"
        f"{_machine(result)}, {result['settings']['rounds']} rounds of {result['texts']:,} texts, "
        f"{result['tokens']:,} tokens. Least cosine of the contenders' vectors of a text: "
        f"{result['least_cosine']:.6f}.\n\n{markdown(_speeds(result, useful_share='useful share of peak'))}"
    )


def training_section(result: dict) -> str:
    """A table of evaluate/benchmarks/training.py: a contender a line."""
    settings, batch, peak = (result[part] for part in ("settings", "batch", "peak_operations_a_second"))
    contenders = result["contenders"]
    references = list(next(iter(contenders.values()))["time_to"])
    heading = [
        *("", "seconds a step", "triplets a second", "tokens a second", *(f"time to {name}" for name in references)),
        *("peak GiB", "useful share of peak", "input share", "padding share", "repeated share"),
    ]
    lines = [
        [
            name,
            f"{one['median_seconds']:.3f}",
            f"{one['triplets_per_second']:.1f}",
            f"{one['tokens_per_second']:,.0f}",
            *(f"{one['time_to'][reference]['median_ratio']:.2f}" for reference in references),
            f"{one['peak_gib']:.2f}",
            *(f"{one[share]:.1%}" for share in ("useful_share", "input_share", "padding_share", "repeated_share")),
        ]
        for name, one in contenders.items()
    ]
    low, middle, high = (peak[name] / 1e9 for name in ("lowest", "median", "highest"))
    return (
        f"## Training: {settings['shape']}, {result['dtype']}, {_reading(result)}\n\n"
        f"{_machine(result)}, {settings['rounds']} rounds. A batch: {settings['triplets']} triplets, "
        f"{batch['distinct_texts']:.0f} distinct texts, {batch['distinct_tokens']:,.0f} tokens, "
        f"{batch['useful_operations'] / 1e9:,.0f} useful GFLOP. Peak in matrix products: {middle:,.0f} GFLOP/s "
        f"({low:,.0f} to {high:,.0f} between rounds). Of a process's memory, {result['libraries_gib']:.2f} GiB are "
        f"there before it makes a model.\n\n{markdown([heading, *lines])}"
    )


def group_gradients_section(result: dict) -> str:
    """A table of evaluate/benchmarks/group_gradients.py: a contender a line."""
    processes = f"{result['processes']} process{'es' * (result['processes'] > 1)}"
    lines = [
        [
            name,
            f"{one['median_seconds']:.3f}",
            f"{one['ratio']:.2f}",
            f"{one['peak_gib']:.2f}" if "peak_gib" in one else "-",
        ]
        for name, one in result["contenders"].items()
    ]
    return (
        f"## Group gradients: {result['shape']}, {result['dtype']}, {processes}\n\n"
        f"{_machine(result)}. A batch of a process: {result['triplets']} triplets, {result['tokens']:,} tokens, "
        f"{result['clusters_in_a_batch']} clusters.\n\n"
        f"{markdown([['', 'seconds a step', 'time to erm', 'peak GiB'], *lines])}"
    )


def sketch_error_section(result: dict) -> str:
    """A table of evaluate/benchmarks/sketch_error.py: a sketch dimension a line."""
    heading = ["numbers a cluster", "cosine, rms error", "cosine, largest", "weight, largest relative error"]
    lines = [
        [
            str(row["dim"]),
            f"{row['cosine_rms_error']:.4f}",
            f"{row['cosine_largest_error']:.4f}",
            f"{row['weight_largest_relative_error']:.5f}",
        ]
        for row in result["rows"]
    ]
    return f"## Sketch errors: {result['settings']['shape']}\n\n{markdown([heading, *lines])}"


def search_section(result: dict) -> str:
    """A table of evaluate/benchmarks/search.py: a contender a line."""
    settings, peak = result["settings"], result["peak_operations_a_second"]
    heading = ["", "seconds", "queries a second", "times as fast as faiss", "share of the product rate", "peak GiB"]
    lines = [
        [
            name,
            f"{one['median_seconds']:.2f}",
            f"{one['queries_per_second']:,.0f}",
            f"{one['times_as_fast']:.2f}",
            f"{one['share_of_products']:.1%}",
            f"{one['peak_gib']:.2f}",
        ]
        for name, one in result["contenders"].items()
    ]
    return (
        f"## Search: {settings['passages']:,} passages of {settings['dimensions']} dimensions, {result['dtype']}\n\n"
        f"{_machine(result)}, {settings['rounds']} rounds; {settings['queries']:,} queries, top {settings['k']}. "
        f"Products of square matrices: {peak['median'] / 1e9:,.0f} GFLOP/s ({peak['lowest'] / 1e9:,.0f} to "
        f"{peak['highest'] / 1e9:,.0f} between searches). The passages' file has {result['file_gib']:.2f} GiB.\n\n"
        f"{markdown([heading, *lines])}"
    )


def mining_section(result: dict) -> str:
    """A table of evaluate/benchmarks/mining.py: a contender a line."""
    settings, contenders = result["settings"], result["contenders"]
    heading = [
        "",
        "seconds",
        *(f"time to {name}" for name in contenders),
        "triplets",
        "GiB of its own",
        "GiB resident",
    ]
    lines = [
        [
            name,
            f"{one['median_seconds']:.1f}",
            *(f"{one['time_to'][other]['median_ratio']:.2f}" for other in contenders),
            f"{one['triplets']:,}",
            f"{one['own_gib']:.2f}",
            f"{one['resident_gib']:.2f}",
        ]
        for name, one in contenders.items()
    ]
    stores = ", ".join(f"{name} {one['texts']:,}" for name, one in result["collection"].items())
    return (
        f"## Mining: {result['dtype']}\n\n"
        f"{_machine(result)}, {settings['rounds']} rounds. Texts: {stores}. Top {settings['topk']}, "
        f"{settings['negatives']} negatives a query.\n\n{markdown([heading, *lines])}"
    )


def growth_section(result: dict) -> str:
    """A table of evaluate/benchmarks/growth.py: a collection a line; seconds and then memory of each stage."""
    settings, stages = result["settings"], list(result["rows"][0]["stages"])
    heading = [
        *("passages", *(f"{name}, seconds" for name in stages), "encoded a second", "searched a second"),
        *(f"{name}, GiB of its own" for name in stages),
        "GiB resident",
    ]
    lines = [
        [
            f"{row['passages']:,}",
            *(f"{row['stages'][name]['median_seconds']:.1f}" for name in stages),
            *(f"{row[rate]:,.0f}" for rate in ("encoded_a_second", "searched_a_second")),
            *(f"{row['stages'][name]['own_gib']:.2f}" for name in stages),
            f"{max(stage['resident_gib'] for stage in row['stages'].values()):.2f}",
        ]
        for row in result["rows"]
    ]
    return (
        f"## Growth of mining: {settings['shape']}\n\n"
        f"{_machine(result)}, {settings['rounds']} rounds, {settings['queries']:,} training queries.\n\n"
        f"{markdown([heading, *lines])}"
    )


def reading_section(result: dict) -> str:
    """A table of evaluate/benchmarks/reading.py: a contender a line."""
    settings = result["settings"]
    heading = ["", "seconds", "texts a second", "times as fast", "GiB of its own", "GiB resident"]
    lines = [
        [
            name,
            f"{one['median_seconds']:.1f}",
            f"{one['texts_per_second']:,.0f}",
            f"{one['times_as_fast']:.2f}",
            f"{one['own_gib']:.2f}",
            f"{one['resident_gib']:.2f}",
        ]
        for name, one in result["contenders"].items()
    ]
    return (
        f"## Reading training data: {settings['pairs']:,} pairs\n\n"
        f"{_machine(result)}, {settings['rounds']} rounds. A file of {result['read_gib']:.2f} GiB, of which ours "
        f"makes {result['written_gib']:.2f} GiB; {settings['repeated']:.0%} of the queries and of the passages are "
        f"repeated.\n\n{markdown([heading, *lines])}"
    )


def quality_section(result: dict) -> str:
    """The tables of evaluate/benchmarks/quality.py: of each budget a contender a line."""
    dev, zero_shot = (result["queries"][name] for name in ("dev", "zero_shot"))
    return (
        f"## Quality: {result['dtype']}\n\n"
        f"{_machine(result)}. {dev:,} dev and {zero_shot:,} zero-shot queries; {result['settings']['samples']} "
        f"samples a step.\n\n{quality_table.page(result)}"
    )


SECTIONS: dict[str, Callable[[dict], str]] = {
    "tokenizing": tokenizing_section,
    "encoding": encoding_section,
    "training": training_section,
    "group_gradients": group_gradients_section,
    "sketch_error": sketch_error_section,
    "search": search_section,
    "mining": mining_section,
    "growth": growth_section,
    "reading": reading_section,
    "quality": quality_section,
}


def _speeds(result: dict, **shares: str) -> list[list[str]]:
    """What `contenders.summarize` gave of each contender, and `shares` of it, under a heading."""
    heading = ["", "seconds", "texts a second", "tokens a second", "times as fast", "peak GiB", *shares.values()]
    lines = [
        [
            name,
            f"{one['median_seconds']:.3f}",
            f"{one['texts_per_second']:,.1f}",
            f"{one['tokens_per_second']:,.0f}",
            f"{one['times_as_fast']:.2f}",
            f"{one['peak_gib']:.2f}",
            *(f"{one[share]:.1%}" for share in shares),
        ]
        for name, one in result["contenders"].items()
    ]
    return [heading, *lines]


def _reading(result: dict) -> str:
    return result.get("reading", "first token")  # results that do not say it are of when there was no other


def _machine(result: dict) -> str:
    return f"{result['device']}, {result['threads']} thread{'s' * (result['threads'] > 1)}"


def main() -> None:
    folder = Path(parse(Arguments, __doc__).out_dir)
    results = {
        path.name: (section, read_json(path))
        for name, section in SECTIONS.items()
        for path in sorted([*folder.glob(f"{name}.json"), *folder.glob(f"{name}-*.json")])
    }
    if not results:
        raise InputError("holds no result of a benchmark; run one of evaluate/benchmarks/ first", folder)
    page = "\n".join(["# Benchmarks\n", *(section(result) for section, result in results.values())])
    write_json(folder / "benchmarks.json", {name: result for name, (_, result) in results.items()})
    with atomic_file(folder / "benchmarks.md") as handle:
        handle.write(page)
    print(page, end="")


if __name__ == "__main__":
    run(main)
