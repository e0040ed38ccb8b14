"""Checkpoints that are not what they seem are refused at loading, by every reader, with a cure that works."""

import io
import json
import shutil
import time
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoModel, AutoTokenizer

from data import beir_data, msmarco_data
from data.tokenizing import load_tokenizer, positions_of
from drivers import run_ann_data_gen
from evaluate import evaluate_beir, search_collection
from tests.tiny import WORDS, tiny_bert_tokenizer
from tests.tiny_models import load_encoder, tiny_config
from tests.tiny_run import PASSAGE_LENGTH, QUERY_LENGTH, call, save_tiny_checkpoint, write_beir, write_msmarco
from utils.runtime.errors import InputError
from utils.stores.pretrained import check_place, may_be_on_hub, pretrained_config

MODEL_TYPES = ["rdot_nll", "rdot_nll_condenser"]
LENGTHS = ("--max_seq_length", PASSAGE_LENGTH, "--max_query_length", QUERY_LENGTH)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """A checkpoint of somebody else's: without what training here leaves beside a model."""
    return plain(save_tiny_checkpoint(tmp_path, "rdot_nll_condenser"))


def plain(saved: Path) -> Path:
    for name in ("checksums.json", "trainer_state.json", "optimizer.pt", "random_states.pt"):
        (saved / name).unlink()
    return saved.rename(saved.with_name("model"))


def without_tokenizer(folder: Path) -> None:
    for name in TOKENIZER_FILES:
        (folder / name).unlink(missing_ok=True)


