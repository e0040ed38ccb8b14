"""The benchmarks of mining: what a process took, that both miners find the same passages, and what is written."""

import contextlib
import io
import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import load_from_disk

from data.tokenizing import load_tokenizer
from evaluate.benchmarks import growth, mining, processes, table
from evaluate.benchmarks.processes import Stage, watch_python
from tests.tiny import WORDS, tiny_bert_tokenizer
from tests.tiny_models import tiny_bert
from utils.runtime.errors import InputError
from utils.stores.episode import mined_file, read_episode
from utils.stores.token_store import TokenStore

pytestmark = pytest.mark.usefixtures("one_thread")

QUERIES, PASSAGES = 12, 40


def call(main, *flags) -> None:
    """Runs a script's main in this process, with these flags."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["script", *map(str, flags)])
        main()


def watch_here(script, flags, ends=()) -> list[Stage]:
    """As `watch_python`, but in this process, which has the libraries already; every stage takes the same."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        call(lambda: runpy.run_path(str(script), run_name="__main__"), *flags)
    assert re.search(".*".join(ends), said.getvalue(), re.DOTALL), said.getvalue()
    return [Stage(1.0, 0.5, 0.75)] * (len(ends) + 1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_bert_tokenizer(folder)
    tiny_bert(vocabulary=190).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def arguments(checkpoint, tmp_path_factory) -> mining.Arguments:
    """Of a collection of short texts, and its token stores."""
    folder = tmp_path_factory.mktemp("collection")
    generator = np.random.default_rng(0)
    for name, count in (("collection", PASSAGES), ("queries.train", QUERIES), ("queries.dev.small", QUERIES)):
        texts = (" ".join(generator.choice(WORDS, size=generator.integers(2, 14))) for _ in range(count))
        (folder / f"{name}.tsv").write_text("".join(f"{number}\t{text}\n" for number, text in enumerate(texts)))
    for split in ("train", "dev.small"):
        judged = "".join(
            f"{query}\t0\t{passage}\t1\n" for query in range(QUERIES) for passage in (query, 2 * query + 9)
        )
        (folder / f"qrels.{split}.tsv").write_text(judged)
    args = mining.Arguments(
        out_dir=str(folder / "results"),
        collection_dir=str(folder),
        data_dir=str(folder / "preprocessed"),
        checkpoint=checkpoint,
        rounds=1,
        topk=10,
        negatives=10,
        clusters=3,
        batch_size=8,
        max_seq_length=16,
        max_query_length=16,
        no_cuda=True,
    )
    script, flags = mining.make_command(mining.TOKENIZING, args, Path(args.data_dir))
    watch_here(script, flags)
    return args


def test_stages_end_with_what_is_said_and_have_their_own_memory(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, time\n"
        "print('ready', flush=True)\n"
        "time.sleep(0.2)\n"
        "held = bytearray(b'x') * int(sys.argv[1])\n"
        "time.sleep(0.4)\n"
        "del held\n"
        "print('so much done', flush=True)\n"
        "time.sleep(0.2)\n"
    )
    start, middle, end = watch_python(script, [256 * 2**20], ["ready", "much"])
    assert middle.seconds >= 0.4
    assert end.seconds >= 0.2
    assert 0.25 <= middle.own_gib < 0.35
    assert max(start.own_gib, end.own_gib) < 0.1
    assert middle.own_gib <= middle.resident_gib
    (only,) = watch_python(script, [256 * 2**20])
    assert only.seconds >= 0.6
    assert 0.25 <= only.own_gib < 0.35


def test_a_process_that_fails_or_does_not_say_what_it_should_is_told(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import sys\nprint('one')\nsys.exit('no such thing')\n")
    with pytest.raises(InputError, match=r"script\.py failed: no such thing"):
        watch_python(script, [], ["one"])
    script.write_text("print('one')\n")
    with pytest.raises(InputError, match="has not said 'two'"):
        watch_python(script, [], ["one", "two"])


def test_stages_as_one_have_the_sum_of_the_seconds_and_the_most_memory():
    assert processes.whole([Stage(1, 2, 3), Stage(4, 1, 5)]) == Stage(5, 2, 5)


def test_both_miners_find_the_same_passages(arguments, tmp_path):
    """The encoder's vectors have one length, so scores and directions rank alike; all that ranks high is drawn."""
    for name in (mining.OURS, mining.LIBRARY):
        watch_here(*mining.make_command(name, arguments, tmp_path / name))
    passages, queries = (
        [line.split("\t")[1].lower() for line in Path(arguments.collection_dir, name).read_text().splitlines()]
        for name in ("collection.tsv", "queries.train.tsv")
    )
    library: dict[str, set[str]] = {}
    for line in load_from_disk(str(tmp_path / mining.LIBRARY)):
        library[line["query"]] = {text for column, text in line.items() if column.startswith("negative")}
    episode = read_episode(mined_file(tmp_path / mining.OURS, 0), QUERIES, PASSAGES, arguments.clusters)
    for row, query in enumerate(queries):
        of_query = episode.query_rows[episode.line_of(np.arange(episode.triplets))] == row
        ours = {passages[negative] for negative in episode.negative_rows[of_query]}
        relevant = {passages[row], passages[2 * row + 9]}
        # Ours ranks 10 passages, and the library 10 that are not relevant.
        assert ours <= library[query]
        assert not relevant & (ours | library[query])
        assert len(ours) >= 5
        assert len(library[query]) == 10


def test_mining_writes_every_figure_and_the_table_shows_it(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(processes, "watch_python", watch_here)
    flags = [f"--{name}={value}" for name, value in vars(arguments).items() if name not in ("out_dir", "negatives")]
    call(mining.main, *flags, "--negatives", 3, "--out_dir", tmp_path)
    result = json.loads((tmp_path / "mining-float32.json").read_text())
    assert set(result) == {"device", "threads", "versions", "dtype", "settings", "collection", "contenders"}
    assert result["collection"]["passages"]["texts"] == PASSAGES
    assert list(result["contenders"]) == [mining.OURS, mining.LIBRARY, mining.TOKENIZING]
    triplets = {name: one.pop("triplets") for name, one in result["contenders"].items()}
    assert triplets == {mining.OURS: 3 * QUERIES, mining.LIBRARY: 2 * 3 * QUERIES, mining.TOKENIZING: 0}
    for one in result["contenders"].values():
        assert one == {
            "median_seconds": 1,
            "time_to": {other: {"ratio_of_medians": 1, "median_ratio": 1} for other in result["contenders"]},
            "own_gib": 0.5,
            "resident_gib": 0.75,
            "seconds": [1],
        }
    capsys.readouterr()
    call(table.main, "--out_dir", tmp_path)
    page = capsys.readouterr().out
    assert "## Mining: float32" in page
    assert "| ours | 1.0 | 1.00 | 1.00 | 1.00 | 36 | 0.50 | 0.75 |" in page


def test_medians_and_ratios_are_over_the_runs():
    stages = {
        name: [Stage(seconds, 1, 2) for seconds in taken] for name, taken in {"a": (1, 2, 9), "b": (4, 4, 3)}.items()
    }
    found = mining.summarize({name: (of_one, 5) for name, of_one in stages.items()})
    assert found["a"]["median_seconds"] == 2
    assert found["a"]["time_to"]["b"] == {"ratio_of_medians": 0.5, "median_ratio": 0.5}
    assert found["b"]["time_to"]["a"] == {"ratio_of_medians": 2, "median_ratio": 2}


def test_growth_writes_every_stage_and_the_table_shows_it(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(processes, "watch_python", watch_here)
    small = ["--passages", 60, 40, "--queries", 20, "--rounds", 1, "--clusters", 3, "--no_cuda"]
    call(growth.main, "--checkpoint", checkpoint, "--out_dir", tmp_path, *small)
    rows = json.loads((tmp_path / "growth.json").read_text())["rows"]
    assert [(row["passages"], row["encoded_a_second"], row["searched_a_second"]) for row in rows] == [
        (40, 40, 40),
        (60, 60, 60),
    ]
    assert all(list(row["stages"]) == ["start", "queries", "passages", "search", "files"] for row in rows)
    capsys.readouterr()
    call(table.main, "--out_dir", tmp_path)
    page = capsys.readouterr().out
    assert "## Growth of mining: tiny" in page
    assert "| 60 | 1.0 | 1.0 | 1.0 | 1.0 | 1.0 | 60 | 60 | 0.50 | 0.50 | 0.50 | 0.50 | 0.50 | 0.75 |" in page


def test_synthetic_passages_are_as_long_as_ms_marcos(checkpoint, tmp_path):
    args = growth.Arguments(out_dir="", checkpoint=checkpoint, queries=1000)
    growth.write_collection(args, tmp_path / "made", 3000, load_tokenizer(checkpoint))
    lengths = {
        name: TokenStore(tmp_path / "made" / name).lengths for name in ("passages", "train-query", "dev-query")
    }
    assert [len(of_store) for of_store in lengths.values()] == [3000, 1000, 100]
    assert lengths["passages"].mean() == pytest.approx(77, abs=3)
    assert lengths["train-query"].mean() == pytest.approx(10, abs=1)
    assert (lengths["passages"].max(), lengths["train-query"].max()) <= (256, 32)


@pytest.mark.parametrize(
    ("script", "changed", "reason"),
    [
        (mining, {"collection_dir": "", "data_dir": "", "rounds": 0}, "--rounds is 0"),
        (growth, {"shape": "huge"}, "--shape 'huge'"),
        (growth, {"passages": [100, 0]}, "every one of --passages"),
    ],
)
def test_misuse_is_told(script, changed, reason):
    with pytest.raises(InputError, match=reason):
        script.Arguments(out_dir="", checkpoint="", **changed)
