"""What a GPU reaches: encoding, training steps and exact search, as shares of its peak and beside other libraries.

    bash commands/run_gpu_check.sh

That runs the tests that need a GPU, and then this. It needs no network and no checkpoint: texts are generated, with
lengths like MS MARCO's, and weights are random. All is in bfloat16 (on a GPU that lacks it, and in search, in
float16). Stages:

    peak        products of square matrices
    encoding    of passages, by first tokens, at each of --shapes; in turn with SentenceTransformer.encode_document,
                whose weights are of that type, and where flash-attn is installed with that too
    training    steps of ERM and iDRO at each shape; in turn with sentence-transformers' own trainer, likewise
    search      the 200 best of a million vectors for 100,000 queries; in turn with faiss's where it has GPUs

OUT_DIR gets gpu_check.md, a table, and gpu_check.json, written anew after every stage. evaluate/costs.py
--measured_gpu reads the latter. It has

    device, versions, settings, tests, seconds (of each stage), left_out (what, why)
    peak_operations_a_second    of products of matrices in `dtype`; shares are of it
    encoding, training, search  `useful_share` of the first of --shapes (of training, erm's and idro's), and by shape
                                what evaluate/benchmarks/encoding.py, training.py and search.py measured

Each stage has a time that it should end in. One that there is no time left for, that fails, or whose library is not
installed is left out, and it is said why. A stage that fails makes the exit status 1.
"""

import importlib.util
import statistics
import sys
import tempfile
import time
import traceback
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from evaluate.benchmarks import contenders, encoding, generated, search, training
from evaluate.benchmarks.library_model import FLASH, LIBRARY
from evaluate.reporting.tables import markdown
from utils.runtime.arguments import check_at_least_one, option, parse
from utils.runtime.errors import InputError, first_line, run
from utils.runtime.logs import say
from utils.runtime.precision import choose_precision
from utils.stores.files import atomic_file, write_json

SECONDS = {"peak": 10, "texts": 20, "encoding": 50, "training": 60, "search": 90}  # of a stage, on one H100
NEEDS = {LIBRARY: ["sentence_transformers"], FLASH: ["sentence_transformers", "flash_attn"]}
TRAINER_NEEDS = ["datasets", "accelerate"]


@dataclass
class Arguments:
    out_dir: str = option("runs/gpu_check", "where gpu_check.md and gpu_check.json go")
    can_run: bool = option(
        False, "only tell, by the exit status, whether this Python sees a GPU and has what is needed"
    )
    tests: str = option("", "pytest's JUnit file of the tests that ran before, for the table")
    shapes: list[str] = field(
        default_factory=lambda: ["base", "minilm"], metadata={"help": f"of encoders: {', '.join(contenders.SHAPES)}"}
    )
    texts: int = option(20_000, "passages that are encoded")
    triplets: int = option(64, "triplets a step")
    steps: int = option(20, "steps of each contender that count")
    rounds: int = option(3, "turns of encoding and search that count, at most")
    passages: int = option(1_000_000, "vectors that are searched")
    queries: int = option(100_000, "queries that they are searched for")
    dimensions: int = option(768, "of a vector")
    product_size: int = option(8_192, "rows of the square matrices of the peak")
    most_seconds: int = option(360, "seconds in which all stages should end")

    def __post_init__(self) -> None:
        check_at_least_one(self, "texts", "triplets", "steps", "rounds", "passages", "queries", "dimensions")
        if not self.shapes:
            raise InputError("--shapes names none")
        for shape in self.shapes:
            contenders.check_shape(shape)


def missing(modules: list[str]) -> str | None:
    """The first of these modules that is not installed."""
    return next((name for name in modules if importlib.util.find_spec(name) is None), None)