def without_first_token(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = TemplateProcessing(single="$A [SEP]", special_tokens=[("[SEP]", 3)])
    tokenizer.save(str(folder / "tokenizer.json"))


def with_more_tokens(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["qzx", "qxz"])
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("left", [(), ("tokenizer_config.json",)])
def test_a_tokenizer_that_transformers_makes_up_is_refused_and_a_saved_one_mends_it(tmp_path, model_type, left):
    folder = plain(save_tiny_checkpoint(tmp_path, model_type))
    kept = {name: (folder / name).read_bytes() for name in left}
    without_tokenizer(folder)
    for name in kept:
        (folder / name).write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": true}')
    for load in (lambda: load_tokenizer(str(folder)), lambda: load_encoder(model_type, str(folder))):
        with pytest.raises(InputError, match=r"has no tokenizer files .*makes up a tokenizer of 5 tokens.*save"):
            load()
    AutoTokenizer.from_pretrained(tmp_path / "tokenizer").save_pretrained(folder)
    load_encoder(model_type, str(folder))


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused_and_both_cures_work(tmp_path, checkpoint):
    with_more_tokens(checkpoint)
    more = shutil.copytree(checkpoint, tmp_path / "resized")
    message = r"its tokenizer has 158 tokens and its model 156 embeddings.*resize_token_embeddings"
    for load in (load_tokenizer, lambda folder: load_encoder("rdot_nll_condenser", folder)):
        with pytest.raises(InputError, match=message):
            load(str(checkpoint))
    AutoTokenizer.from_pretrained(tmp_path / "tokenizer").save_pretrained(checkpoint)
    load_encoder("rdot_nll_condenser", str(checkpoint))

    model = AutoModel.from_pretrained(more)
    model.resize_token_embeddings(len(AutoTokenizer.from_pretrained(more)))
    model.save_pretrained(more)
    _, tokenizer = load_encoder("rdot_nll_condenser", str(more))
    assert len(tokenizer) == 158


def test_more_embeddings_than_tokens_are_fine(tmp_path, checkpoint):
    model = AutoModel.from_pretrained(checkpoint)
    model.resize_token_embeddings(192)
    model.save_pretrained(checkpoint)
    load_tokenizer(str(checkpoint))
    load_encoder("rdot_nll_condenser", str(checkpoint))


def test_a_folder_of_a_tokenizer_alone_is_enough_to_tokenize(tmp_path):
    assert len(load_tokenizer(tiny_bert_tokenizer(tmp_path))) == 156


def test_a_tokenizer_without_a_first_token_is_refused_where_that_token_is_read(tmp_path, checkpoint):
    load_tokenizer(str(checkpoint))
    without_first_token(checkpoint)
    with pytest.raises(InputError, match=r"adds no first token.*save the tokenizer.*--pooling mean"):
        load_encoder("rdot_nll_condenser", str(checkpoint))
    with pytest.raises(InputError, match="adds no first token"):
        load_tokenizer(str(checkpoint))
    load_encoder("rdot_nll_condenser", str(checkpoint), pooling="mean")
    load_tokenizer(str(checkpoint), "mean")
    AutoTokenizer.from_pretrained(tmp_path / "tokenizer").save_pretrained(checkpoint)
    load_encoder("rdot_nll_condenser", str(checkpoint))


def scripts(tmp_path: Path, checkpoint: str) -> list[tuple]:
    """Every script that loads a checkpoint, with its arguments; training loads as mining does."""
    named, model = ("--model_name_or_path", checkpoint), ("--model_type", "rdot_nll_condenser")
    stores, out = tmp_path / "stores", ("--out_data_dir", tmp_path / "new", *LENGTHS)
    mining = ("--data_dir", stores, "--output_dir", tmp_path / "ann", "--training_dir", tmp_path / "none", *LENGTHS)
    return [
        (msmarco_data, "--data_dir", tmp_path / "raw", *out, *named, *model),
        (beir_data, "--data_dir", tmp_path / "beir", *out, *named, *model),
        (run_ann_data_gen, *mining, "--init_model_dir", checkpoint, *model, "--no_cuda"),
        (evaluate_beir, "--data_dir", stores, "--out_dir", tmp_path / "results", *named, *model, "--no_cuda"),
        (search_collection, "--collection", stores, "--data_dir", tmp_path / "raw", *named, *model, "--query", "a"),
    ]


OWN_CODE = {"AutoConfig": "author/code--configuration.OwnConfig", "AutoModel": "author/code--modeling.OwnModel"}


def configured(folder: Path, **content) -> Path:
    """With these entries in config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | content))
    return folder


def with_own_code(folder: Path) -> None:
    configured(folder, auto_map=OWN_CODE)


@pytest.mark.parametrize("architecture", ["bert", "xlm-roberta", "nowhere-known"])
def test_a_checkpoint_that_needs_code_of_its_own_is_refused_whatever_it_calls_itself(checkpoint, architecture):
    configured(checkpoint, auto_map=OWN_CODE, model_type=architecture)
    for load in (load_tokenizer, pretrained_config, positions_of):
        with pytest.raises(
            InputError, match=r"needs code .*modeling\.OwnModel, of auto_map.*without trust_remote_code"
        ):
            load(str(checkpoint))


def test_own_code_for_other_tasks_than_vectors_is_no_matter(checkpoint):
    configured(checkpoint, auto_map={"AutoModelForSequenceClassification": "modeling.OwnClassifier"})
    load_encoder("rdot_nll_condenser", str(checkpoint))


@pytest.mark.parametrize("architecture", ["bert", "roberta", "xlm-roberta", "camembert"])
@pytest.mark.parametrize("positions", ["relative_key", "relative_key_query", "alibi"])
def test_positions_of_another_kind_than_absolute_are_refused(checkpoint, architecture, positions):
    configured(checkpoint, model_type=architecture, position_embedding_type=positions)
    with pytest.raises(InputError, match=rf"position_embedding_type '{positions}' in config\.json.*{architecture}"):
        pretrained_config(str(checkpoint))


@pytest.mark.parametrize(
    ("architecture", "positions"), [("bert", "absolute"), ("bert", None), ("modernbert", "sans_pos"), ("mpnet", "x")]
)
def test_absolute_positions_and_a_name_that_an_architecture_never_reads_are_taken(tmp_path, architecture, positions):
    tiny_config(architecture).save_pretrained(tmp_path)
    configured(tmp_path, position_embedding_type=positions)
    assert pretrained_config(str(tmp_path)).model_type == architecture


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (with_own_code, "needs code that it brings along"),
        (without_tokenizer, "has no tokenizer files"),
        (with_more_tokens, "its tokenizer has 158 tokens"),
        (without_first_token, "adds no first token"),
        (shutil.rmtree, "there is no such folder"),
    ],
)
def test_every_script_says_what_is_wrong_with_a_checkpoint(tmp_path, checkpoint, spoil, message, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))  # search asks there
    raw, beir = write_msmarco(tmp_path / "raw"), write_beir(tmp_path / "beir")
    call(
        msmarco_data,
        "--data_dir",
        raw,
        "--out_data_dir",
        tmp_path / "stores",
        "--model_name_or_path",
        checkpoint,
        *LENGTHS,
    )
    assert beir.is_dir()
    spoil(checkpoint)
    for module, *arguments in scripts(tmp_path, str(checkpoint)):
        capsys.readouterr()
        with pytest.raises(InputError, match=message):
            call(module, *arguments)


HUB_NAMES = ["bert-base-uncased", "OpenMatch/cocodr-base", "sentence-transformers/all-MiniLM-L6-v2", "a/b.c_d"]
PATHS = [
    *("/no/such", "./model", "../model", "model/", "~/model", "runs/demo/saved_models", "a b", "a//b", "", "café"),
    *("runs/../model", "saved_models/checkpoint-200", "checkpoint-45000", "a--b", "C:\\models\\bert"),
]


def test_names_of_the_hub_are_told_from_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in HUB_NAMES:
        assert may_be_on_hub(name), name
        check_place(name)
    for path in PATHS:
        assert not may_be_on_hub(path), path
    for path in filter(None, PATHS):
        with pytest.raises(InputError, match="there is no such folder; give"):
            check_place(path)


@pytest.mark.parametrize("path", ["/no/such/checkpoint", "saved_models/checkpoint-200", "runs/demo/model"])
def test_a_folder_that_is_not_there_is_said_at_once_and_nobody_is_asked_for_it(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: pytest.fail("the network was asked"))
    for load in (load_tokenizer, lambda name: load_encoder("rdot_nll", name), pretrained_config):
        start = time.monotonic()
        with pytest.raises(InputError, match=f"{path}: there is no such folder; give"):
            load(path)
        assert time.monotonic() - start < 1


def test_a_file_in_place_of_a_folder_is_said(checkpoint):
    with pytest.raises(InputError, match=r"config\.json: is a file, and a checkpoint is a folder"):
        load_encoder("rdot_nll", str(checkpoint / "config.json"))


def test_a_name_that_the_hub_cannot_give_may_have_been_meant_as_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()

    def unreachable(*_, **__):
        raise OSError("We couldn't connect to the hub\nand so on")

    monkeypatch.setattr("utils.stores.pretrained.PreTrainedConfig.get_config_dict", unreachable)
    for name, there in (("models/bert", ", though there is models/,"), ("author/bert", ", and no")):
        with pytest.raises(InputError, match=rf"{name}: there is no such folder in .*{there}.*couldn't connect"):
            load_tokenizer(name)


def test_a_tokenizer_of_words_is_not_taken_for_a_made_up_one(checkpoint):
    vocabulary = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS)
    without_tokenizer(checkpoint)
    (checkpoint / "vocab.txt").write_text("".join(f"{token}\n" for token in vocabulary))
    assert len(load_tokenizer(str(checkpoint))) == len(vocabulary)
    (checkpoint / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    load_encoder("rdot_nll_condenser", str(checkpoint))
