"""drivers/find_reading.py: the settings that it writes say the same as the checkpoint and the flags did."""

import json
from pathlib import Path

import pytest

from drivers import find_reading as driver
from model.reading import Reading, find_reading
from tests.tiny_models import tiny_bert, tiny_config
from tests.tiny_run import call, save_tiny_checkpoint
from utils.runtime.arguments import prompt_of_flag
from utils.runtime.errors import InputError

PROMPTS = [
    "",
    "query: ",
    " -x",
    "Instruct: find\nQuery: ",
    "a 'b' \"c\" $(d) `e` $HOME * \\ \\t %s = ",
    "\tgrün\u2028",
]


def settings(folder: Path, *flags: object) -> dict[str, str]:
    """The settings that the script writes, read as bash reads them: lines, each split at its first equals sign."""
    call(driver, "--model_name_or_path", folder, "--settings_file", folder / ".reading", *flags)
    lines = (folder / ".reading").read_bytes().decode().removesuffix("\n").split("\n")
    return dict(line.split("=", 1) for line in lines)


def plain_bert(folder: Path) -> Path:
    """A BERT of transformers' own files."""
    tiny_bert().model.save_pretrained(folder)
    return folder


def test_a_bert_without_files_of_its_own_is_read_as_the_published_type(tmp_path):
    assert settings(plain_bert(tmp_path), "--model_type", "auto") == {
        "MODEL_TYPE": "rdot_nll_condenser",
        "POOLING": "cls",
        "NORMALIZE": "0",
        "SCALE": "1",
        "QUERY_PROMPT": "",
        "PASSAGE_PROMPT": "",
        "LOWERCASE": "1",
    }


def test_a_checkpoint_that_says_how_it_is_read_is_read_so(tmp_path):
    reading = Reading("mean", True, "find: ", "", scale=12.5)
    checkpoint = save_tiny_checkpoint(tmp_path, "rdot_nll_condenser", reading=reading)
    assert settings(checkpoint, "--model_type", "auto") == {
        "MODEL_TYPE": "auto",
        "POOLING": "mean",
        "NORMALIZE": "1",
        "SCALE": "12.5",
        "QUERY_PROMPT": "find: ",
        "PASSAGE_PROMPT": "",
        "LOWERCASE": "0",
    }


def test_an_encoder_that_says_nothing_is_refused_with_the_cure_and_no_settings_are_left(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(tiny_config("distilbert").to_dict()))
    with pytest.raises(InputError, match="give --pooling cls or --pooling mean"):
        settings(tmp_path, "--model_type", "auto")
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert settings(tmp_path, "--model_type", "auto", "--pooling", "mean")["POOLING"] == "mean"


def test_without_a_type_the_checkpoints_own_files_say(tmp_path):
    checkpoint = save_tiny_checkpoint(tmp_path, "rdot_nll_condenser", reading=Reading("mean", True))
    assert settings(checkpoint) == settings(checkpoint, "--model_type", "auto")
    assert settings(checkpoint)["POOLING"] == "mean"


@pytest.mark.parametrize(
    ("config", "flags", "message"),
    [
        (
            {"model_type": "bert"},
            ("--model_type", "rdot_nll"),
            "is a bert checkpoint, and --model_type rdot_nll wants",
        ),
        ({"model_type": "electra"}, ("--pooling", "mean"), "is a electra model, and the encoders that can be used"),
        ({"model_type": "bert", "is_decoder": True}, ("--pooling", "mean"), "is a decoder"),
    ],
)
def test_an_encoder_that_cannot_be_read_so_is_refused_before_anything_is_made_for_it(
    tmp_path, config, flags, message
):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=message):
        settings(tmp_path, *flags)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("scale", ["0.1", "3.3333333333333335", "1e-5"])
def test_the_settings_give_the_same_reading_again(tmp_path, prompt, scale):
    flags = {"--query_prompt": prompt, "--passage_prompt": prompt[::-1], "--scale": scale, "--normalize": "1"}
    flags |= {"--pooling": "mean", "--lowercase": "1", "--model_type": "auto"}
    plain_bert(tmp_path)
    once = settings(tmp_path, *(f"{name}={value}" for name, value in flags.items()))
    assert settings(tmp_path, *(f"--{name.lower()}={value}" for name, value in once.items())) == once
    assert prompt_of_flag(once["QUERY_PROMPT"]) == prompt
    assert prompt_of_flag(once["PASSAGE_PROMPT"]) == prompt[::-1]
    assert float(once["SCALE"]) == float(scale)
    expected = find_reading(
        str(tmp_path),
        "auto",
        pooling="mean",
        normalize=True,
        scale=float(scale),
        query_prompt=prompt,
        passage_prompt=prompt[::-1],
        lowercase=True,
    )
    assert expected.query_prompt == prompt
