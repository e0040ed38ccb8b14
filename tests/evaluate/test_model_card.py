"""The model card: what it says of a run, that hostile names stay names, and that its examples give our vectors."""

import ast
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard
from huggingface_hub.utils import filter_repo_objects

from evaluate import model_card
from evaluate.metrics_file import RunMetrics
from evaluate.model_card import Arguments, code
from model.encoders import ance_head
from model.reading import Reading, published_reading
from tests.model.test_saving import READINGS, encode
from tests.tiny_models import load_encoder, tiny_bert
from tests.tiny_run import COLLECTION, STEP, call, make_run, save_random_checkpoint
from utils.runtime.errors import InputError
from utils.stores.files import read_json

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = "x`|<script>alert(1)</script>\n---\nlicense: mit\n![a](http://b) \x1b[31m: {evil: yes} 'q\" #"


def write_results(run: Path, *rows: tuple[str, str | None, list[str]]) -> None:
    """results.json with rows of (label, checkpoint, zero-shot collections), each with metrics of its own."""

    def metrics(number: int, collection: str, checkpoint: str | None) -> dict:
        values = {"ndcg@10": number / 100 + 0.123456, "mrr@10": 0.5}
        return vars(RunMetrics("label", collection, checkpoint, 1000 + number, values))

    content = [
        {
            "run": label,
            "dev": metrics(10 * i, "dev", checkpoint),
            "zero_shot": [metrics(10 * i + 1 + j, name, checkpoint) for j, name in enumerate(collections)],
        }
        for i, (label, checkpoint, collections) in enumerate(rows)
    ]
    (run / "results" / "results.json").write_text(json.dumps({"rows": content}))


@pytest.fixture(scope="module")
def made_run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("of a run") / "out")


@pytest.fixture
def run(made_run, tmp_path) -> Path:
    """A copy of the run that a test may change, evaluated under the name that it had elsewhere."""
    shutil.copytree(made_run, tmp_path / "copied")
    others = ("BM25", None, [COLLECTION]), ("initial", "elsewhere/model", [COLLECTION])
    write_results(
        tmp_path / "copied", *others, ("after", f"/was/here/saved_models/checkpoint-{STEP}", [COLLECTION, "dev"])
    )
    return tmp_path / "copied"


def write_card(run: Path, **arguments) -> ModelCard:
    """The card that the script writes into the run's checkpoint, read back as the hub would."""
    checkpoint = run / "saved_models" / f"checkpoint-{STEP}"
    flags = [part for name, value in arguments.items() for part in (f"--{name}", value)]
    call(model_card, "--checkpoint", checkpoint, "--run_dir", run, *flags)
    return ModelCard.load(checkpoint / "README.md")


def test_the_hub_reads_what_the_run_knows(run):
    card = write_card(run)
    data = card.data.to_dict()
    assert data["library_name"] == "sentence-transformers"
    assert data["pipeline_tag"] == "sentence-similarity"
    assert data["license"] == "other"
    assert "sentence-transformers" in data["tags"]
    assert "base_model" not in data, "the initial checkpoint was a folder"
    assert "datasets" not in data
    assert data["model-index"][0]["name"] == f"copied/checkpoint-{STEP}"
    found = {(e.dataset_name, e.dataset_split, e.metric_type): e.metric_value for e in card.data.eval_results}
    assert found == {
        ("dev", "dev", "ndcg@10"): 0.32346,
        ("dev", "dev", "mrr@10"): 0.5,
        (COLLECTION, "test", "ndcg@10"): 0.33346,
        (COLLECTION, "test", "mrr@10"): 0.5,
        ("dev", "test", "ndcg@10"): 0.34346,
        ("dev", "test", "mrr@10"): 0.5,
    }


def test_a_reader_finds_data_settings_metrics_and_the_license(run):
    text = write_card(run).text
    for heading in ("Load it", "Training data", "Metrics", "Settings", "Limits and license"):
        assert f"\n## {heading}\n" in text
    assert "| passages | 30 | 24 | `collection.tsv` |" in text
    assert "| training queries | 8 | 12 | `queries.train.tsv` |" in text
    assert "| `dev` | dev | 1,020 | 0.3235 | 0.5000 |" in text
    assert f"| `{COLLECTION}` | test | 1,021 | 0.3335 | 0.5000 |" in text
    assert "| `LEARNING_RATE` | `5e-6` |" in text
    assert "| `INDEX_PARAMETERS` | none |" in text
    assert "The license field says `other`" in text
    assert "trained from `initial`" in text
    assert str(run.parent) not in text, "no folder of this machine"


@pytest.mark.parametrize("damage", ["no file", "another checkpoint"])
def test_a_checkpoint_that_was_not_evaluated_says_so(run, damage):
    results = run / "results" / "results.json"
    if damage == "no file":
        results.unlink()
    else:
        write_results(run, ("after", "saved_models/checkpoint-8", []), ("theirs", f"models/checkpoint-{STEP}", []))
    card = write_card(run)
    assert "This checkpoint was not evaluated: no metrics are known." in card.text
    assert "model-index" not in card.data.to_dict()


