"""Stores that are there already: left alone where they are of the same sources, made anew or kept from harm else."""

import json
import os
import re
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest

from data import msmarco_data, sources, tokenizing
from model.reading import AUTO, MODEL_TYPES, published_reading
from tests.data.conftest import BEIR_FILES, PASSAGE_FILES
from tests.tiny import tiny_bert_tokenizer
from tests.tiny_models import tiny_bert, tiny_roberta
from utils.runtime.errors import InputError
from utils.stores.token_store import TokenStore

COLLECTION = PASSAGE_FILES["collection.tsv"]
# A correction of each file that keeps its size, and one that does not.
CHANGES = {
    "collection.tsv": (COLLECTION.replace("the sky", "the cat"), COLLECTION + "8\tone more\n"),
    "queries.train.tsv": (PASSAGE_FILES["queries.train.tsv"].replace("blue", "tree"), "10\tblue\n12\ttree\n"),
    "qrels.train.tsv": ("10\t0\t1\t1\n12\t0\t7\t2\n12\t0\t0\t0\n12\t0\t2\t1\n", "10\t0\t1\t1\n"),
    "queries.dev.small.tsv": ("20\tcat of the sky\n", "20\tcat\n"),
    "qrels.dev.small.tsv": ("20 0 1 1\n", "20 0 1 1\n20 0 2 1\n"),
}


def content_of(out: Path) -> dict[str, bytes]:
    """Tokens and judgments, which follow from the sources."""
    paths = (*out.rglob("*.npy"), *out.glob("*-qrel.tsv"), *out.rglob("ids.txt"))
    return {str(path.relative_to(out)): path.read_bytes() for path in paths}


def last_changes(out: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path.name != ".lock"}


def test_stores_of_the_same_sources_are_left_alone(preprocess_passages, preprocess_beir, tmp_path, capsys):
    for preprocess in (preprocess_passages, preprocess_beir):
        out = preprocess(out=tmp_path / preprocess.__name__)
        before = last_changes(out)
        capsys.readouterr()
        preprocess(out=out)
        assert "tokenized already, from the same files" in capsys.readouterr().out
        after = last_changes(out)
        assert {path for path in before if before[path] != after[path]} == {out / "sources.json"}, "the times alone"


def test_files_whose_times_are_as_noted_are_not_read_again(preprocess_passages, monkeypatch, tmp_path):
    raw = tmp_path / "raw"
    out = preprocess_passages()
    preprocess_passages()  # writes the raw files again: their times move, which is noted
    monkeypatch.setattr(sources, "sha256_of_file", lambda path: pytest.fail(f"{path} is read"))
    monkeypatch.setattr("tests.data.conftest.write_files", lambda folder, files, zipped: folder)
    before = last_changes(out)
    preprocess_passages()
    assert last_changes(out) == before
    os.utime(raw / "collection.tsv")
    with pytest.raises(pytest.fail.Exception, match=r"collection\.tsv is read"):
        preprocess_passages()


@pytest.mark.parametrize("same_size", [True, False])
@pytest.mark.parametrize("name", CHANGES)
def test_changed_files_are_tokenized_again_and_refused_where_the_stores_are_in_use(
    preprocess_passages, tmp_path, name, same_size
):
    changed = CHANGES[name][0 if same_size else 1]
    assert changed != PASSAGE_FILES[name]
    assert (len(changed) == len(PASSAGE_FILES[name])) == same_size
    expected = content_of(preprocess_passages({name: changed}, out=tmp_path / "fresh"))
    out = preprocess_passages()
    before = content_of(out)
    assert before != expected
    with pytest.raises(InputError, match=rf"out: the token stores there are in use.* {name} ha[ds] .*--out_data_dir"):
        preprocess_passages({name: changed}, in_use=True)
    assert content_of(out) == before
    preprocess_passages(in_use=True)  # the files as they were
    assert content_of(out) == before
    preprocess_passages({name: changed})
    assert content_of(out) == expected
    preprocess_passages({name: changed}, in_use=True)


def test_changed_files_of_beirs_layout_too(preprocess_beir, tmp_path):
    changed = {"corpus.jsonl": BEIR_FILES["corpus.jsonl"].replace("blue", "gray")}
    expected = content_of(preprocess_beir(changed, out=tmp_path / "fresh"))
    out = preprocess_beir()
    with pytest.raises(InputError, match=r"corpus\.jsonl has another content"):
        preprocess_beir(changed, in_use=True)
    preprocess_beir(changed)
    assert content_of(out) == expected


