"""The training benchmark: that its contenders do the same work, what it counts, and what it writes."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from data import msmarco_data
from evaluate.benchmarks import contenders, library_trainer, table, training
from evaluate.benchmarks.contenders import Taken
from model.encoders import Encoder
from model.forward import last_hidden
from model.reading import Reading
from tests.tiny import WORDS, tiny_bert_tokenizer
from tests.tiny_models import tiny_bert
from utils.batching import Sequences
from utils.runtime.errors import InputError
from utils.runtime.precision import choose_precision
from utils.samples import Triplets, make_batch

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")


def call(main, *flags) -> None:
    """Runs a script's main in this process, with these flags."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["script", *map(str, flags)])
        main()


@pytest.fixture(scope="module")
def collection(tmp_path_factory) -> list[str]:
    """The flags that name a collection of short texts of few words, its token stores and their checkpoint.

    It declares prompts, and that texts are lowercased, which its tokenizer does not do.
    """
    folder = tmp_path_factory.mktemp("collection")
    checkpoint = tiny_bert_tokenizer(folder / "checkpoint")
    encoder = Encoder(tiny_bert().model, Reading("mean", True, "How: ", "blue ", lowercase=True))
    encoder.save_reading(Path(checkpoint), 16, 16)
    generator = np.random.default_rng(0)

    def write(name: str, count: int, most: int) -> None:
        texts = (" ".join(generator.choice(WORDS, size=generator.integers(1, most))) for _ in range(count))
        (folder / name).write_text("".join(f"{number}\t{text}\n" for number, text in enumerate(texts)))

    write("collection.tsv", 40, 24)
    for split in ("train", "dev.small"):
        write(f"queries.{split}.tsv", 12, 8)
        (folder / f"qrels.{split}.tsv").write_text("".join(f"{query}\t0\t{3 * query}\t1\n" for query in range(12)))
    lengths = ["--max_seq_length", "16", "--max_query_length", "16"]
    stores = folder / "preprocessed"
    tokenizer = ["--model_name_or_path", checkpoint, "--model_type", "auto"]
    call(msmarco_data.main, "--data_dir", folder, "--out_data_dir", stores, *tokenizer, *lengths)
    return ["--collection_dir", str(folder), "--data_dir", str(stores), "--checkpoint", checkpoint, *lengths]


@pytest.fixture
def arguments(collection, tmp_path) -> training.Arguments:
    values = dict(zip((flag[2:] for flag in collection[::2]), collection[1::2], strict=True))
    lengths = {name: int(values.pop(name)) for name in ("max_seq_length", "max_query_length")}
    return training.Arguments(
        out_dir=str(tmp_path), **values, **lengths, shape="tiny", triplets=10, rounds=3, clusters=3, dropout=0.0
    )


@pytest.fixture
def large_weights(monkeypatch) -> None:
    """Encoders that tell texts apart, and steps that change them: else all losses would be log 2."""
    make_encoder = contenders.make_encoder

    def make_larger(*settings):
        encoder = make_encoder(*settings)
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter.mul_(20 if parameter.ndim > 1 else 1)
        return encoder

    monkeypatch.setattr(contenders, "make_encoder", make_larger)
    for module in (contenders, library_trainer):
        monkeypatch.setattr(module, "LEARNING_RATE", 0.02)


def take_all(arguments, folder) -> dict[str, list[Taken]]:
    """The steps of all contenders, one contender after the other, in this process."""
    taken: dict[str, list[Taken]] = {name: [] for name in arguments.contenders}
    for name, of_one in taken.items():
        training.take_steps(name, arguments, folder, CPU, lambda: None, of_one.append)
    return taken


@pytest.mark.parametrize(("optimizer", "reading"), [("lamb", "cls"), ("adamW", "cls"), ("adamW", "mean")])
def test_all_contenders_see_the_same_batches_and_the_plain_ones_train_alike(
    arguments, large_weights, optimizer, reading, tmp_path
):
    arguments.optimizer, arguments.reading = optimizer, reading
    losses = {name: [one.loss for one in steps] for name, steps in take_all(arguments, tmp_path).items()}
    assert [len(of_one) for of_one in losses.values()] == [4] * 5
    assert all(of_one[0] == pytest.approx(losses["erm"][0], rel=1e-4) for of_one in losses.values())
    assert abs(losses["erm"][0] - math.log(2)) > 0.1
    # The published contender takes the clusters' products and steps on the mean loss, whatever they are.
    for name in (training.LIBRARY, training.PUBLISHED):
        assert losses[name] == pytest.approx(losses["erm"], rel=2e-3)
    assert losses["idro"][2:] != pytest.approx(losses["erm"][2:], rel=2e-3)


