"""With --no_cuda on a machine that has a GPU, no script asks anything of it."""

import inspect
import json
import shutil

import pytest
import torch

from drivers import run_ann, run_ann_data_gen
from evaluate import evaluate_beir
from tests.tiny_run import PASSAGE_LENGTH, QUERY_LENGTH, STEP, call, make_run
from utils.stores.files import sha256_of_file

# What PyTorch and transformers ask of their own accord, whatever the device; none of it starts CUDA.
HARMLESS = {"is_available", "is_initialized", "device_count", "manual_seed_all"}


@pytest.fixture
def untouchable(monkeypatch, own_signals) -> None:
    """A GPU that is there, and that fails whoever touches it."""

    def refuse(name: str):
        def touched(*args: object, **kwargs: object) -> None:
            pytest.fail(f"torch.cuda.{name} was called")

        return touched

    public = {name for name in dir(torch.cuda) if name[0].islower() and inspect.isfunction(getattr(torch.cuda, name))}
    for name in (public | {"_lazy_init"}) - HARMLESS:
        monkeypatch.setattr(torch.cuda, name, refuse(name))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)


def test_nothing_touches_the_gpu(untouchable, tmp_path, capsys):
    with pytest.raises(BaseException, match=r"torch\.cuda\.get_rng_state was called"):
        torch.cuda.get_rng_state()
    run = make_run(tmp_path / "run")
    model = "--model_type", "rdot_nll_condenser", "--no_cuda"
    lengths = "--max_seq_length", PASSAGE_LENGTH, "--max_query_length", QUERY_LENGTH
    initial, own = run / "saved_models" / f"checkpoint-{STEP}", tmp_path / "own"
    places = "--init_model_dir", initial, "--training_dir", own, "--data_dir", run / "preprocessed"
    results = "--result_dir", own / "results"
    mining = "--output_dir", own / "ann_data", "--topk_training", 20, "--negative_sample", 5
    call(run_ann_data_gen, *model, *lengths, *places, *results, *mining, "--cluster_query", "--cluster_centroids", 3)
    training = "--ann_dir", own / "ann_data", "--max_steps", 4, "--save_steps", 2, "--group", 1, "--n_groups", 3
    train = run_ann, *model, *lengths, *places, *results, *training, "--output_dir", own, "--gradient_checkpointing"
    call(*train)
    shutil.rmtree(own / "checkpoint-4")
    states = torch.load(own / "checkpoint-2" / "random_states.pt")
    assert [set(of_process) for of_process in states] == [{"cpu"}]
    of_gpu = [of_process | {"cuda": of_process["cpu"]} for of_process in states]  # as if it was begun on one
    torch.save(of_gpu, own / "checkpoint-2" / "random_states.pt")
    sums = json.loads((own / "checkpoint-2" / "checksums.json").read_text())
    sums["random_states.pt"] = sha256_of_file(own / "checkpoint-2" / "random_states.pt")
    (own / "checkpoint-2" / "checksums.json").write_text(json.dumps(sums))
    call(*train)
    assert "steps 2 to 4" in capsys.readouterr().out
    evaluated = "--split", "dev", "--out_dir", own / "evaluated", "--data_dir", run / "preprocessed"
    call(evaluate_beir, *model, "--model_name_or_path", own / "checkpoint-4", *evaluated)
