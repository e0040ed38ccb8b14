"""drivers/choose_settings.py: counts what there is, asks the checkpoint, and writes what run_ance.sh reads."""

import re
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from data import msmarco_data
from drivers import choose_settings as driver
from drivers import run_ann, run_ann_data_gen
from model.hyperparameters import NAMES, PUBLISHED, Size, choose
from model.reading import Reading
from tests import tiny_run
from tests.tiny_models import tiny_bert
from utils.runtime.errors import InputError
from utils.stores.token_store import TokenStore

CHECKS = {  # what commands/common.sh accepts of each setting
    "OPTIMIZER": r"lamb|adamW",
    "LOSS": "pairwise|contrastive",
    "ABSENT": "drop|keep",
    "NORMALIZE_WEIGHTS": "0|1",
    "QUERIES_TOGETHER": r"0|[1-9][0-9]*",
    "NEGATIVES_A_QUERY": r"0|[1-9][0-9]*",
    "MAX_RELATIVE_SCORE": "off",
    "LEARNING_RATE": r"[0-9]*\.?[0-9]+([eE][-+]?[0-9]+)?",
    "WARMUP_STEPS": r"0|[1-9][0-9]*",
    "BY_SIZE": "0|1",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Token stores, an encoder with a reading of its own, and a plain one."""
    folder = tmp_path_factory.mktemp("choose")
    reading = Reading("mean", True, "", "")
    tiny_run.save_tiny_checkpoint(folder / "saved", "rdot_nll_condenser", reading=reading).rename(folder / "declared")
    tiny_bert().model.save_pretrained(folder / "plain")
    tiny_run.write_msmarco(folder / "raw")
    flags = ("--model_type", "auto", "--model_name_or_path", folder / "declared", "--max_seq_length", 64)
    tiny_run.call(msmarco_data, *flags, "--data_dir", folder / "raw", "--out_data_dir", folder / "stores")
    return folder


def settings(place: Path, checkpoint: str, *flags: object) -> dict[str, str]:
    """The settings that the script writes, read as bash reads them."""
    path = place / ".chosen"
    path.unlink(missing_ok=True)
    told = ("--model_name_or_path", place / checkpoint, "--data_dir", place / "stores", "--settings_file", path)
    tiny_run.call(driver, *told, *flags)
    found = dict(line.split("=", 1) for line in path.read_text().splitlines())
    for name, value in found.items():
        assert re.fullmatch(CHECKS.get(name, r"[1-9][0-9]*"), value), (name, value)
    return found


def test_what_is_written_is_what_the_rule_says_of_these_stores_and_this_encoder(place, capsys):
    queries, passages = (len(TokenStore(place / "stores" / name)) for name in ("train-query", "passages"))
    width = tiny_bert().config.hidden_size
    for checkpoint, declared in (("declared", True), ("plain", False)):
        found = settings(place, checkpoint)
        expected = choose(Size(queries, passages, width, declared), {})
        assert found.pop("BY_SIZE") == "1"
        assert found.keys() == set(NAMES)
        said = capsys.readouterr().out
        for name, (value, why) in expected.items():
            assert (found[name] if isinstance(value, str) else float(found[name])) == value
            assert f"{name} {found[name]}" in said
            assert f": {why}" in said
        assert f"{queries:,} training queries, {passages:,} passages" in said


def test_a_contrastive_loss_without_blocks_is_refused(place):
    with pytest.raises(InputError, match="--loss contrastive and --queries_together 0: there are no blocks"):
        settings(place, "declared", "--loss", "contrastive", "--queries_together", 0)


def test_what_is_given_is_not_written_and_the_rest_is_chosen_around_it(place):
    given = ("--batch_size", 2, "--accumulation", 3, "--learning_rate", "1e-5", "--warmup_steps", 0)
    found = settings(place, "declared", *given, "--processes", 2)
    queries = len(TokenStore(place / "stores" / "train-query"))
    assert not found.keys() & {"BATCH_SIZE", "ACCUMULATION", "LEARNING_RATE", "WARMUP_STEPS"}
    size = Size(queries, len(TokenStore(place / "stores" / "passages")), 32, True, processes=2)
    steps = choose(size, {"BATCH_SIZE": 2, "ACCUMULATION": 3})["STEPS"].value
    assert int(found["STEPS"]) == steps
    assert int(found["NUM_TRAINING_STEPS"]) == steps
    words = {"OPTIMIZER": "adamW", "LOSS": "pairwise", "ABSENT": "drop"}
    everything = [word for name in NAMES for word in (f"--{name.lower()}", words.get(name, "1"))]
    assert settings(place, "declared", *everything) == {"BY_SIZE": "1"}


@pytest.mark.parametrize("size", ["base", "large"])
def test_from_400000_queries_on_a_plain_encoder_gets_what_is_published(place, monkeypatch, size):
    published = {name: str(value) for name, value in PUBLISHED[size].items()} | {"LEARNING_RATE": "5e-6"}
    assert settings(place, "plain", "--by_size", 0, "--model_size", size) == published | {"BY_SIZE": "0"}
    monkeypatch.setattr(driver.TokenStore, "__len__", lambda self: 400_000)
    assert settings(place, "plain", "--model_size", size) == published | {"BY_SIZE": "0"}
    of_type = settings(place, "declared", "--model_type", "rdot_nll_condenser", "--model_size", size)
    assert of_type == published | {"BY_SIZE": "0"}, "as a published type, whatever it declares"
    assert settings(place, "declared")["BY_SIZE"] == "1"
    assert settings(place, "plain", "--by_size", 1)["BY_SIZE"] == "1"
    monkeypatch.setattr(driver.TokenStore, "__len__", lambda self: 399_999)
    assert settings(place, "plain")["BY_SIZE"] == "1"


def test_started_in_several_processes_it_counts_them_and_the_first_one_writes(place, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "0")
    assert settings(place, "declared")["BATCH_SIZE"] == "8", "a block"
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(FileNotFoundError):
        settings(place, "declared")


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--steps", 0), "--steps is 0; at least 1"),
        (("--model_size", "huge"), "--model_size 'huge' is unknown; there are base, large"),
        (("--data_dir", "nowhere"), "no such token store"),
        (("--objective", "vrex"), "--objective 'vrex' is unknown; there are erm, balanced"),
    ],
)
def test_misuse_is_told(place, flags, reason):
    with pytest.raises(InputError, match=reason):
        settings(place, "declared", *flags)


@pytest.mark.parametrize("queries", [1, 3])
def test_of_three_queries_and_twelve_passages_what_is_chosen_mines_and_trains(place, tmp_path, own_signals, queries):
    raw, lengths = tmp_path / "raw", ("--max_seq_length", 24, "--max_query_length", 12)
    raw.mkdir()
    passages = enumerate(tiny_run.PASSAGES[:12])
    (raw / "collection.tsv").write_text("".join(f"{i}\t{text}\n" for i, text in passages))
    for split in ("train", "dev"):
        texts, judged = (
            (f"{i}\t{tiny_run.QUERIES[i]}\n" for i in range(queries)),
            (f"{i}\t0\t{i}\t1\n" for i in range(queries)),
        )
        (raw / f"queries.{split}.tsv").write_text("".join(texts))
        (raw / f"qrels.{split}.tsv").write_text("".join(judged))
    checkpoint, stores, out = place / "declared", tmp_path / "stores", tmp_path / "out"
    reads = ("--model_type", "auto", *lengths)
    tiny_run.call(
        msmarco_data, *reads, "--model_name_or_path", checkpoint, "--data_dir", raw, "--out_data_dir", stores
    )
    told = ("--model_name_or_path", checkpoint, "--data_dir", stores, "--settings_file", tmp_path / "chosen")
    tiny_run.call(driver, *told)
    chosen = dict(line.split("=", 1) for line in (tmp_path / "chosen").read_text().splitlines())
    folders = ("--training_dir", out, "--output_dir", out, "--result_dir", out, "--data_dir", stores)
    both = (*reads, *folders, "--init_model_dir", checkpoint, "--group", 1, "--no_cuda")
    mine = ("--topk_training", "--negative_sample", "--cluster_centroids"), ("TOPK", "NEGATIVES", "CLUSTERS")
    flags = [word for flag, name in zip(*mine, strict=True) for word in (flag, chosen[name])]
    tiny_run.call(run_ann_data_gen, *both, *flags, "--cluster_query", "--end_output_num", 0)
    names = "OPTIMIZER", "LEARNING_RATE", "WARMUP_STEPS", "NUM_TRAINING_STEPS", "TOTAL_TRAINING_STEPS", "SAVE_STEPS"
    flags = [word for name in names for word in (f"--{name.lower()}", chosen[name])]
    flags += ["--max_steps", chosen["STEPS"], "--n_groups", chosen["CLUSTERS"]]
    flags += ["--per_gpu_train_batch_size", chosen["BATCH_SIZE"], "--gradient_accumulation_steps"]
    tiny_run.call(run_ann, *both, "--ann_dir", out, "--round", 0, *flags, chosen["ACCUMULATION"])
    trained = load_file(out / f"checkpoint-{chosen['STEPS']}" / "model.safetensors")
    initial = load_file(checkpoint / "model.safetensors")
    assert any((trained[name] != initial[name]).any() for name in initial), "a step at a rate above 0"
