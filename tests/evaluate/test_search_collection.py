"""Questions to a run's collections: the ranking of its own evaluation, with texts that are harmless to a terminal."""

import gzip
import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer

from data import beir_data
from evaluate import search_collection
from evaluate.search_collection import (
    Arguments,
    Hit,
    Searcher,
    show,
)
from model.reading import MODEL_TYPES, HeadLayer, ModelType, Reading
from tests.tiny_run import COLLECTION, PASSAGES, QUERIES, QUERY_LENGTH, STEP, call, make_run, save_random_checkpoint
from utils.runtime.errors import InputError
from utils.stores.run_folder import RunFolder
from utils.stores.token_store import TokenStore


@pytest.fixture(scope="module")
def made_run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("of a run") / "out")


@pytest.fixture
def run(made_run, tmp_path) -> Path:
    """A copy of the run that a test may change."""
    shutil.copytree(made_run, tmp_path / "copied")
    return tmp_path / "copied"


def search(run: Path, question: str, **arguments) -> list[Hit]:
    return Searcher(Arguments(run_dir=str(run), no_cuda=True, **arguments))(question)


def ranking(run_file: Path, query: str) -> list[tuple[str, float]]:
    """(passage, score) of one query in a run file."""
    lines = (line.split() for line in run_file.read_text().splitlines())
    return [(passage, float(score)) for query_id, _, passage, _, score, _ in lines if query_id == query]


@pytest.mark.parametrize(
    ("collection", "results", "query"), [("", "dev", "{}"), (COLLECTION, f"zero_shot/{COLLECTION}", "q{}")]
)
@pytest.mark.parametrize("number", [0, 5])
def test_a_query_of_the_test_set_gets_the_evaluations_ranking(made_run, collection, results, query, number, capsys):
    expected = ranking(made_run / "results" / results / f"step-{STEP}" / "run.trec", query.format(number))
    hits = search(made_run, QUERIES[number].upper(), collection=collection, depth=1000)
    assert [hit.id for hit in hits] == [passage for passage, _ in expected]
    np.testing.assert_allclose([hit.score for hit in hits], [score for _, score in expected], atol=1e-5)
    assert not (made_run / "search").exists(), "the evaluation's embeddings do"
    for hit in hits:
        own = PASSAGES[int(hit.id.removeprefix("p")) - (100 if not collection else 0)]
        assert hit.text == (f"the Cat {own}" if collection else own)
    (line,) = capsys.readouterr().err.splitlines()
    assert f"checkpoint-{STEP} and 30 passages of " in line


@pytest.mark.parametrize("model_type", ["rdot_nll", "rdot_nll_multi_chunk"])
def test_the_other_encoders_too_also_where_the_best_chunk_scores(tmp_path, model_type, monkeypatch):
    monkeypatch.setitem(MODEL_TYPES, "rdot_nll_multi_chunk", ModelType("roberta", ance_head=True, chunk_length=8))
    run = make_run(tmp_path / "out", model_type)
    expected = ranking(run / "results" / "dev" / f"step-{STEP}" / "run.trec", "3")
    hits = search(run, QUERIES[3], depth=20)
    assert [hit.id for hit in hits] == [passage for passage, _ in expected[:20]]
    np.testing.assert_allclose([hit.score for hit in hits], [score for _, score in expected[:20]], rtol=1e-5)


READINGS = {
    "all of it": Reading(
        "mean", True, "how is ", "what\nblue ", True, (HeadLayer("Dense", 16, 8, activation="Tanh"),)
    ),
    "a published type by other flags": Reading("mean", True, "how ", "", True, model_type="rdot_nll_condenser"),
}


@pytest.fixture(scope="module", params=READINGS)
def read_run(request, tmp_path_factory) -> Path:
    """A run whose checkpoint is read by more than its type."""
    return make_run(tmp_path_factory.mktemp("of a reading") / "out", reading=READINGS[request.param])


