"""A folder with a tiny collection and a tiny model, and the real scripts that run on it as separate processes."""

import fcntl
import json
import os
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import WordPiece
from transformers import PreTrainedTokenizerFast

from data.demo_data import build, find_library
from tests.processes import free_port, heed
from tests.tiny_models import tiny_bert

ROOT = Path(__file__).resolve().parents[1]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CLUSTERS, STEPS = 5, 6
CLUSTERED = ("--cluster_query", "--cluster_centroids", CLUSTERS)
IDRO = ("--group", 1, "--n_groups", CLUSTERS, "--dro_type", "iDRO", "--max_steps", STEPS)


@dataclass
class Workplace:
    """A folder with a collection, its token stores and an initial checkpoint; runs scripts on it."""

    folder: Path

    def start(
        self, script: str, *flags, processes: int = 1, launcher: str | tuple = "launch", cwd: Path = ROOT, **settings
    ) -> subprocess.Popen:
        """Starts a script: by "launch" or "torchrun", by itself ("none"), or by torchrun with the flags given."""
        command = [sys.executable]
        if launcher == "launch":
            command += ["-m", "torch.distributed.launch", "--nproc_per_node", processes, "--master_port", free_port()]
        elif launcher == "torchrun":
            command = [Path(sys.executable).parent / "torchrun", "--standalone", "--nproc_per_node", processes]
        elif launcher != "none":
            command += ["-m", "torch.distributed.run", *launcher]
        command += [os.path.relpath(ROOT / script, cwd), *flags]
        return self.popen(command, cwd=cwd, **settings)

    def popen(
        self,
        command: list,
        cwd: Path = ROOT,
        terminal: int | None = None,
        ignoring: tuple[int, ...] = (),
        **environment: str,
    ) -> subprocess.Popen:
        """Starts any command, with these environment variables besides the tests' own; in a terminal, if given.

        It heeds all signals that ask it to stop but those that it is to be `ignoring`.
        """
        if terminal is None:
            streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        else:
            streams = {"stdin": terminal, "stdout": terminal, "stderr": terminal}

        def prepare() -> None:
            heed(*ignoring)
            if terminal is not None:  # its own: when it is closed, the process gets SIGHUP
                os.setsid()
                fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        return subprocess.Popen(
            list(map(str, command)),
            cwd=cwd,
            **streams,
            preexec_fn=prepare,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"} | environment,
        )

    def run(self, script: str, *flags, fails: bool = False, **settings) -> subprocess.CompletedProcess:
        process = self.start(script, *flags, **settings)
        stdout, stderr = process.communicate()
        assert (process.returncode != 0) == fails, stdout + stderr
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def tokenize(self, out: Path, *flags) -> None:
        self.run(
            "data/msmarco_data.py",
            *("--data_dir", self.folder / "msmarco", "--out_data_dir", out, "--data_type", 1),
            *("--model_type", "rdot_nll_condenser", "--model_name_or_path", self.folder / "initial"),
            *("--max_seq_length", 48, *flags),
            launcher="none",
            cwd=self.folder,
        )

    def mine(self, number: int, *flags, background: bool = False, **settings):
        return (self.start if background else self.run)(
            "drivers/run_ann_data_gen.py",
            *("--model_type", "rdot_nll_condenser", "--init_model_dir", self.folder / "initial"),
            *("--training_dir", self.folder / "models", "--data_dir", self.folder / "preprocessed"),
            *("--output_dir", self.folder / "ann_data", "--result_dir", self.folder / "results"),
            *("--max_seq_length", 48, "--max_query_length", 16, "--topk_training", 40, "--negative_sample", 7),
            *("--end_output_num", number, "--no_cuda", *flags),
            **settings,
        )

    def train(self, number: int, *flags, background: bool = False, **settings):
        return (self.start if background else self.run)(
            "drivers/run_ann.py",
            *("--model_type", "rdot_nll_condenser", "--init_model_dir", self.folder / "initial"),
            *("--output_dir", self.folder / "models", "--data_dir", self.folder / "preprocessed"),
            *("--ann_dir", self.folder / "ann_data", "--result_dir", self.folder / "results", "--round", number),
            *("--max_seq_length", 48, "--max_query_length", 16, "--per_gpu_train_batch_size", 8),
            *("--optimizer", "adamW", "--learning_rate", 1e-3, "--logging_steps", 2, "--no_cuda", *flags),
            **settings,
        )

    def evaluate(self, checkpoint: str, collection: str, *flags, **settings) -> dict:
        """What evaluate_beir.py writes, which must be what it prints."""
        out = self.folder / "evaluated" / checkpoint / collection
        finished = self.run(
            "evaluate/evaluate_beir.py",
            *("--model_type", "rdot_nll_condenser", "--model_name_or_path", self.folder / checkpoint),
            *("--data_dir", self.folder / collection, "--out_dir", out, "--no_cuda", *flags),
            **settings,
        )
        content = json.loads((out / "metrics.json").read_text())
        assert f"ndcg@10 {content['metrics']['ndcg@10']:.4f}" in finished.stdout
        return content

    def checkpoint(self, step: int) -> Path:
        return self.folder / "models" / f"checkpoint-{step}"

    def weights(self, step: int) -> dict[str, np.ndarray]:
        return load_file(self.checkpoint(step) / "model.safetensors")

    def result(self, number: int) -> dict:
        return json.loads((self.folder / "results" / f"ann_ndcg_{number}").read_text())


def train_tokenizer(texts: list[str], folder: Path) -> int:
    """Saves a WordPiece tokenizer trained on the texts, and returns the size of its vocabulary."""
    tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=1500, special_tokens=SPECIAL))
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    return tokenizer.get_vocab_size()


def make_workplace(folder: Path) -> Workplace:
    """A collection that is tokenized, and its first episode mined by two processes."""
    raw = folder / "msmarco"
    build(
        {"numpy": find_library("numpy") / "lib"},
        {"scipy": find_library("scipy") / "stats"},
        raw,
        folder / "scipy-docs",
        max_passages=250,
        max_zero_shot_passages=60,
    )
    texts = [line.split("\t")[1] for line in (raw / "collection.tsv").read_text().splitlines()]
    vocabulary = train_tokenizer(texts, folder / "initial")
    tiny_bert(hidden=32, vocabulary=vocabulary).save_pretrained(folder / "initial")
    place = Workplace(folder)
    place.tokenize(folder / "preprocessed", "--max_query_length", 16)
    place.mine(0, *CLUSTERED, "--group", 1, processes=2)
    return place


def wait_for(condition: Callable[[], bool], *processes: subprocess.Popen, seconds: float = 120) -> None:
    """Waits until `condition` holds, as long as these processes run and for so many seconds at most."""
    patience = time.monotonic() + seconds
    while not condition():
        for process in processes:
            assert process.poll() is None, "".join(process.communicate())
        assert time.monotonic() < patience
        time.sleep(0.02)