class Check:
    """The result as it grows, and where it is written. `failed`: something raised an exception."""

    def __init__(self, args: Arguments, device: torch.device) -> None:
        self.args, self.device, self.failed = args, device, False
        self.begun = time.perf_counter()
        libraries = ("torch", "transformers", LIBRARY, "flash-attn", "faiss-cpu", "faiss-gpu")
        self.result = {
            **contenders.describe(args, libraries, ("out_dir", "can_run", "tests"), device),
            "gpu_gib": torch.cuda.get_device_properties(device).total_memory / 2**30,
            "tests": read_tests(args.tests) if args.tests else None,
            "seconds": {},
            "left_out": [],
        }

    def leave_out(self, what: str, why: str) -> None:
        self.result["left_out"].append({"what": what, "why": why})
        say(f"{what}: left out: {why}")

    def available(self, needs: dict[str, list[str]], where: str) -> list[str]:
        """The contenders whose modules are installed; the others are noted."""
        lacking = {name: missing(modules) for name, modules in needs.items()}
        for name, module in lacking.items():
            if module:
                self.leave_out(f"{where}: {name}", f"the module {module} is not installed")
        return [name for name, module in lacking.items() if not module]

    def stage(self, name: str, measure: Callable[..., str], *arguments: Any) -> None:
        """Runs a stage, `measure(self, *arguments)`, says the line that it returns, and writes what there is."""
        start, kind = time.perf_counter(), name.partition(",")[0]
        if start - self.begun + SECONDS[kind] > self.args.most_seconds:
            self.leave_out(name, f"no time left of {self.args.most_seconds} seconds")
        else:
            try:
                say(f"{name}: {measure(self, *arguments)}")
            except Exception as error:
                self.note_failure(name, error)
        self.result["seconds"][name] = time.perf_counter() - start
        write_result(Path(self.args.out_dir), self.result)

    def note_failure(self, what: str, error: Exception) -> None:
        self.failed = True
        traceback.print_exception(error)
        self.leave_out(what, f"failed: {type(error).__name__}: {first_line(error)}")

    def with_others(
        self, where: str, ours: list[str], others: list[str], measure: Callable[[list[str]], dict]
    ) -> dict:
        """What is measured of ours and the others, or of ours alone where the others' libraries fail."""
        try:
            return measure(ours + others)
        except Exception as error:
            if not others:
                raise
            self.note_failure(f"{where}: {', '.join(others)}", error)
            return measure(ours)

    def share_of_peak(self, share: float, of: dict) -> float:
        """A share of the peak that a stage measured itself, as one of the result's peak."""
        return share * of["peak_operations_a_second"]["median"] / self.result["peak_operations_a_second"]


