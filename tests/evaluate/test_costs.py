"""What a run costs: each formula against the real thing made small, and the README against what is printed."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig

from evaluate import costs
from evaluate.costs import PASSES, SIZES, Arguments
from evaluate.operations import useful_operations
from model.encoders import BertDot
from tests.tiny_models import random_store
from utils.batching import Sequences, make_triplet_batch
from utils.episode import Episode, MinedLines, write_mined_file
from utils.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def printed(monkeypatch, capsys):
    """What the script prints with these flags."""

    def call(*flags: object) -> str:
        monkeypatch.setattr(sys, "argv", ["costs.py", *map(str, flags)])
        costs.main()
        return capsys.readouterr().out

    return call


def row(page: str, label: str) -> list[str]:
    (line,) = (line for line in page.splitlines() if line.startswith(f"| {label} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


@pytest.mark.parametrize("name", SIZES)
def test_parameters_are_those_of_the_encoder(name):
    size = SIZES[name]
    shape = {"num_hidden_layers": size.layers, "hidden_size": size.width, "intermediate_size": 4 * size.width}
    with torch.device("meta"):
        encoder = BertDot(BertConfig(vocab_size=costs.VOCABULARY, num_attention_heads=size.width // 64, **shape))
    assert size.parameters == sum(parameter.numel() for parameter in encoder.parameters())


@pytest.mark.parametrize("name", SIZES)
def test_a_batch_has_the_texts_of_a_mined_file_without_repetition(name, tmp_path):
    batch, negatives = SIZES[name].batch, costs.NEGATIVES // PASSES
    lines = 20
    episode = Episode(
        query_rows=np.arange(lines),
        positive_rows=np.arange(lines),
        negative_rows=np.arange(lines, lines + lines * negatives),
        starts=np.arange(lines + 1) * negatives,
        weights=np.ones(lines, np.float32),
        clusters=np.zeros(lines, np.int64),
        n_groups=1,
    )
    queries = Sequences(random_store(tmp_path / "queries", lines, longest=2))
    passages = Sequences(random_store(tmp_path / "passages", lines + lines * negatives, longest=2))
    real = make_triplet_batch(episode, np.arange(batch), queries, passages)
    lengths = costs.batch_lengths(SIZES[name], passage_tokens=2, query_tokens=2)
    assert sorted(real.tokens.lengths) == sorted(lengths)


def test_a_mined_file_is_as_large_as_one_that_is_written(tmp_path):
    args = Arguments(passages=150_000, train_queries=2_000)
    generator = np.random.default_rng(0)
    negatives = costs.NEGATIVES // PASSES
    passes = (
        MinedLines(
            query_rows=np.arange(args.train_queries),
            positive_rows=generator.integers(0, args.passages, args.train_queries),
            negatives=generator.integers(0, args.passages, (args.train_queries, negatives)),
            clusters=generator.integers(0, costs.CLUSTERS, args.train_queries),
        )
        for _ in range(PASSES)
    )
    path = tmp_path / "ann_training_data_0"
    write_mined_file(path, passes)
    assert costs.mined_bytes(args) == pytest.approx(path.stat().st_size, rel=1e-3)


def test_token_stores_are_as_large_as_those_that_are_written(tmp_path):
    args = Arguments(passages=30_000, passage_tokens=2, train_queries=1, dev_queries=0)
    folder = random_store(tmp_path / "passages", args.passages, longest=2).folder
    written = sum(path.stat().st_size for path in folder.iterdir())
    assert costs.disk_bytes(args, SIZES["base"])["token stores"] == pytest.approx(written, rel=5e-3)


def test_more_gpus_mine_faster_and_train_more_triplets_a_step(printed):
    page = printed("--gpus", 1, 2)
    one, two, *_ = row(page, "search")
    assert float(one.split()[0]) == pytest.approx(2 * float(two.split()[0]), rel=0.02)
    one, two, *_ = row(page, "a training step")
    assert one == two


def test_a_measured_machine_has_a_column_of_its_own(printed, tmp_path):
    content = {
        "device": "a CPU",
        "dtype": "float32",
        "peak_operations_a_second": {"median": 2e11},
        "contenders": {"idro": {"useful_share": 0.5}},
    }
    path = tmp_path / "training-base-float32.json"
    path.write_text(json.dumps(content))
    page = printed("--measured", path)
    assert row(page, "share of the peak in training, a CPU") == ["50%", f"measured, {path.name}"]
    assert row(page, "share of the peak in training (bfloat16)")[1] == "assumed, not measured"
    texts = np.array([10] * 11 + [77] * 75)
    assert row(page, "a training step")[-1] == f"{useful_operations(texts, 12, 768) / 1e11:.1f} s"
    for changes, reason in (({"dtype": "bfloat16"}, "searching runs in float32"), ({"contenders": {}}, "idro")):
        path.write_text(json.dumps(content | changes))
        with pytest.raises(InputError, match=reason):
            printed("--measured", path)


def test_the_readme_shows_what_is_printed(printed):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.split("## What a full MS MARCO run costs\n")[1].split("\n## ")[0]
    assert "    python evaluate/costs.py\n" in section
    assert printed() in section