@pytest.mark.parametrize(
    ("collection", "results", "query"), [("", "dev", "3"), (COLLECTION, f"zero_shot/{COLLECTION}", "q3")]
)
def test_a_question_is_read_as_the_runs_queries_were_and_sentence_transformers_reads_it(
    read_run, collection, results, query
):
    expected = ranking(read_run / "results" / results / f"step-{STEP}" / "run.trec", query)
    hits = search(read_run, QUERIES[3].upper(), collection=collection, depth=1000)
    assert [hit.id for hit in hits] == [passage for passage, _ in expected]
    np.testing.assert_allclose([hit.score for hit in hits], [score for _, score in expected], atol=1e-5)
    assert not (read_run / "search").exists(), "the evaluation's embeddings do"
    model = SentenceTransformer(str(read_run / "saved_models" / f"checkpoint-{STEP}"), device="cpu")
    question, passages = model.encode_query(QUERIES[3].upper()), model.encode_document([hit.text for hit in hits])
    np.testing.assert_allclose([hit.score for hit in hits], passages @ question, atol=1e-5)


def test_another_query_prompt_changes_the_question_alone_and_another_passage_prompt_is_refused(read_run):
    own = search(read_run, "blue tree")
    other = search(read_run, "blue tree", query_prompt="")
    assert own != other == search(read_run, "blue tree", query_prompt="", pooling="mean")
    assert not (read_run / "search").exists(), "the passages are the same"
    with pytest.raises(InputError, match=r"passages.*begin with the prompt"):
        search(read_run, "blue tree", passage_prompt="sky ")


def test_tokens_that_a_tokenizer_adds_and_a_prompts_are_counted_and_not_taken_for_two(read_run):
    specials = len(
        AutoTokenizer.from_pretrained(read_run / "saved_models" / f"checkpoint-{STEP}")("how")["input_ids"]
    )
    assert specials == 3
    with pytest.raises(
        InputError, match=r"--max_query_length 3: a question has 3 tokens beside its own .*the prompt's"
    ):
        search(read_run, "blue", max_query_length=3, query_prompt="how ")
    assert search(read_run, "blue", max_query_length=4, query_prompt="how ") == search(
        read_run, "blue sky", max_query_length=4, query_prompt="how "
    )


def test_settings_of_a_reading_that_were_altered_are_refused(read_run, tmp_path):
    run = shutil.copytree(read_run, tmp_path / "altered")
    settings = run / "settings.tokenize"
    settings.write_text(settings.read_text().replace("NORMALIZE=1", "NORMALIZE=yes"))
    with pytest.raises(InputError, match="NORMALIZE is 'yes'"):
        search(run, "blue tree")


def test_a_question_is_cut_as_the_collections_queries_were(made_run):
    words = ["blue"] * (QUERY_LENGTH - 2)
    long = search(made_run, " ".join([*words, "sky", "tree"]))
    assert long == search(made_run, " ".join(words))
    assert long != search(made_run, " ".join([*words, "sky", "tree"]), max_query_length=QUERY_LENGTH + 2)


def test_passages_that_nobody_encoded_are_encoded_once_and_beside_the_runs_own(run, capsys):
    expected = search(run, "blue tree")
    shutil.rmtree(run / "ann_data")
    before = sorted(path for path in run.rglob("*") if path.is_file())
    assert search(run, "blue tree") == expected
    made = {path.relative_to(run).parent for path in run.rglob("*") if path.is_file() and path not in before}
    assert made == {Path("search/training")}
    assert "30 texts encoded" in capsys.readouterr().out
    assert search(run, "blue tree") == expected
    assert "encoded" not in capsys.readouterr().out


def test_embeddings_of_other_weights_are_not_used_and_stay(run):
    stolen = run / "ann_data" / f"embeddings-{STEP}"
    manifest = json.loads((stolen / "manifest.json").read_text())
    manifest["matrices"]["passages"]["weights"] = "0" * 64
    (stolen / "manifest.json").write_text(json.dumps(manifest))
    before = {path: path.read_bytes() for path in stolen.iterdir()}
    search(run, "blue tree")
    assert (run / "search" / "training" / "manifest.json").exists()
    assert {path: path.read_bytes() for path in stolen.iterdir()} == before


