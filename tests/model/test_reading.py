"""A reading is what a checkpoint's own files declare, of both generations; what cannot be done is refused by name."""

import json
import re
from pathlib import Path

import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, LayerNorm, Normalize, Pooling, Transformer

from model.encoders import compare_with_meant
from model.reading import HeadLayer, Reading, declared_reading
from tests.tiny import tiny_bert_tokenizer
from tests.tiny_models import tiny_bert
from utils.runtime.errors import InputError


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
    listed = [("", "sentence_transformers.models.Transformer"), ("1_Pooling", "x.Pooling"), *more]
    return [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(listed)]


def test_a_checkpoint_without_such_files_declares_nothing(tmp_path):
    assert declared(tmp_path) is None


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
        ({"1_Pooling/config.json": {}}, Reading("mean")),
        ({"config_sentence_transformers.json": {}}, Reading("mean", True)),
        ({"config_sentence_transformers.json": {"similarity_fn_name": None}}, Reading("mean", True)),
        ({"sentence_bert_config.json": {"do_lower_case": True}}, Reading("mean", lowercase=True)),
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
        ({"modules.json": modules(("2_Router", "x.Router"))}, "module Router"),
        ({"modules.json": modules(("2_N", "x.Normalize"), ("3_Dense", "x.Dense"))}, "module Dense after Normalize"),
        ({"modules.json": modules()[1:]}, "begins with Pooling"),
        ({"modules.json": [{"type": 3}]}, "type and path"),
        ({"modules.json": {}}, "type and path"),
        (
            {"modules.json": modules(("2_Dense", "x.Dense")), "2_Dense/config.json": {"in_features": 16}},
            "in_features or out_features",
        ),
        (
            {
                "modules.json": modules(("2_Dense", "x.Dense")),
                "2_Dense/config.json": {"in_features": 16, "out_features": 8, "activation_function": "torch.nn.GELU"},
            },
            "activation GELU",
        ),
        ({"config_sentence_transformers.json": {"similarity_fn_name": "euclidean"}}, "euclidean"),
        ({"config_sentence_transformers.json": {"truncate_dim": 8}}, "8 dimensions"),
        ({"config_sentence_transformers.json": {"prompts": ["q: "]}}, "prompts"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(tmp_path, files, named):
    with pytest.raises(InputError, match=re.escape(named)) as raised:
        declared(write(tmp_path, **files))
    assert str(tmp_path) in str(raised.value)


def test_a_reading_prints_in_one_line():
    head = (HeadLayer("Dense", 16, 8, activation="Tanh"), HeadLayer("LayerNorm", 8, 8))
    reading = Reading("mean", True, "q: ", "", True, head)
    expected = (
        "mean of all tokens, Dense 16 to 8, tanh, LayerNorm, length 1, scale 20, queries after 'q: ', lowercased"
    )
    assert str(reading) == expected


def test_a_model_that_is_read_otherwise_than_it_was_made_for_is_said_and_one_that_is_not_is_not(tmp_path, capsys):
    write(tmp_path)
    compare_with_meant(Reading("mean"), str(tmp_path))
    assert capsys.readouterr().out == ""
    compare_with_meant(Reading("cls"), str(tmp_path))
    assert "made to be read by: mean of all tokens (modules.json). Here it is read by: first token" in (
        capsys.readouterr().out
    )
    write(tmp_path, **{"1_Pooling/config.json": {"pooling_mode": "max"}})
    compare_with_meant(Reading("mean"), str(tmp_path))
    assert "max pooling" in capsys.readouterr().out
