"""A folder as commands/run_ance.sh leaves it: token stores, a checkpoint of random weights, settings, results."""

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from data import beir_data, msmarco_data
from drivers.find_reading import settings_of
from evaluate import evaluate_beir
from model.encoders import Encoder
from model.reading import Reading
from tests.tiny import WORDS, tiny_bert_tokenizer
from tests.tiny_models import tiny_bert, tiny_config, tiny_model, tiny_roberta
from utils.stores.checkpoint import TrainerState, save_checkpoint

STEP = 7
PASSAGE_LENGTH, QUERY_LENGTH = 24, 12
COLLECTION = "docs of others"  # the zero-shot collection
PASSAGES = [
    " ".join(np.random.default_rng(i).choice(WORDS, size=int(size)).tolist())
    for i, size in enumerate(np.random.default_rng(0).integers(3, 40, size=30))
]
QUERIES = {n: " ".join(PASSAGES[n].split()[:4]) for n in range(8)}
GRADES = {n: {n: 1, n + 10: 2, n + 20: 0} for n in QUERIES}  # of query n, by passage


def call(module: ModuleType, *arguments: object) -> None:
    """Runs a script's main in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(module.__file__), *map(str, arguments)])
        module.main()


def save_tiny_checkpoint(
    folder: Path, model_type: str, max_length: int = PASSAGE_LENGTH, reading: Reading | None = None
) -> Path:
    """FOLDER/checkpoint-STEP, with a tokenizer that tells cases apart; `reading` instead of the type's."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert_tokenizer(folder / "tokenizer"))
    make = tiny_bert if model_type == "rdot_nll_condenser" else tiny_roberta
    encoder = make(vocabulary=len(tokenizer), positions=64)
    encoder = encoder if reading is None else Encoder(encoder.model, reading)
    encoder.config.pad_token_id = tokenizer.pad_token_id
    optimizer, scaler = torch.optim.AdamW(encoder.parameters()), torch.amp.GradScaler("cpu", enabled=False)
    return save_checkpoint(
        folder, encoder.eval(), tokenizer, max_length, QUERY_LENGTH, optimizer, scaler, TrainerState(global_step=STEP)
    )


def save_random_checkpoint(folder: Path, family: str, reading: Reading) -> Path:
    """The same of any family and reading."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert_tokenizer(folder / "tokenizer"))
    config = tiny_config(family, layers=2, vocabulary=len(tokenizer), positions=64)
    config.pad_token_id = tokenizer.pad_token_id
    encoder = Encoder(tiny_model(config), reading).eval()
    for parameter in encoder.head.parameters():
        torch.nn.init.normal_(parameter)
    optimizer, scaler = torch.optim.AdamW(encoder.parameters()), torch.amp.GradScaler("cpu", enabled=False)
    lengths, state = (PASSAGE_LENGTH, QUERY_LENGTH), TrainerState(global_step=STEP)
    return save_checkpoint(folder, encoder, tokenizer, *lengths, optimizer, scaler, state)


def reading_flags(reading: Reading) -> list[str]:
    """The flags of a reading, as run_ance.sh gives them to its scripts."""
    return [f"--{name.lower()}={value}" for name, value in settings_of(reading).items()]


def write_msmarco(folder: Path) -> Path:
    """PASSAGES and QUERIES in MS MARCO's layout: passage n has the id 100 + n."""
    folder.mkdir(parents=True)
    (folder / "collection.tsv").write_text("".join(f"{100 + i}\t{text}\n" for i, text in enumerate(PASSAGES)))
    for split in ("train", "dev"):
        (folder / f"queries.{split}.tsv").write_text("".join(f"{i}\t{text}\n" for i, text in QUERIES.items()))
        judged = (f"{q}\t0\t{100 + p}\t{grade}\n" for q, grades in GRADES.items() for p, grade in grades.items())
        (folder / f"qrels.{split}.tsv").write_text("".join(judged))
    return folder


def write_beir(folder: Path) -> Path:
    """The same in BEIR's layout, with a title each, and p0 … as ids of passages, q0 … of queries."""
    (folder / "qrels").mkdir(parents=True)
    corpus = ({"_id": f"p{i}", "title": "the Cat", "text": text} for i, text in enumerate(PASSAGES))
    queries = ({"_id": f"q{i}", "text": text} for i, text in QUERIES.items())
    for name, records in (("corpus", corpus), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    judged = (f"q{q}\tp{p}\t{grade}\n" for q, grades in GRADES.items() for p, grade in grades.items())
    (folder / "qrels" / "test.tsv").write_text("".join(judged))
    return folder


def make_run(out: Path, model_type: str = "rdot_nll_condenser", reading: Reading | None = None) -> Path:
    """A run whose training collection lies inside its folder, the zero-shot one beside it; evaluated once each.

    Without `reading`, which is of a BERT, its settings are those of a version that knew model types alone.
    """
    raw, beir = write_msmarco(out / "collection" / "msmarco"), write_beir(out.parent / COLLECTION)
    if reading is None:
        checkpoint, read_by = save_tiny_checkpoint(out / "saved_models", model_type), ("--model_type", model_type)
    else:
        checkpoint = save_random_checkpoint(out / "saved_models", "bert", reading)
        read_by = reading_flags(reading)
    settings = settings_of(reading) if reading else {"MODEL_TYPE": model_type}
    noted = "".join(f"{name}={value}\n" for name, value in settings.items())
    model = (*read_by, "--model_name_or_path", checkpoint)
    lengths = ("--max_seq_length", PASSAGE_LENGTH, "--max_query_length", QUERY_LENGTH)
    zero_shot = out / "zero_shot" / COLLECTION
    call(msmarco_data, "--data_dir", raw, "--out_data_dir", out / "preprocessed", *model, *lengths)
    call(beir_data, "--data_dir", beir, "--out_data_dir", zero_shot, *model, *lengths)
    (out / "settings.tokenize").write_text(
        f"DATA_DIR=collection/msmarco\nDATA_TYPE=1\nCHECKPOINT={beir.parent}/initial\n{noted}"
    )
    (out / "settings.mine").write_text("TOPK=100\nMIXED_PRECISION=0\nINDEX_PARAMETERS=\n")
    (out / "settings.train").write_text("OBJECTIVE=idro\nLEARNING_RATE=5e-6\n")
    (out / "settings.evaluate").write_text("PUBLIC_ANN_DATA_DIR=\n")
    (zero_shot / "settings").write_text(f"folder={beir}\n")
    for name, split, tokens, embeddings in (
        ("dev", "dev", out / "preprocessed", out / "ann_data"),
        (COLLECTION, "test", zero_shot, zero_shot),
    ):
        results = out / "results" / ("dev" if name == "dev" else f"zero_shot/{name}") / f"step-{STEP}"
        call(
            evaluate_beir,
            *("--data_dir", tokens, "--split", split, "--collection", name, *model, "--no_cuda"),
            *("--out_dir", results, "--embedding_dir", embeddings / f"embeddings-{STEP}"),
        )
    return out