def test_embeddings_in_half_precision_are_found_whatever_was_asked_for(run):
    manifest = run / "ann_data" / f"embeddings-{STEP}" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"precision": "float32"', '"precision": "bfloat16"'))
    search(run, "blue tree")
    assert not (run / "search").exists()


def test_a_checkpoint_from_elsewhere_is_read_as_its_own_files_say_and_not_by_the_runs_settings(made_run, tmp_path):
    other = save_random_checkpoint(tmp_path, "bert", Reading("mean", True, lowercase=True))
    hits = search(made_run, "blue tree", model_name_or_path=str(other), embedding_dir=str(tmp_path / "kept"))
    model = SentenceTransformer(str(other), device="cpu")
    expected = model.encode_document([hit.text for hit in hits]) @ model.encode_query("blue tree")
    np.testing.assert_allclose([hit.score for hit in hits], expected, atol=1e-5)


def test_a_run_owns_its_checkpoints_and_what_it_began_with(made_run, monkeypatch):
    monkeypatch.chdir(made_run.parent)
    run = RunFolder(Path(made_run.name))
    initial = made_run.parent / "initial"
    assert run.owns(str(made_run / "saved_models" / f"checkpoint-{STEP}"))
    assert run.owns(str(initial))
    assert run.owns("initial")
    assert not run.owns(str(initial / f"checkpoint-{STEP}"))
    assert not run.owns("author/initial")


def test_any_folder_of_token_stores_is_searched_without_a_run(made_run, tmp_path):
    checkpoint = made_run / "saved_models" / f"checkpoint-{STEP}"
    model = ("--model_type", "rdot_nll_condenser", "--model_name_or_path", checkpoint)
    lengths = ("--max_seq_length", 24, "--max_query_length", 12)
    call(
        beir_data, "--data_dir", made_run.parent / COLLECTION, "--out_data_dir", tmp_path / "tokens", *model, *lengths
    )
    given = {"model_name_or_path": str(checkpoint), "model_type": "rdot_nll_condenser", "no_cuda": True}
    given["collection"] = str(tmp_path / "tokens")
    with pytest.raises(InputError, match=r"give --data_dir: the folder with corpus\.jsonl"):
        Searcher(Arguments(**given))
    hits = Searcher(Arguments(**given, data_dir=str(made_run.parent / COLLECTION)))("blue tree")
    assert len(hits) == 10
    assert (tmp_path / "search" / "tokens" / "manifest.json").exists()


def test_texts_of_a_gzipped_collection_are_shown(run):
    raw = run / "collection" / "msmarco" / "collection.tsv"
    expected = search(run, "blue tree")
    zipped = gzip.compress(raw.read_bytes())
    raw.with_name("collection.tsv.gz").write_bytes(zipped)
    raw.unlink()
    meta = run / "preprocessed" / "passages" / "meta.json"
    content = json.loads(meta.read_text()) | {"source_file": "collection.tsv.gz", "source_size": len(zipped)}
    meta.write_text(json.dumps(content))
    assert search(run, "blue tree") == expected