def test_tokens_and_positions_are_those_of_the_texts(arguments, tmp_path):
    lines = training.draw_lines(arguments, tmp_path)
    taken = take_all(arguments, tmp_path)
    for number in range(arguments.rounds + 1):
        triplets = lines.triplets_of(number)
        line = lines.grouped.line_of(triplets)
        rows = lines.grouped.positive_rows[line], lines.grouped.negative_rows[triplets]
        columns = [lines.queries.lengths[lines.grouped.query_rows[line]], *(lines.passages.lengths[r] for r in rows)]
        of_triplets = sum(int(column.sum()) for column in columns)
        padded = sum(len(column) * int(column.max()) for column in columns)
        distinct = int(lines.distinct_lengths(number).sum())
        counted = {name: (steps[number].tokens, steps[number].positions) for name, steps in taken.items()}
        assert counted["erm"] == (distinct, distinct)
        assert counted[training.LIBRARY] == (of_triplets, padded)
        assert counted[training.PUBLISHED] == (of_triplets, 3 * 10 * 16)


@pytest.mark.parametrize("reading", training.READINGS)
def test_useful_operations_are_those_of_the_packed_forward_pass_three_times(arguments, reading, tmp_path):
    arguments.reading = reading
    lines = training.draw_lines(arguments, tmp_path)
    batch = make_batch(
        Triplets(lines.plain), lines.triplets_of(0), Sequences(lines.queries), Sequences(lines.passages)
    )
    encoder = training.make_encoder(arguments, lines).eval()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        last_hidden(encoder.model, encoder.family, batch.tokens, first_only=reading == "cls")
    layers, width, _ = contenders.SHAPES["tiny"]
    useful = training.useful_operations(lines.distinct_lengths(0), layers, width, reading)
    assert useful == 3 * counter.get_total_flops()


@pytest.mark.parametrize("reading", training.READINGS)
def test_a_loss_is_that_of_the_readings_scores(arguments, large_weights, reading, tmp_path):
    """From transformers' forward pass of each text by itself, and the text that the columns have."""
    arguments.reading = reading
    lines = training.draw_lines(arguments, tmp_path)
    encoder = training.make_encoder(arguments, lines).eval()
    columns = training.read_columns(arguments.collection_dir, lines)

    @torch.no_grad()
    def vector(text: str) -> torch.Tensor:
        tokens = lines.tokenizer(text, truncation=True, max_length=16, return_tensors="pt")
        hidden = encoder.model(**tokens).last_hidden_state[0]
        return hidden[0] if reading == "cls" else 20**0.5 * torch.nn.functional.normalize(hidden.mean(0), dim=0)

    losses = []
    for triplet in zip(*(columns[name][:10] for name in ("anchor", "positive", "negative")), strict=True):
        assert [text.startswith(("how: ", "blue ")[n > 0]) for n, text in enumerate(triplet)] == [True] * 3
        assert "Cat" not in " ".join(triplet)
        query, positive, negative = map(vector, triplet)
        losses.append(-torch.log_softmax(torch.stack([query @ positive, query @ negative]), 0)[0])
    arguments.contenders = ["erm"]
    assert take_all(arguments, tmp_path)["erm"][0].loss == pytest.approx(float(torch.stack(losses).mean()), rel=1e-4)


def test_results_are_over_the_rounds_that_count():
    taken = {
        "erm": [Taken(9, 9, 0.5, 9, 9), Taken(1, 0.1, 0, 50, 50), Taken(2, 0.1, 0, 50, 50), Taken(2, 0.1, 0, 50, 50)],
        "idro": [Taken(9, 9, 0.7, 9, 9), Taken(4, 1, 0, 60, 80), Taken(2, 1, 0, 60, 80), Taken(4, 1, 0, 60, 80)],
    }
    result = training.summarize(taken, "idro", triplets=8, distinct_tokens=[50, 40, 30], least_seconds=[1, 1, 1])
    assert result == {
        "median_seconds": 4,
        "triplets_per_second": 2,
        "tokens_per_second": 12.5,
        "useful_share": 0.25,
        "input_share": 0.25,
        "padding_share": 0.25,
        "repeated_share": pytest.approx(1 / 3),
        "time_to": {"erm": {"ratio_of_medians": 2, "median_ratio": 2}},
        "first_loss": 0.7,
        "seconds": [4, 2, 4],
    }


