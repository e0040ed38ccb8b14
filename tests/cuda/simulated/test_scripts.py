"""The scripts by their `main`: all run on the simulated device, and the drivers write what they write on the CPU."""

import contextlib
import io
import json
import multiprocessing
import re
import runpy
import shutil
import sys
import threading
from dataclasses import dataclass, fields
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from drivers import run_ann, run_ann_data_gen
from evaluate.benchmarks import contenders, processes, quality
from evaluate.benchmarks.processes import Stage
from tests.cuda.device import simulated_cuda
from tests.drivers.conftest import own_signals  # noqa: F401
from tests.tiny_run import COLLECTION, PASSAGE_LENGTH, QUERY_LENGTH, STEP, call, make_run

pytestmark = pytest.mark.usefixtures("own_signals")

ROOT = Path(__file__).resolve().parents[3]
LENGTHS = ("--max_seq_length", PASSAGE_LENGTH, "--max_query_length", QUERY_LENGTH)
MODEL = ("--model_type", "rdot_nll_condenser", *LENGTHS)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run: token stores and a checkpoint, which drops some of what it computes in training."""
    folder = make_run(tmp_path_factory.mktemp("scripts") / "run")
    initial = Path(shutil.copytree(checkpoint_of(folder), folder.parent / "initial"))
    for name in ("checksums.json", "trainer_state.json"):
        (initial / name).unlink()
    config = json.loads((initial / "config.json").read_text())
    for dropping in (False, True):
        own = Path(shutil.copytree(initial, folder.parent / f"initial-{dropping}"))
        config |= dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.2 * dropping)
        (own / "config.json").write_text(json.dumps(config))
    return folder


def checkpoint_of(run: Path) -> Path:
    return run / "saved_models" / f"checkpoint-{STEP}"


@dataclass
class Training:
    """What a run of both drivers writes into a folder."""

    made: Path
    folder: Path
    dropping: bool = False

    @property
    def places(self) -> tuple:
        initial = self.made.parent / f"initial-{self.dropping}"
        return (
            *("--init_model_dir", initial, "--training_dir", self.folder / "models"),
            *("--data_dir", self.made / "preprocessed", "--result_dir", self.folder / "results"),
        )

    def mine(self, number: int, *flags: object) -> None:
        mining = ("--output_dir", self.folder / "ann_data", "--topk_training", 20, "--negative_sample", 5)
        clusters = ("--cluster_query", "--cluster_centroids", 3, "--queries_together", 2, "--negatives_a_query", 2)
        call(run_ann_data_gen, *MODEL, *self.places, *mining, *clusters, "--end_output_num", number, *flags)

    def train(self, *flags: object) -> None:
        steps = ("--max_steps", 4, "--save_steps", 2, "--warmup_steps", 0, "--per_gpu_train_batch_size", 4)
        optimizer = ("--optimizer", "adamW", "--learning_rate", 1e-3, "--adam_epsilon", 1e-3)
        objective = ("--loss", "contrastive", "--group", 1, "--n_groups", 3)
        where = ("--ann_dir", self.folder / "ann_data", "--output_dir", self.folder / "models")
        call(run_ann, *MODEL, *self.places, *where, *steps, *optimizer, *objective, *flags)

    def checkpoint(self, step: int) -> Path:
        return self.folder / "models" / f"checkpoint-{step}"

    def weights(self, step: int) -> dict[str, np.ndarray]:
        return load_file(self.checkpoint(step) / "model.safetensors")

    def embeddings(self, step: int) -> dict[str, np.ndarray]:
        files = (self.folder / "ann_data" / f"embeddings-{step}").glob("*.npy")
        return {path.name: np.load(path) for path in files}

    def mined(self, number: int) -> tuple[str, dict]:
        text = (self.folder / "ann_data" / f"ann_training_data_{number}").read_text()
        return text, json.loads((self.folder / "results" / f"ann_ndcg_{number}").read_text())


def assert_close(got: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float) -> None:
    assert got.keys() == expected.keys() != set()
    for name, array in expected.items():
        np.testing.assert_allclose(got[name], array, rtol=tolerance, atol=tolerance, err_msg=name)


def test_both_drivers_write_what_they_write_on_the_cpu(made, tmp_path):
    cpu, cuda = Training(made, tmp_path / "cpu"), Training(made, tmp_path / "cuda")

    def both(training: Training, *flags: str) -> None:
        training.mine(0, *flags)
        training.train(*flags)
        training.mine(1, *flags)

    both(cpu, "--no_cuda")
    with simulated_cuda() as device:
        both(cuda)
        assert device.launches["index_select"], "it was used"
    for step in (0, 4):
        assert_close(cuda.embeddings(step), cpu.embeddings(step), 1e-3)
    assert_close(cuda.weights(4), cpu.weights(4), 1e-4)
    assert not np.array_equal(*(of.weights(4)["encoder.layer.0.output.dense.weight"] for of in (cpu, cuda)))
    for number in (0, 1):
        (text, result), (expected, expected_result) = cuda.mined(number), cpu.mined(number)
        assert text == expected
        for name in ("ndcg", "mrr", "triplets", "cluster_sizes"):
            assert result[name] == expected_result[name]


def test_resumed_training_is_that_of_one_that_was_never_stopped_to_the_bit(made, tmp_path, capsys):
    whole = Training(made, tmp_path / "whole", dropping=True)
    with simulated_cuda():
        whole.mine(0)
        whole.train()
    (states,) = torch.load(whole.checkpoint(2) / "random_states.pt", weights_only=True)
    assert set(states) == {"cpu", "cuda"}
    with pytest.raises(RuntimeError, match="deserialize object on a CUDA device"):
        torch.load(whole.checkpoint(2) / "optimizer.pt", weights_only=True)  # as of a real one

    resumed = Training(made, shutil.copytree(whole.folder, tmp_path / "resumed"), dropping=True)
    on_cpu = Training(made, shutil.copytree(whole.folder, tmp_path / "on-cpu"), dropping=True)
    for one in (resumed, on_cpu):
        shutil.rmtree(one.checkpoint(4))
    with simulated_cuda():
        torch.manual_seed(1)
        resumed.train()
    on_cpu.train("--no_cuda")
    assert capsys.readouterr().out.count("steps 2 to 4") == 2
    assert_close(resumed.weights(4), whole.weights(4), 0)
    halfway, after = (whole.weights(step)["embeddings.LayerNorm.bias"] for step in (2, 4))
    assert not np.array_equal(halfway, after)

    with simulated_cuda():  # and on from the CPU's
        shutil.rmtree(on_cpu.checkpoint(2))
        on_cpu.mine(1)
        on_cpu.train("--round", 1)
    assert on_cpu.checkpoint(8).exists()


def watch_here(script: Path, flags: list, ends: tuple = ()) -> list[Stage]:
    """As `processes.watch_python`, but in this process."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        call(SimpleNamespace(__file__=script, main=lambda: runpy.run_path(str(script), run_name="__main__")), *flags)
    assert re.search(".*".join(ends), said.getvalue(), re.DOTALL), said.getvalue()
    return [Stage(1.0, 0.5, 0.75)] * (len(ends) + 1)