def test_a_collection_that_was_changed_is_refused(run):
    raw = run / "collection" / "msmarco" / "collection.tsv"
    whole = raw.read_text()
    raw.write_text(whole + "1\tone more\n")
    with pytest.raises(InputError, match=r"collection\.tsv: has [\d,]+ bytes, and .*passages was made from"):
        search(run, "blue tree")
    raw.write_text(whole.replace("101\t", "999\t"))
    with pytest.raises(InputError, match=r"collection\.tsv:2: holds '999' where its token store has '101'"):
        search(run, "blue tree", depth=30)
    raw.unlink()
    with pytest.raises(InputError, match=r"collection\.tsv: no such file.*--data_dir"):
        search(run, "blue tree")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"run_dir": ""}, "give --run_dir, or both of"),
        ({"run_dir": "nowhere"}, "holds no checkpoint; train first"),
        ({"collection": "elsewhere"}, f"'elsewhere' is neither a zero-shot .* the run's are {COLLECTION}"),
        ({"depth": 0}, "--depth is 0"),
        ({"text_lines": -1}, "--text_lines is -1"),
        ({"max_query_length": 2}, "--max_query_length 2: a question has 2 tokens beside its own"),
        ({"max_query_length": 9_999}, "--max_query_length 9999: .* positions for"),
    ],
)
def test_misuse_is_told(made_run, arguments, reason):
    with pytest.raises(InputError, match=reason):
        Searcher(Arguments(**{"run_dir": str(made_run), "no_cuda": True} | arguments))


HOSTILE = "a\x1b[31mred\x1b]0;title\x07 \x9b2J\u202egnorw\u2066 \ud800 x\r\ny\u2028z \u200bhid\u00adden na\u200cme"


def test_nothing_in_a_passage_reaches_the_terminal_but_letters():
    shown = show([Hit(1.5, "id\x1b[2J", HOSTILE)], 200, 0)
    assert shown == (
        "1  1.5000  id\\x1b[2J\n   a\\x1b[31mred\\x1b]0;title\\x07 \\x9b2J\\u202egnorw\\u2066 \\ud800 x y z "
        "\\u200bhid\\xadden na\u200cme"
    )


def test_hits_are_aligned_and_wrapped():
    hits = [Hit(12.34567 - rank, f"D{rank}", "words " * 40) for rank in range(10)]
    lines = show(hits, 50, 3).splitlines()
    assert max(map(len, lines)) <= 50
    heads = [line for line in lines if " D" in line]
    assert heads[0] == " 1  12.3457  D0"
    assert heads[-1] == "10   3.3457  D9"
    assert len(lines) == 10 * (1 + 3)
    assert lines[3].endswith(" …")
    assert "…" not in show(hits, 50, 0)
    assert show([], 50, 3) == ""


class Typed(io.StringIO):
    """stdin, of a terminal or not."""

    def __init__(self, text: str, terminal: bool) -> None:
        super().__init__(text)
        self.isatty = lambda: terminal
        self.reconfigure = lambda **_: None


@pytest.mark.parametrize("terminal", [False, True])
def test_questions_come_from_stdin_until_it_ends(made_run, terminal, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(search_collection.Searcher, "__call__", lambda self, question: asked.append(question) or [])
    monkeypatch.setattr(sys, "stdin", Typed("blue tree\n\n sky \x1b \n", terminal))
    monkeypatch.setattr(sys.stdout, "reconfigure", lambda **_: None, raising=False)
    call(search_collection, "--run_dir", made_run, "--no_cuda")
    out = capsys.readouterr().out
    assert asked == (["blue tree"] if terminal else ["blue tree", "sky \x1b"])
    assert ("question: " in out) == terminal
    assert ("blue tree" in out) == (not terminal)
    assert "\x1b" not in out


def test_the_model_is_loaded_once_for_all_questions(made_run, monkeypatch):
    loads = []
    load = search_collection.load_store_encoder
    monkeypatch.setattr(search_collection, "load_store_encoder", lambda *a, **k: loads.append(a) or load(*a, **k))
    monkeypatch.setattr(sys, "stdin", Typed("blue tree\nsky\n", False))
    monkeypatch.setattr(sys.stdout, "reconfigure", lambda **_: None, raising=False)
    call(search_collection, "--run_dir", made_run, "--no_cuda")
    assert len(loads) == 1


def test_rows_of_the_store_are_the_lines_of_its_file(made_run):
    store = TokenStore(made_run / "preprocessed" / "passages")
    assert store.ids == [str(100 + i) for i in range(len(PASSAGES))]