@pytest.mark.parametrize(
    ("flags", "difference"),
    [
        ({"max_seq_length": 5}, "max_seq_length was 128 and is 5"),
        ({"max_query_length": 5}, "max_query_length was 64 and is 5"),
        ({"model_type": "rdot_nll_condenser"}, "lowercased was False and is True"),
        ({"query_prompt": "the Cat "}, "query_prompt was '' and is 'the Cat '"),
        ({"passage_prompt": "what: "}, "passage_prompt was '' and is 'what: '"),
        ({"model_name_or_path": "another"}, "the tokenizer is another one"),
    ],
)
def test_other_settings_too(preprocess_passages, tmp_path, flags, difference):
    if "model_name_or_path" in flags:
        flags = {"model_name_or_path": tiny_bert_tokenizer(tmp_path / "another", lowercase=True)}
    expected = content_of(preprocess_passages(out=tmp_path / "fresh", **flags))
    out = preprocess_passages()
    with pytest.raises(InputError, match=difference):
        preprocess_passages(**flags, in_use=True)
    preprocess_passages(**flags)
    assert content_of(out) == expected


def test_a_file_that_was_zipped_or_is_gone_is_told(preprocess_passages):
    preprocess_passages()
    with pytest.raises(InputError, match=r"collection\.tsv is no more among.*collection\.tsv\.gz was not among"):
        preprocess_passages(zipped=True, in_use=True)


def test_folders_that_were_moved_are_the_same_sources(preprocess_passages, run_script, tmp_path, capsys):
    preprocess_passages()
    (tmp_path / "mounted").mkdir()
    for name in ("raw", "out"):
        shutil.copytree(tmp_path / name, tmp_path / "mounted" / name)
        shutil.rmtree(tmp_path / name)
    before = content_of(tmp_path / "mounted" / "out")
    run_script(msmarco_data, tmp_path / "mounted" / "raw", out=tmp_path / "mounted" / "out", in_use=True)
    assert "tokenized already" in capsys.readouterr().out
    assert content_of(tmp_path / "mounted" / "out") == before


def test_stores_of_a_version_that_noted_no_sources_go_on_in_use_and_are_made_anew_else(preprocess_passages, capsys):
    prompts = {"query_prompt": "the ", "passage_prompt": "what "}
    out = preprocess_passages(**prompts)
    before = last_changes(out)
    (out / "sources.json").unlink()
    longer = {"collection.tsv": COLLECTION + "8\tone more\n"}
    with pytest.raises(InputError, match=r"collection\.tsv had 67 bytes and has 78"):
        preprocess_passages(longer, in_use=True)
    with pytest.raises(InputError, match=r"max_seq_length was 128 and is 9"):
        preprocess_passages(max_seq_length=9, in_use=True)
    with pytest.raises(InputError, match=r"query_prompt was 'the ' and is ''"):
        preprocess_passages(passage_prompt="what ", in_use=True)
    preprocess_passages(**prompts, in_use=True)
    assert (out / "sources.json").exists(), "from now on the files are known by their sums"
    assert last_changes(out) | {out / "sources.json": before[out / "sources.json"]} == before
    (out / "sources.json").unlink()
    preprocess_passages()
    assert "collection.tsv, 4 texts" in capsys.readouterr().out.split("tokenized already")[-1]


def test_stores_in_use_that_were_removed_are_made_again_of_the_same_files_only(preprocess_passages):
    out = preprocess_passages()
    before = content_of(out)

    def remove() -> None:
        shutil.rmtree(out / "passages")
        for path in out.glob("*-qrel.tsv"):
            path.unlink()

    remove()
    with pytest.raises(InputError, match="in use"):
        preprocess_passages({"collection.tsv": CHANGES["collection.tsv"][0]}, in_use=True)
    preprocess_passages(in_use=True)
    assert content_of(out) == before


def test_a_file_that_is_changed_while_it_is_read_leaves_nothing_that_looks_whole(
    preprocess_passages, tmp_path, monkeypatch
):
    def write(folder: Path, *rest, **named):
        (tmp_path / "raw" / "collection.tsv").write_text("0\tanother\n")
        return tokenizing.write_token_store(folder, *rest, **named)

    monkeypatch.setattr("data.stores.write_token_store", write)
    with pytest.raises(InputError, match=r"collection\.tsv: was changed while it was read; run this again"):
        preprocess_passages()
    assert not list((tmp_path / "out").glob("*-qrel.tsv"))


def write_to_passages_is_a_failure(*_, **__):
    pytest.fail("the passages are tokenized again")


