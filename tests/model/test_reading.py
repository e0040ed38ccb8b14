"""A reading is what a checkpoint's own files declare, of both generations; what cannot be done is refused by name."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, LayerNorm, Normalize, Pooling, Transformer

from drivers.find_reading import settings_of
from model.encoders import RobertaDot, load_encoder
from model.reading import (
    AUTO,
    MODEL_TYPES,
    HeadLayer,
    Reading,
    declared_lengths,
    declared_reading,
    find_reading,
    published_reading,
)
from tests.tiny import tiny_bert_tokenizer
from tests.tiny_models import tiny_bert, tiny_config, tiny_model, tiny_roberta
from utils.runtime.errors import InputError
from utils.runtime.logs import say_once

LIBRARY = "sentence_transformers.models."


def declared(folder: Path) -> Reading | None:
    return declared_reading(str(folder))


def write(folder: Path, **files) -> Path:
    """Files of the older generation: mean pooling and nothing else, but for the `files` given by their names."""
    content = {
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        ],
        "1_Pooling/config.json": {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True},
        "config_sentence_transformers.json": {"similarity_fn_name": "dot"},
    } | files
    for name, value in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(value))
    return folder


def modules(*more: tuple[str, str]) -> list[dict]:
    listed = [("", f"{LIBRARY}Transformer"), ("1_Pooling", f"{LIBRARY}Pooling"), *more]
    return [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(listed)]


def test_a_checkpoint_without_such_files_declares_nothing(tmp_path):
    assert declared(tmp_path) is None


@pytest.mark.parametrize("checkpoint", ["/no/where", "no/where/at/all", "checkpoint-7"])
def test_a_checkpoint_that_cannot_be_is_told_in_one_line_and_the_hub_is_not_asked(checkpoint):
    with pytest.raises(InputError, match="there is no such folder"):
        find_reading(checkpoint, AUTO)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("normalizes", [False, True])
def test_what_the_library_saves_is_read_as_it_was_made(tmp_path, pooling, similarity, head, normalizes):
    tiny_bert_tokenizer(tmp_path / "encoder")
    tiny_bert(vocabulary=200).model.save_pretrained(tmp_path / "encoder")
    parts = [Transformer(str(tmp_path / "encoder")), Pooling(16, pooling)]
    parts += [Dense(16, 8, bias=False), LayerNorm(8)] if head else []
    parts += [Normalize()] if normalizes else []
    prompts = {"query": "find: ", "document": "text: "}
    SentenceTransformer(modules=parts, prompts=prompts, similarity_fn_name=similarity).save(str(tmp_path / "saved"))

    reading = declared(tmp_path / "saved")
    normalized = normalizes or similarity == "cosine"
    layers = (HeadLayer("Dense", 16, 8, False, "Tanh", "2_Dense"), HeadLayer("LayerNorm", 8, 8, folder="3_LayerNorm"))
    expected = Reading(pooling, normalized, "find: ", "text: ")
    assert reading == Reading(**vars(expected) | {"head": layers if head else ()})


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, Reading("mean")),
        ({"1_Pooling/config.json": {"pooling_mode_cls_token": True}}, Reading("cls")),
        ({"1_Pooling/config.json": {"word_embedding_dimension": 16}}, Reading("mean")),
        ({"config_sentence_transformers.json": {}}, Reading("mean", True)),
        ({"config_sentence_transformers.json": {"similarity_fn_name": None}}, Reading("mean", True)),
        ({"sentence_bert_config.json": {"do_lower_case": True}}, Reading("mean", lowercase=True)),
        ({"sentence_roberta_config.json": {"do_lower_case": True}}, Reading("mean", lowercase=True)),
        (
            {"config_sentence_transformers.json": {"similarity_fn_name": "dot", "prompts": {"passage": "p: "}}},
            Reading("mean", passage_prompt="p: "),
        ),
        (
            {
                "config_sentence_transformers.json": {
                    "similarity_fn_name": "dot",
                    "prompts": {"query": "q: ", "passage": "p: ", "document": ""},
                }
            },
            Reading("mean", query_prompt="q: ", passage_prompt="p: "),
        ),
    ],
)
def test_files_of_the_older_generation(tmp_path, files, expected):
    assert declared(write(tmp_path, **files)) == expected


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"1_Pooling/config.json": {"pooling_mode_max_tokens": True}}, "max pooling"),
        (
            {"1_Pooling/config.json": {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}},
            "cls + mean pooling",
        ),
        ({"1_Pooling/config.json": {"pooling_mode": "lasttoken"}}, "lasttoken pooling"),
        ({"1_Pooling/config.json": {"pooling_mode": ["mean", "max"]}}, "mean + max pooling"),
        ({"1_Pooling/config.json": {"pooling_mode": "mean", "include_prompt": False}}, "include_prompt"),
        ({"modules.json": modules(("2_Router", f"{LIBRARY}Router"))}, "module Router"),
        (
            {"modules.json": modules(("2_N", f"{LIBRARY}Normalize"), ("3_Dense", f"{LIBRARY}Dense"))},
            "module Dense after Normalize",
        ),
        ({"modules.json": modules()[1:]}, "begins with Pooling"),
        ({"modules.json": modules(("2_N", "own_code.Normalize"))}, "module own_code.Normalize"),
        ({"modules.json": [modules()[0] | {"path": "0_Transformer"}, modules()[1]]}, "folder of its own"),
        (
            {
                "modules.json": modules(("2_Dense", f"{LIBRARY}Dense")),
                "2_Dense/config.json": {"in_features": 16, "out_features": 8, "module_output_name": "other"},
            },
            "2_Dense: a layer that is not",
        ),
        ({"modules.json": [{"type": 3}]}, "type and path"),
        ({"modules.json": {}}, "type and path"),
        (
            {"modules.json": modules(("2_Dense", f"{LIBRARY}Dense")), "2_Dense/config.json": {"in_features": 16}},
            "in_features or out_features",
        ),
        (
            {
                "modules.json": modules(("2_Dense", f"{LIBRARY}Dense")),
                "2_Dense/config.json": {"in_features": 16, "out_features": 8, "activation_function": "torch.nn.GELU"},
            },
            "activation GELU",
        ),
        ({"config_sentence_transformers.json": {"similarity_fn_name": "euclidean"}}, "euclidean"),
        ({"config_sentence_transformers.json": {"truncate_dim": 8}}, "8 dimensions"),
        ({"config_sentence_transformers.json": {"prompts": ["q: "]}}, "prompts"),
        ({"sentence_bert_config.json": {"query_expansion": {"length": 32}}}, "query_expansion"),
        ({"sentence_bert_config.json": {"tokenizer_name_or_path": "other"}}, "tokenizer_name_or_path, other"),
        ({"sentence_bert_config.json": {"processing_kwargs": {"text": {"max_length": 8}}}}, "processing_kwargs"),
        ({"sentence_bert_config.json": {"tokenizer_args": {"do_lower_case": True}}}, "tokenizer_args do_lower_case"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(tmp_path, files, named):
    with pytest.raises(InputError, match=re.escape(named)) as raised:
        declared(write(tmp_path, **files))
    assert str(tmp_path) in str(raised.value)


def test_a_dense_layer_that_names_no_activation_has_the_librarys(tmp_path):
    dense = modules(("2_Dense", f"{LIBRARY}Dense"))
    write(tmp_path, **{"modules.json": dense, "2_Dense/config.json": {"in_features": 16, "out_features": 8}})
    assert declared(tmp_path).head[0].activation == "Tanh" == type(Dense(16, 8).activation_function).__name__


def test_a_pooling_whose_settings_are_missing_is_not_taken_for_the_mean(tmp_path):
    (write(tmp_path) / "1_Pooling" / "config.json").unlink()
    with pytest.raises(InputError, match=r"1_Pooling: its config\.json, which says the pooling, is missing"):
        declared(tmp_path)


def test_prompts_of_other_names_are_said_not_to_be_used(tmp_path, capsys):
    settings = {"similarity_fn_name": "dot", "prompts": {"query": "", "find": "Find: "}}
    assert declared(write(tmp_path, **{"config_sentence_transformers.json": settings})) == Reading("mean")
    assert "prompts of other names than query, document and passage ('find')" in capsys.readouterr().out
    settings["prompts"]["query"] = "Query: "
    assert declared(write(tmp_path, **{"config_sentence_transformers.json": settings})).query_prompt == "Query: "
    assert capsys.readouterr().out == ""


def test_a_prompt_that_only_the_first_chunk_would_have_is_refused(tmp_path):
    chunks = "rdot_nll_multi_chunk"
    with pytest.raises(InputError, match="of which the first alone would have the prompt 'p: '"):
        find_reading(str(tmp_path), chunks, passage_prompt="p: ")
    assert find_reading(str(tmp_path), chunks, query_prompt="q: ", passage_prompt="").query_prompt == "q: "


@pytest.mark.parametrize(
    "files",
    [
        {"modules.json": modules(("2_N", "x\x1b[2J\n"))},
        {"1_Pooling/config.json": {"pooling_mode": "x\x1b[2J\n"}},
        {"config_sentence_transformers.json": {"similarity_fn_name": "x\x1b[2J\n"}},
        {"config_sentence_transformers.json": {"truncate_dim": "x\x1b[2J\n"}},
    ],
)
def test_nothing_that_a_checkpoint_declares_reaches_the_terminal_but_letters(tmp_path, files):
    with pytest.raises(InputError, match=r"x\\x1b\[2J") as raised:
        declared(write(tmp_path, **files))
    assert str(raised.value).isprintable()


def test_lengths_are_read_from_the_files_older_names_too(tmp_path):
    write(tmp_path, **{"sentence_xlm-roberta_config.json": {"max_seq_length": 24}})
    assert declared_lengths(str(tmp_path)) == (24, 24)


def test_a_reading_prints_in_one_line():
    head = (HeadLayer("Dense", 16, 8, activation="Tanh"), HeadLayer("LayerNorm", 8, 8))
    reading = Reading("mean", True, "q: ", "", True, head)
    expected = (
        "mean of all tokens, Dense 16 to 8, tanh, LayerNorm, length 1, scale 20, queries after 'q: ', lowercased"
    )
    assert str(reading) == expected


def test_a_model_that_is_read_otherwise_than_it_was_made_for_is_said_and_one_that_is_not_is_not(tmp_path, capsys):
    checkpoint = str(write(tmp_path))
    find_reading(checkpoint, AUTO, pooling="mean", query_prompt="q: ")
    assert capsys.readouterr().out == ""
    for flags in ({"pooling": "cls"}, {"model_type": "rdot_nll"}, {"normalize": True}):
        find_reading(checkpoint, **{"model_type": AUTO} | flags)
        said = capsys.readouterr().out
        assert "made to be read by: mean of all tokens (as its own files say). Here it is read by: " in said
    write(tmp_path, **{"1_Pooling/config.json": {"pooling_mode": "max"}})
    find_reading(checkpoint, "rdot_nll", pooling="mean")
    assert "max pooling" in capsys.readouterr().out


# Every field that a flag decides: what the files say, what the type rdot_nll_condenser says, and what a flag says.
FIELDS = {
    "pooling": ("mean", "cls", "cls"),
    "normalized": (True, False, False),
    "scale": (7.5, 1.0, 3.0),
    "query_prompt": ("files: ", "", "flag: "),
    "passage_prompt": ("of files: ", "", "of flag: "),
    "lowercase": (True, True, False),
}
DECLARED = {
    "config_sentence_transformers.json": {
        "similarity_fn_name": "cosine",
        "prompts": {"query": "files: ", "document": "of files: "},
        "ance": {"scale": 7.5},
    },
    "sentence_bert_config.json": {"do_lower_case": True},
}


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("model_type", [AUTO, "rdot_nll_condenser"])
def test_flags_go_before_files_and_files_before_the_type_which_alone_knows_a_published_model(
    tmp_path, name, model_type
):
    checkpoint, (of_files, of_type, of_flag) = str(write(tmp_path, **DECLARED)), FIELDS[name]
    said = find_reading(checkpoint, model_type)
    assert vars(said)[name] == (of_files if model_type == AUTO else of_type)
    flag = {"normalize" if name == "normalized" else name: of_flag}
    given = find_reading(checkpoint, model_type, **flag)
    assert vars(given)[name] == of_flag
    others = {other: value for other, value in vars(said).items() if other != name}
    if name == "normalized" and model_type == AUTO:
        others["scale"] = 1.0  # that of dot products: the files' is of cosines
    assert {other: value for other, value in vars(given).items() if other != name} == others


@pytest.mark.parametrize("empty", ["query_prompt", "passage_prompt"])
def test_a_flag_may_take_a_declared_prompt_away(tmp_path, empty):
    declares = declared(write(tmp_path, **DECLARED))
    assert find_reading(str(tmp_path), AUTO, **{empty: ""}) == replace(declares, **{empty: ""})


@pytest.mark.parametrize(
    ("flags", "scale"),
    [({}, 1.0), ({"normalize": True}, 20.0), ({"normalize": True, "scale": 5.0}, 5.0), ({"normalize": False}, 1.0)],
)
def test_the_scale_is_20_for_vectors_of_length_1_unless_a_flag_says_otherwise(tmp_path, flags, scale):
    assert find_reading(str(write(tmp_path)), AUTO, **flags).scale == scale


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_published_type_that_a_checkpoint_notes_is_read_back_whole(tmp_path, model_type):
    settings = {"similarity_fn_name": "dot", "ance": {"scale": 2.0, "model_type": model_type}}
    pooling = {"pooling_mode": "cls"}
    write(tmp_path, **{"config_sentence_transformers.json": settings, "1_Pooling/config.json": pooling})
    found = find_reading(str(tmp_path), AUTO)
    assert (found.model_type, found.scale) == (model_type, 2.0)
    assert found.chunk_length == (512 if model_type == "rdot_nll_multi_chunk" else None)


@pytest.mark.parametrize(
    "own",
    [
        *([], "x", 7, {"scale": "20"}, {"scale": 0}, {"scale": -1}, {"scale": float("nan")}, {"scale": float("inf")}),
        *({"model_type": "dpr"}, {"model_type": None}, {"model_type": ["auto"]}, {"scale": [1]}, None),
    ],
)
def test_a_damaged_key_of_our_own_is_refused(tmp_path, own):
    write(tmp_path, **{"config_sentence_transformers.json": {"similarity_fn_name": "dot", "ance": own}})
    with pytest.raises(InputError, match=r"config_sentence_transformers\.json: ance is .*not as it was saved; copy"):
        declared(tmp_path)


def bare(folder: Path, model: torch.nn.Module, **save) -> str:
    """A checkpoint without modules.json."""
    tiny_bert_tokenizer(folder)
    model.save_pretrained(folder, **save)
    return str(folder)


def test_a_bert_that_declares_nothing_is_read_as_the_published_one_which_is_said_once(tmp_path, capsys):
    checkpoint = bare(tmp_path, tiny_bert().model)
    assert find_reading(checkpoint, AUTO) == find_reading(checkpoint, AUTO) == published_reading("rdot_nll_condenser")
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith(
        f"{checkpoint} has no modules.json and is read as rdot_nll_condenser (first token, lowercased); give "
        "--pooling mean if its makers meant that"
    )
    assert find_reading(checkpoint, AUTO, pooling="mean") == Reading("mean")
    find_reading(checkpoint, "rdot_nll_condenser")
    assert capsys.readouterr().out == ""


def whole(folder: Path) -> None:
    """As it was saved: model.safetensors."""


def of_torch(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def in_shards(folder: Path) -> None:
    RobertaDot.from_pretrained(folder).save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    assert (folder / "model.safetensors.index.json").exists()


@pytest.mark.parametrize("keep", [whole, of_torch, in_shards])
@pytest.mark.parametrize("place", ["folder", "hub"])
def test_a_roberta_with_ances_head_is_read_as_ance_however_its_weights_are_kept(tmp_path, keep, place, monkeypatch):
    checkpoint = bare(tmp_path / "model", tiny_roberta())
    expected = tiny_roberta()
    keep(tmp_path / "model")
    cache = None
    if place == "hub":
        checkpoint, cache = in_cache(tmp_path, tmp_path / "model", monkeypatch)
    reading = find_reading(checkpoint, AUTO, cache_dir=cache)
    assert reading == published_reading("rdot_nll")
    encoder, _ = load_encoder(checkpoint, reading, cache)
    torch.testing.assert_close(encoder.head[0].weight, expected.head[0].weight)


def in_cache(tmp_path: Path, folder: Path, monkeypatch) -> tuple[str, str]:
    """The same as a model of the hub that was downloaded before, and the network is gone: its name, and the cache."""
    revision = "0" * 40
    cached = tmp_path / "cache" / "models--author--model"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(revision)
    shutil.move(folder, cached / "snapshots" / revision)
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: (_ for _ in ()).throw(OSError("no network")))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return "author/model", str(tmp_path / "cache")


def test_a_model_of_the_hub_that_may_have_a_modules_json_is_said_to_be_read_without(tmp_path, monkeypatch, capsys):
    bare(tmp_path / "model", tiny_bert().model)
    checkpoint, cache = in_cache(tmp_path, tmp_path / "model", monkeypatch)
    say_once.cache_clear()
    find_reading(checkpoint, AUTO, cache_dir=cache)
    said = "warning: the hub cannot be asked whether author/model has a modules.json"
    assert capsys.readouterr().out.count(said) == 1
    absent = Path(cache, "models--author--model", ".no_exist", "0" * 40)  # as the library notes it
    absent.mkdir(parents=True)
    (absent / "modules.json").touch()
    say_once.cache_clear()
    find_reading(checkpoint, AUTO, cache_dir=cache)
    assert said not in capsys.readouterr().out


@pytest.mark.parametrize("family", ["roberta", "xlm-roberta", "mpnet", "distilbert", "modernbert"])
def test_what_declares_nothing_and_is_of_no_published_type_asks_for_the_pooling(tmp_path, family):
    checkpoint = bare(tmp_path, tiny_model(tiny_config(family)))
    with pytest.raises(
        InputError, match=r"no modules\.json.*give --pooling cls or --pooling mean, and --normalize 1"
    ):
        find_reading(checkpoint, AUTO)
    given = find_reading(checkpoint, AUTO, pooling="mean", normalize=True, query_prompt="q: ")
    assert given == Reading("mean", True, "q: ")
    assert load_encoder(checkpoint, given)[0].reading == given


def test_what_a_checkpoint_declares_and_cannot_be_done_is_refused_under_auto_also_where_flags_are_given(tmp_path):
    write(tmp_path, **{"1_Pooling/config.json": {"pooling_mode": "max"}})
    for flags in ({}, {"normalize": True}, {"pooling": "mean"}):
        with pytest.raises(InputError, match="max pooling"):
            find_reading(str(tmp_path), AUTO, **flags)


@pytest.mark.parametrize("size", [0, -1, 2**21, 2**70, True, "16"])
def test_sizes_that_no_vector_has_are_refused(tmp_path, size):
    dense = {"in_features": 16, "out_features": size}
    write(tmp_path, **{"modules.json": modules(("2_Dense", f"{LIBRARY}Dense")), "2_Dense/config.json": dense})
    with pytest.raises(InputError, match="lacks in_features or out_features, a number from 1 to"):
        declared(tmp_path)


def test_a_head_that_is_declared_larger_than_its_weights_is_refused_before_any_memory_is_taken(tmp_path):
    tiny_bert_tokenizer(tmp_path)
    tiny_bert().model.save_pretrained(tmp_path)
    (tmp_path / "2_Dense").mkdir()
    (tmp_path / "2_Dense" / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes())
    layers = modules(("2_Dense", f"{LIBRARY}Dense"), ("3_Dense", f"{LIBRARY}Dense"))
    sizes = {"in_features": 16, "out_features": 2**20}, {"in_features": 2**20, "out_features": 2**20}
    write(tmp_path, **{"modules.json": layers, "2_Dense/config.json": sizes[0], "3_Dense/config.json": sizes[1]})
    with pytest.raises(InputError, match="2_Dense: holds weights"):
        load_encoder(str(tmp_path), find_reading(str(tmp_path), AUTO))


def test_the_settings_that_are_noted_give_the_same_reading_again(tmp_path):
    declares = declared(write(tmp_path, **DECLARED))
    settings = settings_of(declares)
    assert settings == {
        "MODEL_TYPE": "auto",
        "POOLING": "mean",
        "NORMALIZE": "1",
        "SCALE": "7.5",
        "QUERY_PROMPT": "files: ",
        "PASSAGE_PROMPT": "of files: ",
        "LOWERCASE": "1",
    }


def test_a_copy_that_lost_modules_json_is_not_taken_for_a_plain_bert(tmp_path):
    tiny_bert().save_pretrained(tmp_path)
    (tmp_path / "1_Pooling").mkdir()
    with pytest.raises(InputError, match=r"has 1_Pooling, and modules\.json is missing"):
        find_reading(str(tmp_path), AUTO)
    assert find_reading(str(tmp_path), AUTO, pooling="mean") == Reading("mean")
