"""Prompts are part of the tokens: every script holds a token store to the checkpoint's, of older versions too."""

import io
import json
import shutil
from pathlib import Path

import pytest

from data import beir_data, msmarco_data
from drivers import run_ann, run_ann_data_gen
from evaluate import evaluate_beir, search_collection
from model.reading import Reading
from tests.tiny_run import (
    PASSAGE_LENGTH,
    PASSAGES,
    QUERY_LENGTH,
    call,
    save_random_checkpoint,
    write_beir,
    write_msmarco,
)
from utils.runtime.errors import InputError
from utils.stores.files import sha256_of_file
from utils.stores.token_store import TokenStore

LENGTHS = ("--max_seq_length", PASSAGE_LENGTH, "--max_query_length", QUERY_LENGTH)
LAYOUTS = {"msmarco": (msmarco_data, "train-query"), "beir": (beir_data, "test-query")}
NONE = ("--query_prompt=", "--passage_prompt=")
FORMS = {
    "none": NONE,
    "another query prompt": ("--query_prompt=how: ", "--passage_prompt=the "),
    "another passage prompt": ("--query_prompt=what: ", "--passage_prompt=dog "),
    "swapped": ("--query_prompt=the ", "--passage_prompt=what: "),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A checkpoint that declares prompts, and stores of both layouts that were made for it."""
    folder = tmp_path_factory.mktemp("prompts")
    save_random_checkpoint(folder / "model", "bert", Reading("mean", True, "what: ", "the "))
    write_msmarco(folder / "msmarco"), write_beir(folder / "beir")
    for layout in LAYOUTS:
        tokenize(folder, layout)
    return folder


@pytest.fixture
def folder(made, tmp_path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(made, tmp_path / "copied"))


def checkpoint(folder: Path) -> Path:
    return folder / "model" / "checkpoint-7"


def tokenize(folder: Path, layout: str, *flags: str) -> Path:
    out = folder / f"{layout}-tokens"
    call(
        LAYOUTS[layout][0],
        *("--data_dir", folder / layout, "--out_data_dir", out, *LENGTHS, "--model_type", "auto"),
        *("--model_name_or_path", checkpoint(folder), *flags),
    )
    return out


def scripts(folder: Path) -> list[tuple]:
    """Every script that reads a store with a checkpoint."""
    named, model = ("--model_name_or_path", checkpoint(folder)), ("--model_type", "auto", "--no_cuda")
    stores, test = ("--data_dir", folder / "msmarco-tokens"), ("--data_dir", folder / "beir-tokens")
    places = ("--training_dir", folder / "none", "--init_model_dir", checkpoint(folder))
    mining = (*stores, "--output_dir", folder / "ann", *places, *LENGTHS, *model)
    mining += ("--topk_training", 20, "--negative_sample", 2)
    return [
        (run_ann_data_gen, *mining),
        (evaluate_beir, *stores, "--split", "dev", "--out_dir", folder / "out", *named, *model),
        (evaluate_beir, *test, "--out_dir", folder / "of beir", *named, *model),
        (
            search_collection,
            *("--collection", folder / "msmarco-tokens", "--data_dir", folder / "msmarco", *named, *model),
            *("--query", "blue"),
        ),
        (run_ann, *stores, "--ann_dir", folder / "ann", *places, "--output_dir", folder / "models", *LENGTHS, *model),
    ]


def test_a_prompt_is_the_first_tokens_of_every_text_and_noted(made):
    for layout, (_, queries) in LAYOUTS.items():
        for kind, prompt in (("passages", ["the"]), (queries, ["what", ":"])):
            store = TokenStore(made / f"{layout}-tokens" / kind)
            assert store.meta.prompt == {"passages": "the ", queries: "what: "}[kind]
            vocabulary = json.loads((checkpoint(made) / "tokenizer.json").read_text())["model"]["vocab"]
            expected = [vocabulary[token] for token in ("[CLS]", *prompt)]
            assert all(store[row][: len(expected)].tolist() == expected for row in range(len(store)))


@pytest.mark.parametrize("flags", FORMS.values(), ids=FORMS)
def test_a_store_of_another_prompt_is_refused_by_every_script(made, flags, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))  # search asks there
    for module, *arguments in scripts(made):
        if module is search_collection and flags[1] == "--passage_prompt=the ":
            continue  # a question's own prompt is not one of a store's
        with pytest.raises(
            InputError, match=r"its texts begin with the prompt '.*', and the checkpoint is read with '.*tokeni"
        ):
            call(module, *arguments, *flags)
    assert not (made / "out" / "metrics.json").exists()


def test_every_script_takes_stores_of_the_checkpoints_own_prompts(folder, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    for module, *arguments in scripts(folder):
        call(module, *arguments, *(("--max_steps", 1) if module is run_ann else ()))
    assert (folder / "models" / "checkpoint-1").is_dir()
    assert (folder / "of beir" / "metrics.json").exists()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("flag", "length"), [("--query_prompt", QUERY_LENGTH), ("--passage_prompt", PASSAGE_LENGTH)])
def test_a_prompt_that_fills_the_length_is_refused_before_anything_is_tokenized(folder, layout, flag, length):
    shutil.rmtree(folder / f"{layout}-tokens")
    with pytest.raises(
        InputError, match=rf"is {length}, which leaves no room .* 2 special tokens and {length - 2} of the prompt"
    ):
        tokenize(folder, layout, f"{flag}={'sky ' * (length - 2)}")
    assert not (folder / f"{layout}-tokens").exists()
    tokenize(folder, layout, f"{flag}={'sky ' * (length - 3)}")


def forget_prompts(stores: Path, queries: str) -> None:
    """As a version before prompts left the stores."""
    for kind in ("passages", *{queries, *(path.parent.name for path in stores.glob("*-query/meta.json"))}):
        path = stores / kind / "meta.json"
        meta = json.loads(path.read_text())
        assert meta.pop("prompt", "") == ""
        meta.pop("lowercased", None)
        path.write_text(json.dumps(meta))
    path = stores / "sources.json"
    sources = json.loads(path.read_text())
    assert (sources["settings"].pop("query_prompt"), sources["settings"].pop("passage_prompt")) == ("", "")
    for name in ("prompt", "lowercased"):
        sources["passages"].pop(name, None)
    path.write_text(json.dumps(sources))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_stores_of_a_version_before_prompts_have_none_and_a_prompt_makes_them_anew_or_is_refused_in_use(
    folder, layout, capsys
):
    queries = LAYOUTS[layout][1]
    stores = tokenize(folder, layout, *NONE)
    forget_prompts(stores, queries)
    assert TokenStore(stores / "passages").meta.prompt == ""
    tokens = stores / "passages" / "tokens.npy"
    before = sha256_of_file(tokens), tokens.stat().st_mtime_ns
    for in_use in ((), ("--in_use",)):
        capsys.readouterr()
        tokenize(folder, layout, *NONE, *in_use)
        assert "tokenized already, from the same files" in capsys.readouterr().out
    assert (sha256_of_file(tokens), tokens.stat().st_mtime_ns) == before

    forget_prompts(stores, queries)  # what is left alone is noted again
    with pytest.raises(
        InputError, match=r"in use.*query_prompt was '' and is 'what: '; passage_prompt was '' and is"
    ):
        tokenize(folder, layout, "--in_use")
    assert (sha256_of_file(tokens), tokens.stat().st_mtime_ns) == before
    tokenize(folder, layout)
    assert "made anew" in capsys.readouterr().out
    assert TokenStore(stores / "passages").meta.prompt == "the "
    assert TokenStore(stores / queries).meta.prompt == "what: "
    assert sha256_of_file(tokens) != before[0]
    assert len(TokenStore(stores / "passages")) == len(PASSAGES)