def read_tests(path: str) -> dict[str, int]:
    """How many tests there were, and how many failed or were skipped, by pytest's JUnit file."""
    try:
        suites = ElementTree.parse(path).getroot().iter("testsuite")
        counts = [[int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped")] for suite in suites]
    except (OSError, ElementTree.ParseError, TypeError, ValueError):
        raise InputError("is no JUnit file of pytest's; did the tests run to their end?", path) from None
    ran, failures, errors, skipped = (sum(column) for column in zip(*counts, strict=True))
    return {"passed": ran - failures - errors - skipped, "failed": failures + errors, "skipped": skipped}


def measure_peak(check: Check) -> str:
    """The peak, once the GPU has left its resting clocks."""
    size, dtype = check.args.product_size, choose_precision(True, check.device).dtype
    rates = [contenders.product_rate(size, dtype, check.device) for _ in range(20)]
    check.result["dtype"] = str(dtype).removeprefix("torch.")
    check.result["peak_operations_a_second"] = peak = statistics.median(rates[10:])
    return f"{peak / 1e12:,.0f} TFLOP/s in products of square matrices of {size} rows in {check.result['dtype']}"


def write_texts(check: Check, folder: Path) -> str:
    args = check.args
    for shape in args.shapes:
        generated.write_checkpoint(folder / shape, shape)
    queries = max(64, args.texts // 10)
    generated.write_collection(folder / "collection", folder / args.shapes[0], args.texts, queries)
    return f"{args.texts:,} passages and {queries:,} queries written"


def measure_encoding(check: Check, folder: Path, shape: str, others: list[str]) -> str:
    args, where = check.args, f"encoding, {shape}"

    def measure(names: list[str]) -> dict:
        settings = encoding.Arguments(
            out_dir="",
            collection_dir=str(folder / "collection"),
            checkpoint=str(folder / shape),
            texts=args.texts,
            rounds=args.rounds,
            batch_size=512,  # the miner's default in run_ance.sh
            library_batch_size=128,  # its default, 32, is small for a GPU
            max_seq_length=generated.MAX_SEQ_LENGTH,
            product_size=args.product_size,
            most_seconds=SECONDS["encoding"] - 20,  # loading takes some
            contenders=names,
            fp16=True,
        )
        with tempfile.TemporaryDirectory(dir=folder) as own:
            return encoding.measure(settings, Path(own), check.device)

    result = check.with_others(where, [encoding.OURS], others, measure)
    for one in result["contenders"].values():
        one["useful_share"] = check.share_of_peak(one["useful_share"], result)
    ours = result["contenders"][encoding.OURS]
    of_all = check.result.setdefault("encoding", {"useful_share": ours["useful_share"], "shapes": {}})
    of_all["shapes"][shape] = result
    return f"{ours['texts_per_second']:,.0f} passages a second, {ours['useful_share']:.1%} of the peak"


def measure_training(check: Check, folder: Path, shape: str, others: list[str], optimizer: str) -> str:
    args, where = check.args, f"training, {shape}"

    def measure(names: list[str]) -> dict:
        settings = training.Arguments(
            out_dir="",
            collection_dir=str(folder / "collection"),
            data_dir=str(folder / "collection" / "preprocessed"),
            checkpoint=str(folder / shape),
            shape=shape,
            triplets=args.triplets,
            rounds=args.steps,
            contenders=names,
            optimizer=optimizer,
            product_size=args.product_size,
            max_seq_length=generated.MAX_SEQ_LENGTH,
            max_query_length=generated.MAX_QUERY_LENGTH,
            fp16=True,
        )
        with tempfile.TemporaryDirectory(dir=folder) as own:
            return training.measure(settings, Path(own), check.device)

    result = check.with_others(where, ["erm", "idro"], others, measure)
    for one in result["contenders"].values():
        one["useful_share"] = check.share_of_peak(one["useful_share"], result)
    erm, idro = (result["contenders"][name] for name in ("erm", "idro"))
    result["idro_to_erm"] = idro["time_to"]["erm"]["ratio_of_medians"]
    kept = "useful_share", "triplets_per_second"
    main = {name: {key: one[key] for key in kept} for name, one in (("erm", erm), ("idro", idro))}
    of_all = check.result.setdefault("training", main | {"idro_to_erm": result["idro_to_erm"], "shapes": {}})
    of_all["shapes"][shape] = result
    return (
        f"{erm['triplets_per_second']:,.0f} triplets a second of ERM ({erm['useful_share']:.1%} of the peak), "
        f"{idro['triplets_per_second']:,.0f} of iDRO ({idro['useful_share']:.1%}), whose steps take "
        f"{result['idro_to_erm']:.2f} times as long"
    )


def measure_search(check: Check, folder: Path, others: list[str]) -> str:
    args = check.args

    def measure(names: list[str]) -> dict:
        settings = search.Arguments(
            out_dir=str(folder),
            passages=args.passages,
            queries=args.queries,
            dimensions=args.dimensions,
            k=min(200, args.passages),
            rounds=args.rounds,
            most_seconds=SECONDS["search"] - 40,  # drawing the vectors takes some
            contenders=names,
            product_size=args.product_size,
        )
        return search.measure(settings, check.device)

    result = check.with_others("search", ["ours"], others, measure)
    for one in result["contenders"].values():
        one["useful_share"] = check.share_of_peak(one["share_of_products"], result)
    ours = result["contenders"]["ours"]
    check.result["search"] = {"useful_share": ours["useful_share"], **result}
    return f"{ours['queries_per_second']:,.0f} queries a second, {ours['useful_share']:.1%} of the peak"


def faiss_on_gpus() -> str | None:
    """Why faiss cannot search on a GPU here, or None."""
    try:
        import faiss
    except ImportError:
        return "the module faiss is not installed"
    return None if faiss.get_num_gpus() else "the installed faiss is a CPU's: faiss-gpu is not installed"


def table(result: dict) -> str:
    """The page of a result: one table, and what is left out."""
    heading = ["", "a second", "share of the peak", "seconds", "times the other's seconds", "peak GiB on the GPU"]
    lines: list[list[str]] = []

    def add(name: str, unit: str, rate: float, one: dict, reference: float, peak_gib: float | None) -> None:
        lines.append(
            [
                name,
                f"{rate:,.0f} {unit}",
                f"{one['useful_share']:.1%}",
                f"{one['median_seconds']:.3f}",
                f"{one['median_seconds'] / reference:.2f}",
                "" if peak_gib is None else f"{peak_gib:.2f}",
            ]
        )

    for stage, unit, rate in (
        ("encoding", "passages", "texts_per_second"),
        ("training", "triplets", "triplets_per_second"),
        ("search", "queries", "queries_per_second"),
    ):
        measured = result.get(stage, {})
        for shape, one in ({"": measured} if stage == "search" else measured.get("shapes", {})).items():
            names = one.get("contenders", {})
            others = [name for name in names if name not in ("ours", "erm", "idro")]
            reference = names[others[0] if others else next(iter(names))]["median_seconds"] if names else 0.0
            for name, of_one in names.items():
                peak = of_one.get("gpu_peak_gib", of_one.get("peak_gib"))
                add(f"{stage}{', ' * bool(shape)}{shape}: {name}", unit, of_one[rate], of_one, reference, peak)
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    page = f"# GPU check: {result['device']}, {result['gpu_gib']:.0f} GiB\n\n{versions}\n\n"
    if tests := result["tests"]:
        page += f"Tests: {tests['passed']} passed, {tests['failed']} failed, {tests['skipped']} skipped.\n\n"
    else:
        page += "Tests: none were run, or not to their end.\n\n"
    if peak := result.get("peak_operations_a_second"):
        page += f"Peak, of products of matrices in {result['dtype']}: {peak / 1e12:,.0f} TFLOP/s.\n\n"
    if lines:
        page += markdown([heading, *lines]) + (
            "\nMedians over turns in one run. The other is the first contender of another library; where there is "
            "none, it is the first of ours.\n"
        )
    if "training" in result:
        ratios = (f"{one['idro_to_erm']:.2f} ({shape})" for shape, one in result["training"]["shapes"].items())
        page += f"\nA step of iDRO takes as many times as long as one of ERM: {', '.join(ratios)}.\n"
    if result["left_out"]:
        page += "\nLeft out:\n\n" + "".join(f"- {one['what']}: {one['why']}\n" for one in result["left_out"])
    return page


def write_result(folder: Path, result: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "gpu_check.json", result)
    with atomic_file(folder / "gpu_check.md") as handle:
        handle.write(table(result))


def check_can_run() -> None:
    """`InputError` where this Python cannot run the tests and the benchmarks."""
    if not torch.cuda.is_available():
        raise InputError("torch finds no CUDA device; a GPU, its driver and a torch with CUDA are needed")
    if missing(["pytest"]):
        raise InputError("pytest is not installed, which the tests need")


def main() -> None:
    args = parse(Arguments, __doc__)
    check_can_run()
    if args.can_run:
        return
    device = contenders.set_up_one_process(False)
    check = Check(args, device)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        check.stage("peak", measure_peak)
        check.stage("texts", write_texts, folder)
        others = check.available(NEEDS, "encoding")
        for shape in args.shapes:
            check.stage(f"encoding, {shape}", measure_encoding, folder, shape, others)
        trainers = check.available({name: [*modules, *TRAINER_NEEDS] for name, modules in NEEDS.items()}, "training")
        optimizer = "adamW" if missing(["pytorch_optimizer"]) else "lamb"
        if optimizer == "adamW":
            check.leave_out("training with LAMB", "the module pytorch_optimizer is not installed; AdamW instead")
        for shape in args.shapes:
            check.stage(f"training, {shape}", measure_training, folder, shape, trainers, optimizer)
        reason = faiss_on_gpus()
        if reason:
            check.leave_out("search: faiss-gpu", reason)
        check.stage("search", measure_search, folder, [] if reason else [search.FAISS_GPU])
    print(table(check.result), end="")
    say(f"wrote {args.out_dir}/gpu_check.md and gpu_check.json")
    if check.failed:
        sys.exit(1)


if __name__ == "__main__":
    run(main)
