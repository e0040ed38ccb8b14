"""The benchmarks of tokenizing and of encoding: that both contenders do the same work, and what is written of it."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer

from evaluate.benchmarks import contenders, encoding, table, tokenizing
from model.encoders import Encoder
from model.reading import Reading
from tests.tiny import WORDS, tiny_bert_tokenizer
from tests.tiny_models import tiny_bert
from utils.runtime.errors import InputError
from utils.runtime.precision import Precision

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> dict[str, str]:
    """A collection of short texts, and a checkpoint."""
    folder = tmp_path_factory.mktemp("collection")
    tiny_bert_tokenizer(folder / "checkpoint")
    vocabulary = len(AutoTokenizer.from_pretrained(folder / "checkpoint"))
    tiny_bert(vocabulary=vocabulary).save_pretrained(folder / "checkpoint")
    generator = np.random.default_rng(0)
    texts = (" ".join(generator.choice(WORDS, size=generator.integers(1, 24))) for _ in range(40))
    (folder / "collection.tsv").write_text("".join(f"{number}\t{text}\n" for number, text in enumerate(texts)))
    return {"collection_dir": str(folder), "checkpoint": str(folder / "checkpoint")}


def call(main, monkeypatch, out_dir: Path, **settings) -> None:
    flags = [str(part) for name, value in settings.items() for part in (f"--{name}", value)]
    monkeypatch.setattr(sys, "argv", ["script", "--out_dir", str(out_dir), *flags])
    main()


def check_results(results: dict, amounts: dict[str, int], rounds: int) -> None:
    medians = {name: np.median(one["seconds"]) for name, one in results.items()}
    assert [*results] == ["ours", [*results][1]]
    for name, one in results.items():
        assert len(one["seconds"]) == rounds
        assert one["peak_gib"] == 0.25
        assert one["times_as_fast"] == pytest.approx(medians[[*results][1]] / medians[name])
        for unit, amount in amounts.items():
            assert one[f"{unit}_per_second"] == pytest.approx(amount / medians[name])


def test_both_scripts_write_every_figure_and_the_table_shows_it(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(contenders, "peak_of_fresh_process", lambda script, args, name: 0.25)
    rounds = {"rounds": 2, "max_seq_length": 16}
    call(tokenizing.main, monkeypatch, tmp_path, **settings, **rounds, texts=90)
    call(encoding.main, monkeypatch, tmp_path, **settings, **rounds, texts=30, product_size=64, no_cuda=True)

    tokens = json.loads((tmp_path / "tokenizing.json").read_text())
    check_results(tokens["contenders"], {"texts": 90, "tokens": tokens["tokens"]}, 2)
    vectors = json.loads((tmp_path / "encoding-float32.json").read_text())
    check_results(vectors["contenders"], {"texts": 30, "tokens": vectors["tokens"]}, 2)
    assert vectors["least_cosine"] > 0.99999
    own, other = (one["useful_share"] * one["median_seconds"] for one in vectors["contenders"].values())
    assert 0 < own == pytest.approx(other)

    call(table.main, monkeypatch, tmp_path)
    page = (tmp_path / "benchmarks.md").read_text()
    assert "## Tokenizing" in page
    assert "## Encoding: 2 layers, 16 wide, float32, first token, lowercased" in page
    for result in (tokens, vectors):
        for name, one in result["contenders"].items():
            assert f"| {name} | {one['median_seconds']:.3f} | {one['texts_per_second']:,.1f} |" in page


@pytest.mark.parametrize("reading", [Reading("mean", True, "", "Sky: "), Reading("mean", lowercase=True)], ids=str)
def test_both_read_as_the_checkpoint_declares(settings, tmp_path, reading):
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(settings["checkpoint"], checkpoint)
    Encoder(tiny_bert().model, reading).save_reading(checkpoint, 16, 16)
    args = encoding.Arguments(str(tmp_path), settings["collection_dir"], str(checkpoint), texts=30, max_seq_length=16)
    work = encoding.make_work(args, tmp_path, CPU, Precision("cpu", torch.float32))
    assert work.encoder.reading == reading
    ours, theirs = (give() for give in work.contenders.values())
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert np.allclose(np.linalg.norm(ours, axis=1), 1) == reading.normalized


def test_the_contenders_agree_in_mixed_precision(settings, tmp_path):
    args = encoding.Arguments(str(tmp_path), **settings, texts=30, max_seq_length=16)
    work = encoding.make_work(args, tmp_path, CPU, Precision("cpu", torch.bfloat16))
    assert 0.99 < encoding.least_cosine(*(give() for give in work.contenders.values())) < 1


def test_contenders_that_do_other_work_are_told(settings, tmp_path, monkeypatch):
    load_model = encoding.load_model

    def load_another(folder, encoder, *rest):
        return load_model(folder, tiny_bert(seed=1, vocabulary=encoder.config.vocab_size), *rest)

    monkeypatch.setattr(encoding, "load_model", load_another)
    args = encoding.Arguments(str(tmp_path), **settings, texts=30, max_seq_length=16, product_size=64)
    with pytest.raises(RuntimeError, match="have a cosine of"):
        encoding.measure(args, tmp_path, CPU)

    args = tokenizing.Arguments(str(tmp_path), **settings, texts=30, max_seq_length=16)
    store, dataset = (give() for give in tokenizing.make_contenders(args, tmp_path).values())
    tokenizing.check_rows(store, dataset)
    rows = [list(row) for row in dataset["input_ids"]]
    rows[7][1] += 1
    with pytest.raises(RuntimeError, match="differ in 1 rows, row 7 first"):
        tokenizing.check_rows(store, Dataset.from_dict({"input_ids": rows}))


def test_contenders_take_turns_and_the_first_round_does_not_count(monkeypatch):
    clock, order, rounds = iter(np.cumsum([0, 50, 0, 60, 0, 3, 0, 2, 0, 1, 0, 4]).tolist()), [], []
    monkeypatch.setattr(contenders, "now", lambda device: next(clock))
    work = {name: lambda name=name: order.append(name) or name for name in ("ours", "theirs")}
    seconds = contenders.take_turns(work, 2, CPU, lambda number, given: rounds.append((number, sorted(given))))
    assert order == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert seconds == {"ours": [2, 1], "theirs": [3, 4]}
    assert rounds == [(number, ["ours", "theirs"]) for number in range(3)]
    assert contenders.summarize(seconds, "theirs", {"texts": 6})["ours"] == {
        "median_seconds": 1.5,
        "texts_per_second": 4,
        "times_as_fast": pytest.approx(3.5 / 1.5),
        "seconds": [2, 1],
    }


@pytest.mark.parametrize(("script", "no_cuda"), [(tokenizing, {}), (encoding, {"no_cuda": True})])
def test_a_process_that_is_asked_for_a_contenders_memory_prints_it_last(
    settings, tmp_path, monkeypatch, capsys, script, no_cuda
):
    call(script.main, monkeypatch, tmp_path, **settings, **no_cuda, texts=30, max_seq_length=16, peak_of="ours")
    assert 0.1 < float(capsys.readouterr().out.split()[-1]) < 8
    assert not [*tmp_path.iterdir()]


def test_misuse_is_told(settings, tmp_path):
    for script in (tokenizing, encoding):
        with pytest.raises(InputError, match="--rounds is 0"):
            script.Arguments("", **settings, rounds=0)
    args = encoding.Arguments("", **settings, texts=41)
    with pytest.raises(InputError, match=r"collection\.tsv: holds 40 texts, and --texts asks for 41"):
        encoding.make_work(args, tmp_path, CPU, Precision("cpu", torch.float32))
