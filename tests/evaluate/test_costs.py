"""What a run costs: each formula against the real thing made small, and its page in docs/ against what is printed."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from evaluate import costs
from evaluate.costs import MINED_PASSES, SIZES, TOPK, Arguments, Size
from evaluate.operations import useful_operations
from model.encoders import Encoder
from model.reading import Reading
from tests.tiny_models import random_store
from utils.batching import Sequences
from utils.mining import search
from utils.runtime import distributed
from utils.runtime.errors import InputError
from utils.samples import Triplets, make_batch
from utils.stores.episode import Episode, MinedLines, write_mined_file

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
        encoder = Encoder(
            BertModel(
                BertConfig(vocab_size=costs.VOCABULARY, num_attention_heads=size.width // 64, **shape),
                add_pooling_layer=False,
            ),
            Reading(),
        )
    assert size.parameters == sum(parameter.numel() for parameter in encoder.parameters())


@pytest.mark.parametrize("name", SIZES)
def test_a_batch_has_the_texts_of_a_mined_file_without_repetition(name, tmp_path):
    batch, negatives = SIZES[name].batch, costs.NEGATIVES // MINED_PASSES
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
    real = make_batch(Triplets(episode), np.arange(batch), queries, passages)
    lengths = costs.batch_lengths(SIZES[name], passage_tokens=2, query_tokens=2)
    assert sorted(real.tokens.lengths) == sorted(lengths)


def test_a_mined_file_is_as_large_as_one_that_is_written(tmp_path):
    args = Arguments(passages=150_000, train_queries=2_000)
    generator = np.random.default_rng(0)
    negatives = costs.NEGATIVES // MINED_PASSES
    passes = (
        MinedLines(
            query_rows=np.arange(args.train_queries),
            positive_rows=generator.integers(0, args.passages, args.train_queries),
            negatives=generator.integers(0, args.passages, (args.train_queries, negatives)),
            clusters=generator.integers(0, costs.CLUSTERS, args.train_queries),
        )
        for _ in range(MINED_PASSES)
    )
    path = tmp_path / "ann_training_data_0"
    write_mined_file(path, passes)
    assert costs.mined_bytes(args) == pytest.approx(path.stat().st_size, rel=1e-3)


def test_token_stores_are_as_large_as_those_that_are_written(tmp_path):
    args = Arguments(passages=30_000, passage_tokens=2, train_queries=1, dev_queries=0)
    folder = random_store(tmp_path / "passages", args.passages, longest=2).folder
    written = sum(path.stat().st_size for path in folder.iterdir())
    assert costs.disk_bytes(args, SIZES["base"], 1)["token stores"] == pytest.approx(written, rel=5e-3)


class Matrix:
    """Embeddings in memory, of random values."""

    def __init__(self, *shape: int) -> None:
        self.shape, self._values = shape, np.random.default_rng(0).normal(size=shape).astype(np.float32)

    def __len__(self) -> int:
        return self.shape[0]

    def rows(self, start: int, stop: int) -> np.ndarray:
        return self._values[start:stop]

    def mapped_until(self, row: int) -> int:
        return len(self)


SMALL = Size(layers=2, width=64, batch=8, steps=9)
CPU = torch.device("cpu")


def test_processes_that_search_leave_each_other_as_much_on_the_disk(tmp_path, monkeypatch):
    def look(_):
        raise InterruptedError

    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "on_main", lambda function: function())
    monkeypatch.setattr(distributed, "wait_until", look)
    args = Arguments(passages=2 * TOPK, train_queries=300, dev_queries=0)
    queries, passages = Matrix(args.train_queries, 8), Matrix(args.passages, 8)
    with pytest.raises(InterruptedError):
        list(search.search_together(queries, passages, TOPK, CPU, tmp_path))
    left = sum(path.stat().st_size for path in tmp_path.rglob("*.npy"))
    name = "candidates, while several processes search"
    one, two = (costs.disk_bytes(args, SMALL, processes) for processes in (1, 2))
    assert two[name] == pytest.approx(2 * left, rel=2e-3)
    assert one[name] == 0
    assert sum(two.values()) - sum(one.values()) == pytest.approx(2 * two[name]), "in the sum of all, too"


@pytest.mark.parametrize("train_queries", [7, 50])
def test_a_process_that_searches_holds_a_window_of_queries(tmp_path, monkeypatch, train_queries):
    for module in (search, costs):
        monkeypatch.setattr(module, "WINDOW_CANDIDATES", 20 * TOPK + 1)
    queries, passages = Matrix(train_queries, SMALL.width), Matrix(TOPK + 9, SMALL.width)
    held = [
        scores.nbytes + rows.nbytes + queries.rows(first, first + len(rows)).nbytes
        for first, scores, rows in search.search_together(queries, passages, TOPK, CPU, tmp_path)
    ]
    window, *_ = costs.memory_bytes(Arguments(train_queries=train_queries), SMALL).values()
    assert window == max(held)


def test_a_gpu_that_searches_holds_a_block_twice_and_in_half_precision_and_a_tile(monkeypatch):
    tiles = []
    best = search._best_by_segments
    monkeypatch.setattr(search, "_best_by_segments", lambda tile, count: tiles.append(tile) or best(tile, count))
    vectors = Matrix(500, SMALL.width).rows(0, 500)
    for module in (search, costs):
        monkeypatch.setattr(module, "BLOCK_BYTES", vectors.nbytes)
        monkeypatch.setattr(module, "TILE_SCORES", 4 * len(vectors))
    block = search.HalfBlock(vectors, CPU)
    block.propose(torch.from_numpy(vectors[:10]), TOPK)
    held = sum(tensor.nbytes for tensor in vars(block).values()) + vectors.nbytes + max(t.nbytes for t in tiles)
    _, gpu, *_ = costs.memory_bytes(Arguments(), SMALL).values()
    assert gpu == pytest.approx(held, rel=5e-3)


def test_a_process_that_trains_holds_parameters_gradients_and_moments():
    shape = {"num_hidden_layers": SMALL.layers, "hidden_size": SMALL.width, "intermediate_size": 4 * SMALL.width}
    encoder = Encoder(
        BertModel(BertConfig(vocab_size=costs.VOCABULARY, num_attention_heads=1, **shape), add_pooling_layer=False),
        Reading(),
    )
    optimizer = torch.optim.AdamW(encoder.parameters())
    sum(parameter.sum() for parameter in encoder.parameters()).backward()
    optimizer.step()
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    held = sum(p.nbytes + p.grad.nbytes for p in encoder.parameters()) + sum(moment.nbytes for moment in moments)
    memory = costs.memory_bytes(Arguments(), SMALL)
    assert memory["a process that trains: parameters, gradients, moments"] == held


def test_more_gpus_mine_faster_and_train_more_triplets_a_step(printed):
    page = printed("--gpus", 1, 2)
    one, two, *_ = row(page, "search")
    assert float(one.split()[0]) == pytest.approx(2 * float(two.split()[0]), rel=0.02)
    one, two, *_ = row(page, "a training step")
    assert one == two


def test_a_measured_machine_has_a_column_of_its_own(printed, tmp_path):
    content = {
        "device": "a CPU",
        "dtype": "bfloat16",
        "peak_operations_a_second": {"median": 2e11},
        "contenders": {"idro": {"useful_share": 0.5}},
    }
    path = tmp_path / "training-base-bfloat16.json"
    path.write_text(json.dumps(content))
    page = printed("--measured", path)
    assert row(page, "peak in bfloat16, a CPU") == ["0.2 TFLOP/s", f"measured, {path.name}"]
    assert row(page, "share of the peak in training, a CPU") == ["50%", f"measured, {path.name}"]
    assert row(page, "share of the peak in training (bfloat16)")[1] == "assumed, not measured"
    texts = np.array([10] * 11 + [77] * 75)
    assert row(page, "a training step")[-1] == f"{useful_operations(texts, 12, 768) / 1e11:.1f} s"
    path.write_text(json.dumps(content | {"contenders": {}}))
    with pytest.raises(InputError, match="idro"):
        printed("--measured", path)


def test_a_gpu_has_its_own_data_sheets_numbers_or_none(printed):
    assert "| 989 TFLOP/s | data sheet, NVIDIA H100 SXM |" in printed("--gpu", "H100")
    assert "| 125 TFLOP/s | data sheet, NVIDIA V100 |" in printed("--gpu", "NVIDIA V100", "--peak_tflops", 125)
    with pytest.raises(InputError, match=r"--gpu 'v100' is none of a100, h100.*give its --peak_tflops"):
        printed("--gpu", "v100")


def test_the_docs_show_what_is_printed(printed):
    page = (ROOT / "docs" / "costs.md").read_text(encoding="utf-8")
    assert "    python evaluate/costs.py\n" in page
    assert printed() in page
