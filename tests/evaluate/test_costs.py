"""What a run costs: each formula against the real thing made small, and its page in docs/ against what is printed."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import BertConfig, BertModel

from evaluate import costs
from evaluate.costs import MINED_PASSES, SIZES, TOPK, Arguments, Size
from evaluate.operations import useful_operations
from model import group_gradients
from model.encoders import Encoder
from model.group_gradients import GroupGradients
from model.reading import Reading
from model.watched_layers import watched_layers
from tests.tiny_models import random_store
from utils.batching import PackedTokens, Sequences
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


def make_encoder(size: Size) -> Encoder:
    shape = {"num_hidden_layers": size.layers, "hidden_size": size.width, "intermediate_size": 4 * size.width}
    config = BertConfig(vocab_size=costs.VOCABULARY, num_attention_heads=size.width // 64, **shape)
    return Encoder(BertModel(config, add_pooling_layer=False), Reading())


@pytest.mark.parametrize("name", SIZES)
def test_parameters_are_those_of_the_encoder(name):
    size = SIZES[name]
    with torch.device("meta"):
        encoder = make_encoder(size)
    assert size.parameters == sum(parameter.numel() for parameter in encoder.parameters())
    watched = watched_layers(encoder, name)
    assert size.watched * size.layer_parameters == sum(parameter.numel() for parameter in watched.parameters())


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


SMALL = Size(layers=2, width=64, batch=8, steps=9, watched=1)
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


class Peak(TorchDispatchMode):
    """The most bytes that tensors made inside have held at once, after any operation."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self._alive = 0, {}

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self._alive[storage.data_ptr()] = StorageWeakRef(storage), storage.nbytes()
        self._alive = {at: (alive, size) for at, (alive, size) in self._alive.items() if not alive.expired()}
        self.bytes = max(self.bytes, sum(size for _, size in self._alive.values()))
        return result


@pytest.mark.parametrize("most", ["block", "tiles", "pairs"])
def test_a_gpu_that_searches_holds_a_block_and_what_is_made_of_it_where_that_is_most(monkeypatch, most):
    vectors, lines = Matrix(505, SMALL.width).rows(0, 505), 600 if most == "tiles" else 64
    sizes = {"BLOCK_BYTES": vectors.nbytes, "TILE_SCORES": 8 * len(vectors), "RESCORED": 300, "LINES": lines}
    sizes |= {"block": {}, "tiles": {"TILE_SCORES": lines * len(vectors)}, "pairs": {"RESCORED": 1_000}}[most]
    monkeypatch.setattr(search, "SPARE", 8)
    for module in (search, costs):
        monkeypatch.setattr(module, "SPARE", 8)
        for name, value in sizes.items():
            monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(costs, "TOPK", 20)
    queries = torch.from_numpy(Matrix(lines, SMALL.width).rows(0, lines))
    with Peak() as peak:
        block = search.HalfBlock(vectors, CPU)
        search.best_of_block(block, queries.clone(), 20, torch.full((lines,), -torch.inf))
    _, gpu, *_ = costs.memory_bytes(Arguments(), SMALL).values()
    assert gpu == pytest.approx(peak.bytes, rel=0.1)


def test_a_process_that_trains_holds_parameters_gradients_and_moments():
    encoder = make_encoder(SMALL)
    optimizer = torch.optim.AdamW(encoder.parameters())
    sum(parameter.sum() for parameter in encoder.parameters()).backward()
    optimizer.step()
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    held = sum(p.nbytes + p.grad.nbytes for p in encoder.parameters()) + sum(moment.nbytes for moment in moments)
    memory = costs.memory_bytes(Arguments(), SMALL)
    assert memory["a process that trains: parameters, gradients, moments"] == held