def test_the_script_writes_every_figure_and_the_table_shows_it(collection, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    small = ["--shape", "tiny", "--triplets", 10, "--rounds", 2, "--clusters", 3, "--product_size", 64, "--no_cuda"]
    names = training.LIBRARY, "erm", training.PUBLISHED
    call(training.main, "--out_dir", tmp_path, *collection, *small, "--reading", "mean", "--contenders", *names)
    result = json.loads((tmp_path / "training-tiny-mean-float32.json").read_text())
    assert set(result) == {
        *("device", "threads", "versions", "dtype", "settings", "layers", "width", "reading", "batch"),
        *("peak_operations_a_second", "libraries_gib", "contenders"),
    }
    assert list(result["contenders"]) == list(names)
    for name, one in result["contenders"].items():
        assert 0.1 < one["peak_gib"] < 4
        assert len(one["seconds"]) == 2
        assert all(one[figure] > 0 for figure in ("median_seconds", "triplets_per_second", "tokens_per_second"))
        assert 0 < one["input_share"] < 1
        rates = one["tokens_per_second"] / result["batch"]["distinct_tokens"]
        least_seconds = result["batch"]["useful_operations"] / result["peak_operations_a_second"]["median"]
        assert one["useful_share"] == pytest.approx(least_seconds * rates, rel=0.2)  # operations a token differ
        assert (one["padding_share"] == 0) == (name in training.OURS)
        assert 0 <= one["repeated_share"] < result["contenders"][training.PUBLISHED]["repeated_share"] + 1e-9
        assert one["time_to"].keys() == set(training.REFERENCES)
    assert result["contenders"]["erm"]["time_to"]["erm"] == {"ratio_of_medians": 1, "median_ratio": 1}

    capsys.readouterr()
    call(table.main, "--out_dir", tmp_path)
    page = (tmp_path / "benchmarks.md").read_text()
    assert capsys.readouterr().out == page
    assert "## Training: tiny, float32, mean of all tokens, length 1, scale 20, queries after 'How: '" in page
    for name in names:
        assert f"| {name} | {result['contenders'][name]['median_seconds']:.3f} |" in page
    assert json.loads((tmp_path / "benchmarks.json").read_text()) == {"training-tiny-mean-float32.json": result}


@pytest.mark.skipif(choose_precision(True, CPU).dtype == torch.float32, reason="this CPU has no bfloat16")
def test_the_librarys_own_mixed_precision_is_bfloat16_on_the_cpu(arguments, tmp_path):
    arguments.fp16 = True
    arguments.contenders = [training.LIBRARY]
    assert len(take_all(arguments, tmp_path)[training.LIBRARY]) == 4


def test_a_library_that_runs_in_another_precision_is_told(arguments, tmp_path, monkeypatch):
    model = torch.nn.Linear(1, 1)  # what the forward hook is put on
    monkeypatch.setattr(library_trainer, "_first_linear", lambda trained: model)
    with pytest.raises(RuntimeError, match="float32 was asked for"):
        take_all(arguments, tmp_path)


def test_texts_of_another_collection_are_refused(arguments, tmp_path):
    lines = training.draw_lines(arguments, tmp_path)
    for name in ("collection.tsv", "queries.train.tsv"):
        (tmp_path / name).write_text("99\tanother text\n")
    with pytest.raises(InputError, match=r"queries\.train\.tsv: has no text \d+"):
        training.read_columns(tmp_path, lines)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"shape": "huge"}, "--shape 'huge': there are base"),
        ({"contenders": ["erm", "sgd"]}, "--contenders erm sgd: there are sentence-transformers"),
        ({"rounds": 0}, "--rounds is 0"),
        ({"optimizer": "sgd"}, "--optimizer 'sgd'"),
        ({"reading": "max"}, "--reading 'max': there are cls, mean"),
    ],
)
def test_misuse_is_told(changed, reason):
    with pytest.raises(InputError, match=reason):
        training.Arguments(out_dir="", collection_dir="", data_dir="", checkpoint="", **changed)


def test_a_folder_without_results_makes_no_table(tmp_path):
    with pytest.raises(InputError, match="holds no result"):
        call(table.main, "--out_dir", tmp_path)
    assert list(Path(tmp_path).iterdir()) == []


def test_the_other_benchmarks_results_stand_in_the_table(tmp_path):
    shown = {"device": "a CPU", "threads": 1, "shape": "tiny", "dtype": "float32", "processes": 2, "triplets": 8}
    erm = {"erm": {"median_seconds": 0.5, "ratio": 1.0}}
    gradients = shown | {"tokens": 1234, "clusters_in_a_batch": 3, "contenders": erm}
    (tmp_path / "group_gradients-tiny-float32-2p.json").write_text(json.dumps(gradients))
    errors = ("cosine_rms_error", "cosine_largest_error", "weight_largest_relative_error")
    row = {"dim": 64} | dict.fromkeys(errors, 0.125)
    (tmp_path / "sketch_error.json").write_text(json.dumps({"settings": {"shape": "tiny"}, "rows": [row]}))
    call(table.main, "--out_dir", tmp_path)
    page = (tmp_path / "benchmarks.md").read_text()
    assert "## Group gradients: tiny, float32, 2 processes" in page
    assert "| erm | 0.500 | 1.00 | - |" in page
    assert "| 64 | 0.1250 | 0.1250 | 0.12500 |" in page