def test_what_the_publisher_knows_is_taken_over(run):
    names = {"license": "apache-2.0", "hub_name": "me/mine", "base_model": "them/theirs", "datasets": "some/data"}
    card = write_card(run, **names)
    data = card.data.to_dict()
    assert (data["license"], data["base_model"], data["datasets"]) == ("apache-2.0", "them/theirs", ["some/data"])
    assert card.text.count('"me/mine"') == 2
    assert "The license is `apache-2.0`." in card.text


def test_an_initial_checkpoint_of_the_hub_is_named(run):
    settings = run / "settings.tokenize"
    settings.write_text(re.sub("CHECKPOINT=.*", "CHECKPOINT=OpenMatch/cocodr-base", settings.read_text()))
    assert write_card(run).data.base_model == "OpenMatch/cocodr-base"
    settings.write_text(re.sub("CHECKPOINT=.*", "CHECKPOINT=collection", settings.read_text()))
    assert write_card(run).data.base_model is None, "a folder inside the run's"


def test_the_loss_is_told(run):
    settings = run / "settings.train"
    settings.write_text(re.sub("LOSS=.*\n", "", settings.read_text()))
    assert "compared with one negative at a time" in write_card(run).text, "as in a version without others"
    (run / "settings.mine").write_text(re.sub("QUERIES_TOGETHER=.*\n", "", (run / "settings.mine").read_text()))
    with settings.open("a") as handle:
        handle.write("LOSS=contrastive\nQUERIES_TOGETHER=12\n")
    assert "a block of up to `12` queries at once (InfoNCE" in write_card(run).text


def test_hostile_names_stay_names(run):
    write_results(run, ("after", f"saved_models/checkpoint-{STEP}", [HOSTILE]))
    for name in ("tokenize", "mine"):
        with (run / f"settings.{name}").open("a") as handle:
            handle.write(f"OTHER_{name}={HOSTILE.splitlines()[0]} ![a](http://b) `c` \x1b[31m\n")
    evil = run.rename(run.parent / HOSTILE.replace("/", "").replace("\n", " "))
    card = write_card(evil)
    data = card.data.to_dict()
    assert (data["license"], "evil" in data) == ("other", False)
    assert data["model-index"][0]["results"][1]["dataset"]["name"].startswith(
        "x`|<script>alert(1)</script> --- license"
    )
    content = str(card)
    assert content.count("\n---\n") == 1
    assert "\x1b" not in content
    for line in card.text.splitlines():
        outside = re.sub(r"`[^`]*`", "", line)
        assert not re.search(r"<|http://|alert", outside), line
    for lines in re.findall(r"(?:^\|.*\n)+", card.text, re.MULTILINE):
        assert len({line.count("|") for line in lines.splitlines()}) == 1, lines


def test_a_code_span_cannot_be_left():
    assert code("a`b|c\n``d") == "`a'b¦c ''d`"
    assert code("") == "none"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"license": "MIT License"}, "--license 'MIT License' is no identifier"),
        ({"license": "apache"}, "--license 'apache' is no identifier"),
        ({"license": "none-of-these"}, "--license 'none-of-these' is no identifier"),
        ({"license": ""}, "--license '' is no identifier"),
        ({"hub_name": 'a", trust="'}, "--hub_name .* is no name on the hub"),
        ({"base_model": "a/b/c"}, "--base_model 'a/b/c'"),
        ({"datasets": ["../x"]}, "--datasets '../x'"),
    ],
)
def test_what_the_hub_would_refuse_is_refused(arguments, reason):
    with pytest.raises(InputError, match=reason):
        Arguments(checkpoint="c", run_dir="r", **arguments)


@pytest.mark.parametrize("license", ["mit", "openrail++", "cc-by-nc-sa-4.0", "llama3.1", "other"])
def test_the_hubs_licenses_are_taken(license):
    assert Arguments(checkpoint="c", run_dir="r", license=license).license == license


def test_folders_that_are_no_checkpoint_and_no_run_are_named(run, tmp_path):
    with pytest.raises(InputError, match=r"settings\.tokenize: no such file; is the folder that of a run"):
        call(model_card, "--checkpoint", run / "saved_models" / f"checkpoint-{STEP}", "--run_dir", tmp_path)
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 24}')
    with pytest.raises(InputError, match="does not say how it is read; is it one of this project's checkpoints"):
        call(model_card, "--checkpoint", tmp_path, "--run_dir", run)
    (run / "results" / "results.json").write_text('{"rows": [{"dev": {"run": 1}}]}')
    with pytest.raises(InputError, match=r"results\.json: is not what evaluate/results_table\.py writes"):
        write_card(run)


PROMPTS, DENSE, HEAD = (READINGS[name] for name in list(READINGS)[1:])
ANCE = Reading(head=ance_head(16), model_type="rdot_nll")