def test_processes_send_as_many_bytes_as_the_exchange_of_the_clusters_gradients_does(monkeypatch):
    processes, sent = 4, []
    shared = {  # every process has the same batch; of what it sends to all, a share stays
        "is_initialized": lambda: True,
        "get_world_size": lambda: processes,
        "get_rank": lambda: 0,
        "all_to_all_single": lambda got, given, *_: sent.append(given.nbytes * 3 / 4) or got.copy_(given),
        "all_gather": lambda got, given: sent.append(given.nbytes * 3) or [part.copy_(given) for part in got],
        "all_gather_into_tensor": lambda got, given: (
            sent.append(given.nbytes * 3) or got.copy_(given.flatten().repeat(processes).view(got.shape))
        ),
        "all_reduce": lambda tensor, *_: sent.append(tensor.nbytes * 3 / 2),
        "ReduceOp": dist.ReduceOp,
    }
    monkeypatch.setattr(group_gradients, "dist", SimpleNamespace(**shared))
    encoder = make_encoder(SMALL)
    watch = GroupGradients(watched_layers(encoder, "base", SMALL.watched), costs.CLUSTERS)
    clusters, ids = torch.arange(7), torch.arange(14)
    with watch.rows(clusters.repeat_interleave(2), clusters):
        encoder(PackedTokens(ids, ids % 2, ids[::2], [2] * 7)).square().sum().backward()
    watch.collect()
    monkeypatch.setattr(costs, "CLUSTERS", 10**9)  # each line has one of its own
    size = replace(SMALL, batch=7 * (costs.NEGATIVES // MINED_PASSES))
    reduced, exchanged = costs.sent_bytes(size, processes)
    assert exchanged == pytest.approx(sum(sent), rel=0.02)
    rest = sum(p.numel() for p in encoder.parameters() if p.requires_grad)
    assert reduced == 2 * 4 * 3 / 4 * rest
    assert costs.sent_bytes(SIZES["base"], 1) == (0, 0)


def test_a_base_batch_holds_ten_of_the_clusters():
    clusters = np.random.default_rng(0).integers(0, costs.CLUSTERS, (20_000, SIZES["base"].lines))
    seen = np.mean([len(set(batch)) for batch in clusters])
    watched = 3 * SIZES["base"].layer_parameters
    assert costs.sent_bytes(SIZES["base"], 8)[1] == pytest.approx((seen + 1) * 4 * 7 / 8 * watched, rel=0.01)
    assert round(seen) == 10


def test_more_gpus_mine_faster_and_train_more_triplets_a_step_for_what_the_exchange_takes(printed):
    page = printed("--gpus", 1, 2)
    one, two, *_ = row(page, "search")
    assert float(one.split()[0]) == pytest.approx(2 * float(two.split()[0]), rel=0.02)
    own, exchange = (
        [float(cell.removesuffix(" ms")) for cell in row(page, label)[:2]]
        for label in ("a training step", "after it: the exchange of the clusters' gradients")
    )
    assert exchange[0] == 0 < exchange[1]
    assert own[1] - own[0] == pytest.approx(exchange[1], abs=1)


def test_an_all_reduce_counts_as_far_as_it_is_longer_than_the_backward_pass():
    args, size = Arguments(), SIZES["base"]
    step = {
        share: costs.seconds(args, size, costs.Rates(1e14, 1e14, 1e14, share * 1e9), 8) for share in (1e9, 100, 1)
    }
    names = "beside a backward pass: the all-reduce of gradients", "after it: the exchange of the clusters' gradients"
    products = step[1e9]["a training step"]
    for share in (100, 1):
        reduced, exchanged = (step[share][name] for name in names)
        expected = products + exchanged + max(0, reduced - products * 2 / 3)
        assert step[share]["a training step"] == pytest.approx(expected, rel=1e-6)
    assert step[100][names[0]] < products * 2 / 3 < step[1][names[0]]


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


def test_a_gpu_that_was_measured_counts_with_its_peak_and_shares(printed, tmp_path):
    content = {
        "device": "NVIDIA H100 80GB HBM3",
        "peak_operations_a_second": 6e14,
        "encoding": {"useful_share": 0.55},
        "training": {"erm": {"useful_share": 0.41}, "idro": {"useful_share": 0.38}},
        "search": {"useful_share": 0.25},
        "more": 1,
    }
    path = tmp_path / "gpu_check.json"
    path.write_text(json.dumps(content))
    page = printed("--measured_gpu", path)
    measured = f"measured, {path.name}"
    assert row(page, "peak in bfloat16 and float16") == ["600 TFLOP/s", f"{measured}: NVIDIA H100 80GB HBM3"]
    assert row(page, "share of the peak in encoding (bfloat16)") == ["55%", measured]
    assert row(page, "share of the peak in training (bfloat16)") == ["38%", measured]
    assert row(page, "share of the peak in searching (float16)") == ["25%", measured]
    assert row(page, "link between GPUs, in one direction") == ["450 GB/s", "data sheet, NVLink"]
    shares = "--encode_share", 0.55, "--train_share", 0.38, "--search_share", 0.25
    given = printed("--gpu", "h100", "--peak_tflops", 600, *shares)
    assert given.split("\n\n")[1] == page.split("\n\n")[1], "the same as by flags"
    for lacking in ("device", "peak_operations_a_second", "encoding", "training", "search"):
        path.write_text(json.dumps({name: value for name, value in content.items() if name != lacking}))
        with pytest.raises(InputError, match="no result of a GPU check: it lacks device, peak"):
            printed("--measured_gpu", path)


def test_a_gpu_has_its_own_data_sheets_numbers_or_none(printed):
    assert "| 989 TFLOP/s | data sheet, NVIDIA H100 SXM |" in printed("--gpu", "H100")
    page = printed("--gpu", "NVIDIA V100", "--peak_tflops", 125)
    assert "| 125 TFLOP/s | data sheet, NVIDIA V100 |" in page
    assert row(page, "link between GPUs, in one direction") == ["32 GB/s", "assumed, not measured: PCIe 4.0 x16"]
    assert row(printed("--link_gbytes", 50), "link between GPUs, in one direction") == ["50 GB/s", "given"]
    with pytest.raises(InputError, match=r"--gpu 'v100' is none of a100, h100.*give its --peak_tflops"):
        printed("--gpu", "v100")


def test_the_docs_show_what_is_printed(printed):
    page = (ROOT / "docs" / "costs.md").read_text(encoding="utf-8")
    assert "    python evaluate/costs.py\n" in page
    assert printed() in page
