"""The table of BEIR's collections, and fetching one with BEIR's own library from a server of our own."""

import json
import re
import sys
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from data.beir_sets import CQADUPSTACK, SETS, compare_with_published, find_set
from data.fetch_beir import fetch
from utils.runtime.errors import InputError

QRELS = "query-id\tcorpus-id\tscore\nq\ta\t1\n"


def test_there_are_beirs_18_sets_each_with_its_source():
    assert len(SETS) == 18
    assert sum(entry.passages > 1_000_000 for entry in SETS.values()) == 7
    assert {name for name, entry in SETS.items() if entry.access} == {"bioasq", "signal1m", "trec-news", "robust04"}
    assert all(re.search(r"\b20[012]\d\b", entry.source) for entry in SETS.values())
    assert len(CQADUPSTACK) == 12
    assert find_set("SciFact") is SETS["scifact"]
    assert find_set("mine").query_length == 64


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        (("webis-touche2020", 382_545, 49, 2), []),
        (("webis-touche2020", 382_545, 49, 1), ["1 as the highest grade", "2"]),
        (("scifact", 5_183, 299, 1), ["299 judged queries", "300"]),
        (("mine", 1, 1, 7), []),
    ],
)
def test_a_folder_that_is_not_what_beir_published_is_named(capsys, sizes, said):
    compare_with_published(*sizes)
    out = capsys.readouterr().out
    assert out.count("do not compare") == bool(said)
    assert all(part in out for part in said)


@pytest.fixture
def server(tmp_path):
    """The address of a server of tmp_path/www."""
    (tmp_path / "www").mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "www"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def archive(tmp_path, name, folders=("",), without="", more=()):
    with zipfile.ZipFile(tmp_path / "www" / f"{name}.zip", "w") as file:
        for folder in folders:
            for path, content in (
                ("corpus.jsonl", json.dumps({"_id": "a", "text": "x"})),
                ("queries.jsonl", json.dumps({"_id": "q", "text": "x"})),
                ("qrels/test.tsv", QRELS),
            ):
                if path != without:
                    file.writestr(f"{name}/{folder}/{path}".replace("//", "/"), content)
        for path in more:
            file.writestr(path, "outside")


def test_a_set_is_fetched_once_and_appears_whole(tmp_path, server):
    archive(tmp_path, "scifact", more=["../../evil", f"{tmp_path}/evil"])
    (tmp_path / "beir" / ".scifact.partial-of-a-crash").mkdir(parents=True)
    folder = fetch("scifact", tmp_path / "beir", server)
    assert (folder / "qrels" / "test.tsv").read_text() == QRELS
    assert [path.name for path in sorted((tmp_path / "beir").iterdir())] == [".scifact.lock", "scifact"]
    assert not (tmp_path / "evil").exists()
    assert fetch("scifact", tmp_path / "beir", "http://nowhere.invalid") == folder


def test_a_set_in_parts_wants_them_all(tmp_path, server):
    archive(tmp_path, "cqadupstack", CQADUPSTACK)
    assert (fetch("cqadupstack", tmp_path / "beir", server) / "wordpress" / "corpus.jsonl").is_file()
    archive(tmp_path, "cqadupstack", CQADUPSTACK[1:])
    with pytest.raises(InputError, match=r"could not be fetched.*android"):
        fetch("cqadupstack", tmp_path / "again", server)


def test_without_beirs_library_the_message_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "beir.util", None)
    with pytest.raises(InputError, match=r"commands/install\.sh beir.*scifact"):
        fetch("scifact", tmp_path)


def test_what_cannot_be_fetched_says_what_to_put_where(tmp_path, server):
    archive(tmp_path, "nfcorpus", without="qrels/test.tsv")
    (tmp_path / "www" / "fiqa.zip").write_text("no archive")
    target = tmp_path / "beir"
    for name, reason in (
        ("nfcorpus", "could not be fetched"),  # incomplete
        ("fiqa", "could not be fetched"),  # damaged
        ("quora", "could not be fetched"),  # not there
        ("robust04", "BEIR may not distribute robust04; get it by TREC disks 4 and 5"),
    ):
        with pytest.raises(InputError, match=reason) as error:
            fetch(name, target, server)
        assert str(target / name) in str(error.value)
    with pytest.raises(InputError, match=r"could not be fetched"):
        fetch("arguana", target, "http://127.0.0.1:9")
    assert not target.exists() or all(path.name.endswith(".lock") for path in target.iterdir())
    with pytest.raises(InputError, match=r"'\.\./x' is none of BEIR's collections: trec-covid"):
        fetch("../x", target, server)