def keep_passages(monkeypatch) -> None:
    """From now on, a script that tokenizes the passages fails."""
    monkeypatch.setattr("data.stores.write_token_store", write_to_passages_is_a_failure)


DEV = {"qrels/dev.tsv": "query-id\tcorpus-id\tscore\nq2\tgrün\t1\nq2\tlost\t1\n"}


@pytest.mark.parametrize("in_use", [False, True])
def test_another_split_adds_its_queries_and_judgments_and_back_again_nothing(
    preprocess_beir, tmp_path, monkeypatch, capsys, in_use
):
    alone = {split: content_of(preprocess_beir(DEV, out=tmp_path / split, split=split)) for split in ("test", "dev")}
    out = preprocess_beir(DEV)
    keep_passages(monkeypatch)
    capsys.readouterr()
    preprocess_beir(DEV, split="dev", in_use=in_use)
    assert content_of(out) == alone["test"] | alone["dev"]
    assert (out / "dev-missing.txt").read_text() == "lost\n"
    before = last_changes(out)
    for split in ("test", "dev"):
        preprocess_beir(DEV, split=split, in_use=in_use)
    assert {path for path, time in last_changes(out).items() if time != before[path]} <= {out / "sources.json"}
    assert "made from other data" not in capsys.readouterr().out


def test_other_judgments_or_queries_make_their_split_anew_alone(preprocess_passages, tmp_path, monkeypatch):
    changes = [{name: changed} for name, both in CHANGES.items() for changed in both if name != "collection.tsv"]
    fresh = [content_of(preprocess_passages(change, out=tmp_path / str(i))) for i, change in enumerate(changes)]
    out = preprocess_passages()
    keep_passages(monkeypatch)
    for change, expected in zip(changes, fresh, strict=True):
        preprocess_passages(change)
        assert content_of(out) == expected


def test_queries_that_were_changed_are_told_for_each_split_that_was_made_of_them(preprocess_beir, tmp_path):
    changed = DEV | {"queries.jsonl": BEIR_FILES["queries.jsonl"].replace("blue", "gray")}
    fresh = content_of(preprocess_beir(changed, out=tmp_path / "fresh"))
    out = preprocess_beir(DEV)
    preprocess_beir(changed, split="dev")
    with pytest.raises(InputError, match=r"queries\.jsonl has another content"):
        preprocess_beir(changed, in_use=True)
    preprocess_beir(changed)
    assert content_of(out).items() >= fresh.items()


def test_new_passages_leave_no_judgments_of_the_rows_before(preprocess_beir):
    out = preprocess_beir(DEV)
    preprocess_beir(DEV, split="dev")
    first, *others = BEIR_FILES["corpus.jsonl"].splitlines(keepends=True)
    preprocess_beir(DEV | {"corpus.jsonl": "".join([*others, first])})
    assert [path.name for path in (*out.glob("*-qrel.tsv"), *out.glob("*-missing.txt"))] == ["test-qrel.tsv"]
    preprocess_beir(DEV | {"corpus.jsonl": "".join([*others, first])}, split="dev")
    assert (out / "dev-qrel.tsv").read_text() == "0\t1\t1\n0\t3\t1\n"


def test_passages_of_other_sources_than_the_noted_ones_are_made_anew(preprocess_passages, tmp_path, monkeypatch):
    """A run that was stopped between new passages and their note, and then the first files again."""
    out = preprocess_passages()
    before = content_of(out)
    with monkeypatch.context() as patch:
        patch.setattr(sources.Sources, "note", lambda self: pytest.fail("stopped"))
        with pytest.raises(pytest.fail.Exception, match="stopped"):
            preprocess_passages({"collection.tsv": CHANGES["collection.tsv"][0]})
    preprocess_passages()
    assert content_of(out) == before


def test_new_permissions_and_links_are_no_change_while_a_file_is_read(preprocess_passages, tmp_path, monkeypatch):
    collection = tmp_path / "raw" / "collection.tsv"

    def write(folder: Path, *rest, **named):
        collection.chmod(0o400)
        os.link(collection, tmp_path / "link")
        return tokenizing.write_token_store(folder, *rest, **named)

    with monkeypatch.context() as patch:
        patch.setattr("data.stores.write_token_store", write)
        out = preprocess_passages()
    assert (tmp_path / "link").exists()
    before = content_of(out)
    monkeypatch.setattr("tests.data.conftest.write_files", lambda folder, files, zipped: folder)
    keep_passages(monkeypatch)
    preprocess_passages(in_use=True)
    assert content_of(out) == before