class ThreadAsProcess(threading.Thread):
    def terminate(self) -> None:
        pass


def pipe() -> tuple[Connection, SimpleNamespace]:
    """Two ends, of which the second stays open when the one who started the thread closes it."""
    own, of_thread = multiprocessing.Pipe()
    return own, SimpleNamespace(send=of_thread.send, recv=of_thread.recv, close=lambda: None)


@pytest.fixture
def one_process(monkeypatch) -> None:
    """What benchmarks do in processes of their own is done here, where the device is simulated."""
    context = SimpleNamespace(Pipe=pipe, Process=ThreadAsProcess)
    monkeypatch.setattr(contenders, "multiprocessing", SimpleNamespace(get_context=lambda kind: context))
    monkeypatch.setattr(contenders, "peak_of_fresh_process", lambda script, args, name: 0.25)
    monkeypatch.setattr(processes, "watch_python", watch_here)
    monkeypatch.setattr(quality, "in_child", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(quality, "CALIBRATION_STEPS", 2)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))


def commands(made: Path, out: Path) -> dict[str, tuple]:
    """A small call of each script that takes a device."""
    model, texts, whole = checkpoint_of(made), made / "collection" / "msmarco", Training(made, out / "whole")
    written = ("--out_dir", out)
    collection = (*written, "--collection_dir", texts, "--checkpoint", model)
    stores = ("--data_dir", made / "preprocessed")
    mining = ("--topk_training", 20, "--negative_sample", 5, "--cluster_query", "--cluster_centroids", 3, "--fp16")
    mining = (*MODEL, *whole.places, *mining, "--output_dir", whole.folder / "ann_data")
    training = ("--ann_dir", whole.folder / "ann_data", "--group", 1, "--n_groups", 3, "--max_steps", 1, "--fp16")
    one_of_ours = ("--contenders", "contrastive+idro+keep+normalized", "--budgets", "texts", "--rates", 1e-3)
    quality_of = (
        *one_of_ours,
        "--zero_shot_dir",
        made.parent / COLLECTION,
        "--seeds",
        1,
        "--steps",
        2,
        "--max_relative_score",
        0,
    )
    rounds, small = ("--rounds", 1), ("--negatives", 2, "--clusters", 2)
    return {
        **dict.fromkeys(("drivers/run_ann_data_gen.py", "drivers/run_ann_data_gen_beir.py"), mining),
        "drivers/run_ann.py": (*MODEL, *whole.places, *training, "--gradient_checkpointing"),
        "evaluate/evaluate_beir.py": (
            *(*written, *stores, "--split", "dev", "--model_name_or_path", model, "--fp16"),
            *("--model_type", "rdot_nll_condenser"),
        ),
        "evaluate/search_collection.py": ("--run_dir", made, "--query", "the blue sky"),
        "evaluate/benchmarks/encoding.py": (
            *collection,
            *rounds,
            "--texts",
            9,
            "--product_size",
            8,
            "--max_seq_length",
            16,
        ),
        "evaluate/benchmarks/group_gradients.py": (
            *(*written, "--shape", "tiny", "--clusters", 3, "--triplets", 9, "--steps", 1, "--fp16"),
        ),
        "evaluate/benchmarks/growth.py": (
            *(*written, *rounds, "--checkpoint", model, "--passages", 40, "--queries", 20, "--clusters", 2),
        ),
        "evaluate/benchmarks/library_miner.py": (
            *("--collection_dir", texts, "--checkpoint", model, "--topk", 5, "--negatives", 2),
            *("--out_dir", out / "library"),
        ),
        "evaluate/benchmarks/mining.py": (*collection, *stores, *LENGTHS, *rounds, *small, "--topk", 10),
        "evaluate/benchmarks/quality.py": (
            *(*collection, *LENGTHS, *quality_of, *small, "--samples", 4, "--topk", 8, "--queries_together", 2),
        ),
        "evaluate/benchmarks/search.py": (
            *(*written, *rounds, "--passages", 300, "--queries", 9, "--dimensions", 8, "--k", 7),
            *("--product_size", 8),
        ),
        "evaluate/benchmarks/training.py": (
            *(*collection, *stores, *LENGTHS, *rounds, "--shape", "tiny", "--clusters", 3, "--triplets", 9),
            *("--product_size", 8),
        ),
    }


def scripts_with_a_device() -> set[str]:
    """The Python scripts that take --no_cuda."""
    paths = (path for room in ("data", "drivers", "evaluate") for path in (ROOT / room).rglob("*.py"))
    found = set()
    for path in paths:
        if "\nif __name__ ==" in path.read_text():
            script = path.relative_to(ROOT).as_posix()
            arguments = module_of(script).main.__globals__.get("Arguments")
            if arguments and "no_cuda" in {field.name for field in fields(arguments)}:
                found.add(script)
    return found


def module_of(script: str) -> ModuleType:
    return import_module(script.removesuffix(".py").replace("/", "."))


@pytest.mark.parametrize("script", sorted(scripts_with_a_device()))
def test_every_script_runs(made, tmp_path, one_process, script):
    called = commands(made, tmp_path)
    if script == "drivers/run_ann.py":
        call(run_ann_data_gen, *called["drivers/run_ann_data_gen.py"], "--no_cuda")
    with simulated_cuda() as device:
        call(module_of(script), *called[script])
    assert device.launches
