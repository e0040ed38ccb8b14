"""What the version before readings has left: its checkpoints load and train on, its embeddings are found."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from drivers import run_ann, run_ann_data_gen
from evaluate import evaluate_beir
from tests.tiny_models import load_encoder
from tests.tiny_run import PASSAGE_LENGTH, PASSAGES, QUERY_LENGTH, STEP, call, make_run
from utils.batching import Sequences, pack
from utils.stores.checkpoint import CHECKED, CHECKSUMS, WEIGHTS
from utils.stores.files import sha256_of_file
from utils.stores.token_store import TokenStore

ARCHITECTURES = {"rdot_nll_condenser": "BertDot", "rdot_nll": "RobertaDot"}


def rewrite(path: Path, change) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def as_before(checkpoint: Path, model_type: str) -> Path:
    """Makes a checkpoint what that version saved: its class around the encoder, and no reading in any file."""
    if model_type == "rdot_nll_condenser":
        weights = load_file(checkpoint / WEIGHTS)
        save_file(
            {f"bert.{name}": weight for name, weight in weights.items()}, checkpoint / WEIGHTS, {"format": "pt"}
        )
    rewrite(checkpoint / "config.json", lambda config: config | {"architectures": [ARCHITECTURES[model_type]]})
    settings = {"similarity_fn_name": "dot", "prompts": {}, "default_prompt_name": None}
    rewrite(checkpoint / "config_sentence_transformers.json", lambda _: settings)
    rewrite(
        checkpoint / "sentence_bert_config.json",
        lambda reads: {name: value for name, value in reads.items() if name != "query_length"},
    )
    sums = {name: sha256_of_file(checkpoint / name) for name in CHECKED}
    (checkpoint / CHECKSUMS).write_text(json.dumps(sums))
    return checkpoint


def vectors(checkpoint: Path, read_by: str, store: TokenStore) -> torch.Tensor:
    encoder, _ = load_encoder(read_by, str(checkpoint))
    with torch.inference_mode():
        return encoder.eval()(pack([(Sequences(store), torch.arange(len(store)).numpy())]))


@pytest.fixture(params=ARCHITECTURES)
def run(request, tmp_path) -> tuple[Path, str]:
    return make_run(tmp_path / "run", request.param), request.param


def test_checkpoints_of_the_version_before_train_on_and_give_their_vectors(run, tmp_path, own_signals, capsys):
    run, model_type = run
    model = "--model_type", model_type, "--no_cuda"
    lengths = "--max_seq_length", PASSAGE_LENGTH, "--max_query_length", QUERY_LENGTH
    initial, own = run / "saved_models" / f"checkpoint-{STEP}", tmp_path / "own"
    places = "--init_model_dir", initial, "--training_dir", own, "--data_dir", run / "preprocessed"
    results = "--result_dir", own / "results"
    call(
        run_ann_data_gen,
        *(*model, *lengths, *places, *results, "--output_dir", own / "ann_data", "--topk_training", 20),
        *("--negative_sample", 5, "--cluster_query", "--cluster_centroids", 3),
    )
    training = "--ann_dir", own / "ann_data", "--max_steps", 4, "--save_steps", 2, "--group", 1, "--n_groups", 3
    train = run_ann, *model, *lengths, *places, *results, *training, "--output_dir", own, "--optimizer", "lamb"
    call(*train)
    expected = own / "checkpoint-4"
    expected.rename(tmp_path / "expected")
    as_before(own / "checkpoint-2", model_type)
    capsys.readouterr()
    call(*train)
    assert "steps 2 to 4" in capsys.readouterr().out
    weights, again = load_file(tmp_path / "expected" / WEIGHTS), load_file(own / "checkpoint-4" / WEIGHTS)
    assert weights.keys() == again.keys()
    assert all(torch.equal(again[name], weight) for name, weight in weights.items())
    moments = [
        torch.load(folder / "optimizer.pt")["optimizer"]["state"] for folder in (tmp_path / "expected", expected)
    ]
    assert len(moments[0]) == len(moments[1]) > 30
    for number, of_parameter in moments[0].items():
        torch.testing.assert_close(moments[1][number], of_parameter, rtol=0, atol=0)

    store = TokenStore(run / "preprocessed" / "passages")
    before = vectors(expected, model_type, store)
    as_before(expected, model_type)
    for read_by in (model_type, "auto"):
        torch.testing.assert_close(vectors(expected, read_by, store), before, rtol=1e-6, atol=1e-6)


def test_embeddings_of_the_version_before_are_those_of_its_checkpoints(run, tmp_path, capsys):
    """Its manifest had the SHA-256 of the weights' file, and cls as the reading."""
    run, model_type = run
    checkpoint = as_before(run / "saved_models" / f"checkpoint-{STEP}", model_type)
    evaluation = "--split", "dev", "--data_dir", run / "preprocessed", "--model_name_or_path", checkpoint, "--no_cuda"
    evaluate = (
        evaluate_beir,
        *evaluation,
        "--model_type",
        model_type,
        "--embedding_dir",
        tmp_path / "kept",
        "--out_dir",
    )
    call(*evaluate, tmp_path / "first")
    matrices = json.loads((tmp_path / "kept" / "manifest.json").read_text())["matrices"]
    assert {matrix["reading"] for matrix in matrices.values()} == {"cls"}
    assert {matrix["weights"] for matrix in matrices.values()} == {sha256_of_file(checkpoint / WEIGHTS)}
    capsys.readouterr()
    call(*evaluate, tmp_path / "second")
    assert f"passages: {len(PASSAGES)} embeddings reused" in capsys.readouterr().out