@pytest.mark.parametrize(
    ("family", "reading", "says"),
    [
        ("roberta", ANCE, "first token, ANCE's head"),
        ("bert", published_reading("rdot_nll_condenser"), "first token, lowercased"),
        (
            "bert",
            PROMPTS,
            "mean of all tokens, length 1, scale 7.5, queries after 'how: ', passages after 'blue dog '",
        ),
        ("xlm-roberta", Reading(), "first token"),
        ("mpnet", HEAD, "first token, Dense 16 to 8, LayerNorm, queries after 'HOW ', lowercased"),
        ("distilbert", DENSE, "mean of all tokens, Dense 16 to 8, tanh, length 1, scale 20, passages after 'a\\nb '"),
        ("modernbert", PROMPTS, str(PROMPTS)),
    ],
)
def test_the_examples_run_and_give_our_vectors(run, tmp_path, family, reading, says, monkeypatch):
    checkpoint = save_random_checkpoint(tmp_path / "saved_models", family, reading)
    call(model_card, "--checkpoint", checkpoint, "--run_dir", run)
    encoder, tokenizer = load_encoder("auto", str(checkpoint))
    texts = {"query": ["How is the Cat? " * 10, "a dog"], "passage": ["The Tree " * 30, "Sky"]}
    ours = {kind: encode(encoder, tokenizer, tmp_path, kind, of_kind) for kind, of_kind in texts.items()}
    monkeypatch.chdir(checkpoint)
    card = (checkpoint / "README.md").read_text()
    assert f"They are read by: `{says}`." in card
    assert f"becomes a vector of {ours['query'].shape[1]} numbers" in card
    assert ("have length 1 and are compared by cosine" in card) == encoder.reading.normalized
    examples = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        example = example.replace('"how do I sort a list"', repr(texts["query"])[1:-1])
        space: dict = {}
        exec(example.replace('"Return a new sorted list."', repr(texts["passage"])[1:-1]), space)
        np.testing.assert_allclose(space["queries"], ours["query"], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(space["passages"], ours["passage"], rtol=1e-5, atol=1e-5)


def test_a_hostile_prompt_stays_a_string(run):
    checkpoint = run / "saved_models" / f"checkpoint-{STEP}"
    prompt = "x\n```\n<script>`\x1b[31m'\"\u202e \\"
    tiny_bert().save_reading(checkpoint, 24, 12)
    settings = checkpoint / "config_sentence_transformers.json"
    settings.write_text(json.dumps(read_json(settings) | {"prompts": {"query": prompt}}))
    content = str(write_card(run))
    assert not {"\x1b", "\u202e"} & set(content)
    (call_of_query,) = re.findall(r"encode\(\[.how do I sort a list.\], 12, (.*)\)$", content, re.MULTILINE)
    assert ast.literal_eval(call_of_query) == prompt
    outside = re.sub(r"^```.*?^```$", "", content, flags=re.MULTILINE | re.DOTALL)
    assert "<script>" not in re.sub(r"`[^`\n]*`", "", outside)


def test_the_limits_name_the_lengths_and_what_is_put_before_a_text(run, tmp_path):
    checkpoint = save_random_checkpoint(tmp_path / "saved_models", "bert", READINGS["mean, length 1, prompts"])
    call(model_card, "--checkpoint", checkpoint, "--run_dir", run)
    card = (checkpoint / "README.md").read_text()
    assert "- A passage is read up to 24 tokens, a query up to 12.\n" in card
    assert "- sentence-transformers before version 6 cannot load it" in card
    assert "- `encode_query` and `encode_document` put prompts before a text" in card
    assert "lowercased" not in card
    text = write_card(run).text
    assert "put prompts before a text" not in text
    assert "- Texts are lowercased before they are tokenized." in text


@pytest.mark.parametrize(("passage", "query"), [(12, 24), (24, 12), (24, 24)])
def test_both_lengths_are_told_whichever_is_greater(run, passage, query):
    checkpoint = run / "saved_models" / f"checkpoint-{STEP}"
    tiny_bert().save_reading(checkpoint, passage, query)
    card = write_card(run).text
    assert f"- A passage is read up to {passage} tokens, a query up to {query}.\n" in card
    assert f'encode(["Return a new sorted list."], {passage})' in card
    assert f'encode(["how do I sort a list"], {query})' in card
    assert ("before version 6 cannot load it" in card) == (passage != query)


def test_the_documented_upload_leaves_training_files_behind(run):
    """What `hf upload` excludes, by the patterns that docs/using.md names."""
    page = (ROOT / "docs" / "using.md").read_text(encoding="utf-8")
    upload = next(line for line in page.splitlines() if line.strip().startswith("hf upload"))
    patterns = [pattern.strip('"') for pattern in re.findall(r"--exclude (\S+)", upload)]
    checkpoint = run / "saved_models" / f"checkpoint-{STEP}"
    write_card(run)
    names = [path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file()]
    left = set(filter_repo_objects(names, ignore_patterns=patterns))
    assert set(names) - left == {"optimizer.pt", "random_states.pt", "trainer_state.json"}
    assert {"README.md", "model.safetensors", "1_Pooling/config.json"} < left