@pytest.mark.parametrize("content", ["{}", '{"format_version": 1, "settings": {}, "files": {"a": {}}}', "[", "[]"])
def test_altered_notes_are_told_with_the_cure(preprocess_passages, content):
    out = preprocess_passages()
    (out / "sources.json").write_text(content)
    with pytest.raises(InputError, match=r"sources\.json: .*remove it, with the token stores and \*-qrel\.tsv"):
        preprocess_passages()


def test_what_is_noted(preprocess_passages):
    noted = json.loads((preprocess_passages() / "sources.json").read_text())
    assert noted["collection"].keys() == {"collection.tsv"}
    assert noted["collection"]["collection.tsv"]["size"] == len(COLLECTION)
    assert {split: [*files] for split, files in noted["splits"].items()} == {
        "train": ["queries.train.tsv", "qrels.train.tsv"],
        "dev": ["queries.dev.small.tsv", "qrels.dev.small.tsv"],
    }


def test_the_model_types_are_the_same_wherever_they_are_listed():
    script = Path(__file__).resolve().parents[2] / "commands" / "common.sh"
    (listed,) = re.findall(r'^MODEL_TYPES="(.*)"$', script.read_text(), re.MULTILINE)
    assert listed.split("|") == [AUTO, *MODEL_TYPES]


@pytest.mark.parametrize("layout", ["passages", "beir"])
@pytest.mark.parametrize(
    ("model_type", "flags", "reason"),
    [
        ("rdot_nll_condenser", {"max_seq_length": 65}, "--max_seq_length is 65, .* positions for 64 tokens"),
        ("rdot_nll_condenser", {"max_query_length": 65}, "--max_query_length is 65, .* positions for 64 tokens"),
        ("rdot_nll", {"max_seq_length": 63}, "--max_seq_length is 63, .* positions for 62 tokens"),
        ("rdot_nll_multi_chunk", {"max_seq_length": 63}, "--max_seq_length is 63"),
    ],
)
def test_a_length_that_the_model_cannot_take_is_refused_first_and_can_then_be_changed(
    preprocess_passages, preprocess_beir, tmp_path, tokenizer_folder, monkeypatch, layout, model_type, flags, reason
):
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(tokenizer_folder, checkpoint)
    encoder = (tiny_bert if model_type == "rdot_nll_condenser" else tiny_roberta)(positions=64)
    encoder.config.save_pretrained(checkpoint)
    preprocess = preprocess_passages if layout == "passages" else preprocess_beir
    model = {"model_type": model_type, "model_name_or_path": checkpoint}
    lengths = {"max_seq_length": 62, "max_query_length": 62}
    with monkeypatch.context() as patch:
        for module in ("msmarco_data", "beir_data"):
            patch.setattr(f"data.{module}.read_split", lambda *_: pytest.fail("it must not come that far"))
        with pytest.raises(InputError, match=reason):
            preprocess(**model, **lengths | flags)
    assert TokenStore(preprocess(**model, **lengths) / "passages").meta.max_length == 62


def test_documents_that_are_cut_may_be_longer_than_the_models_positions(tmp_path, tokenizer_folder):
    shutil.copytree(tokenizer_folder, tmp_path / "checkpoint")
    tiny_roberta(positions=514).config.save_pretrained(tmp_path / "checkpoint")
    checkpoint = str(tmp_path / "checkpoint")
    for model_type, fits in (("rdot_nll_multi_chunk", True), ("rdot_nll", False)):
        tokenizer, reading = tokenizing.load_tokenizer(checkpoint), published_reading(model_type)
        on = checkpoint, tokenizing.positions_of(checkpoint), tokenizer, reading, (2_048, 64)
        with nullcontext() if fits else pytest.raises(InputError, match="--max_seq_length is 2048"):
            tokenizing.check_lengths(*on)


def test_a_published_length_that_the_model_cannot_take_is_cut_and_that_is_said(
    preprocess_beir, tmp_path, tokenizer_folder, capsys
):
    shutil.copytree(tokenizer_folder, tmp_path / "checkpoint")
    tiny_bert(positions=60).config.save_pretrained(tmp_path / "checkpoint")
    out = preprocess_beir(model_name_or_path=tmp_path / "checkpoint", dataset="scifact", max_query_length=60)
    assert TokenStore(out / "passages").meta.max_length == 60
    assert "scifact: 256 tokens are published as --max_seq_length, the model takes 60" in capsys.readouterr().out
