"""What is written is whole or absent, and what is read knows its file and line."""

import gzip
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.runtime.errors import InputError
from utils.stores.files import (
    atomic_file,
    atomic_folder,
    find_file,
    read_json,
    read_lines,
    remove_leftovers,
    sha256_of_file,
    split_fields,
    write_json,
)

ROOT = Path(__file__).resolve().parents[3]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def killed_inside(code: str, folder: Path) -> None:
    """Runs `code` (which uses FOLDER and ends with os._exit(9) inside a with block) in a process of its own."""
    imports = "import os, sys; from pathlib import Path; from utils.stores.files import *"
    program = f"{imports}; FOLDER = Path(sys.argv[1])\n{code}"
    finished = subprocess.run([sys.executable, "-c", program, folder], cwd=ROOT, check=False)
    assert finished.returncode == 9


def test_a_file_appears_only_when_its_block_ends(tmp_path):
    path = tmp_path / "deep" / "er" / "file.txt"
    with atomic_file(path) as handle:
        handle.write("grün\n")
        handle.flush()
        assert not path.exists()
    assert path.read_bytes() == "grün\n".encode()
    assert names_in(path.parent) == ["file.txt"]


def test_bytes_are_written_as_they_are(tmp_path):
    with atomic_file(tmp_path / "file", "wb") as handle:
        handle.write(b"\r\n\xff")
    assert (tmp_path / "file").read_bytes() == b"\r\n\xff"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_block_that_raises_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write_half() -> None:
        with atomic_file(path) as handle:
            handle.write("new")
            raise error

    with pytest.raises(error):
        write_half()
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["file.txt"]


def test_a_writer_killed_in_the_middle_leaves_the_old_file_and_the_next_writer_cleans_up(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    (tmp_path / ".file.txt.other").write_text("not ours to remove")
    killed_inside("with atomic_file(FOLDER / 'file.txt') as f: f.write('new'); f.flush(); os._exit(9)", tmp_path)
    assert path.read_text() == "old"
    assert len(names_in(tmp_path)) == 3, "the kill should have left a partial file"
    with atomic_file(path) as handle:
        handle.write("newest")
    assert path.read_text() == "newest"
    assert names_in(tmp_path) == [".file.txt.other", "file.txt"]


def test_a_folder_appears_whole_and_takes_the_place_of_the_old_one(tmp_path):
    path = tmp_path / "folder"
    for content in ("first", "second"):
        with atomic_folder(path) as partial:
            (partial / content).mkdir()
            (partial / content / "file").write_text(content)
            assert not (path / content).exists()
        assert names_in(path) == [content]
        assert (path / content / "file").read_text() == content
    assert names_in(tmp_path) == ["folder"]


def test_a_block_that_raises_leaves_the_old_folder_and_nothing_else(tmp_path):
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").touch()

    def write_half() -> None:
        with atomic_folder(path) as partial:
            (partial / "new").touch()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert names_in(path) == ["old"]
    assert names_in(tmp_path) == ["folder"]


def test_a_folder_whose_writer_was_killed_is_absent_and_the_next_writer_cleans_up(tmp_path):
    killed_inside("with atomic_folder(FOLDER / 'folder') as p: (p / 'half').touch(); os._exit(9)", tmp_path)
    assert not (tmp_path / "folder").exists()
    assert len(names_in(tmp_path)) == 1, "the kill should have left a partial folder"
    with atomic_folder(tmp_path / "folder") as partial:
        assert names_in(partial) == []
    assert names_in(tmp_path) == ["folder"]


def test_a_folder_that_is_removed_is_out_of_sight_before_any_of_its_files(tmp_path):
    script = (
        "from utils.stores import files; (FOLDER / 'folder').mkdir(); "
        "files.shutil.rmtree = lambda path: os._exit(9); "
        "files.remove_folder(FOLDER / 'folder')"
    )
    killed_inside(script, tmp_path)
    (left,) = names_in(tmp_path)
    assert left.startswith(".folder.partial-")
    remove_leftovers(tmp_path)
    assert names_in(tmp_path) == []


def test_json_comes_back_as_it_was_written(tmp_path):
    value = {"ä": [1, 2.5, None, True], "nested": {"text": "\u2028"}}
    write_json(tmp_path / "value.json", value)
    assert read_json(tmp_path / "value.json") == value


def test_not_a_number_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError, match="nan"):
        write_json(tmp_path / "value.json", {"value": float("nan")})
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "not valid JSON"), (b'{"cut": ', "not valid JSON"), (b"\xff{}", "not valid JSON"), (b"[1]", "JSON list")],
)
def test_json_that_is_none_names_its_file(tmp_path, content, message):
    path = tmp_path / "value.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as raised:
        read_json(path)
    assert str(path) in str(raised.value)


def test_a_missing_json_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"value\.json: no such file"):
        read_json(tmp_path / "value.json")


@given(st.lists(st.text(st.characters(exclude_characters="\n\r", codec="utf-8")), min_size=1), st.booleans())
def test_lines_are_split_at_line_feeds_alone_whether_gzipped_or_not(tmp_path_factory, lines, gzipped):
    path = tmp_path_factory.mktemp("lines") / "lines.txt"
    content = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(content) if gzipped else content)
    assert list(read_lines(path)) == list(enumerate(lines, start=1))


def test_a_last_line_without_end_and_windows_line_ends_are_read(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_bytes(b"one\r\ntwo\x0b\x0c\n\nlast")
    assert list(read_lines(path)) == [(1, "one"), (2, "two\x0b\x0c"), (3, ""), (4, "last")]


def test_a_missing_an_empty_and_a_wrong_kind_of_file_are_named(tmp_path):
    (tmp_path / "empty").touch()
    (tmp_path / "empty.gz").write_bytes(gzip.compress(b""))
    for name, message in (
        ("none", "no such file"),
        ("empty", "empty"),
        ("empty.gz", "empty"),
        ("", "directory"),
    ):
        with pytest.raises(InputError, match=message) as raised:
            list(read_lines(tmp_path / name))
        assert str(raised.value).startswith(f"{tmp_path / name}: ")


def test_bytes_that_are_not_utf8_are_named_with_line_and_byte(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_bytes(b"good\nbad \xe4\ngood\n")
    lines = read_lines(path)
    assert next(lines) == (1, "good")
    with pytest.raises(InputError, match=r"lines\.txt:2: is not valid UTF-8 at byte 4"):
        next(lines)


def test_a_gzip_stream_that_was_cut_or_altered_is_named_with_its_line(tmp_path):
    path = tmp_path / "lines.txt.gz"
    whole = gzip.compress("".join(f"line {number**2}\n" for number in range(300)).encode())
    cut = [whole[:length] for length in (11, len(whole) // 2, len(whole) - 1)]
    altered = [
        whole[:place] + bytes([255 - whole[place]]) + whole[place + 1 :] for place in range(12, len(whole) - 4, 29)
    ]
    for broken in cut + altered:
        path.write_bytes(broken)
        with pytest.raises(InputError, match=r"lines\.txt\.gz:\d+: the gzip stream is broken"):
            list(read_lines(path))


def test_fields_are_split_at_tabs_and_the_last_keeps_further_ones():
    assert split_fields("1\ttext\twith tab", 2, "f", 1) == ["1", "text\twith tab"]
    with pytest.raises(InputError, match=r"f:7: expected 2 fields separated by tabs, found 1: 'one two'"):
        split_fields("one two", 2, "f", 7)


def test_the_first_name_that_exists_is_found_plain_before_gzipped(tmp_path):
    (tmp_path / "b.tsv.gz").touch()
    assert find_file(tmp_path, "a.tsv", "b.tsv").name == "b.tsv.gz"
    (tmp_path / "b.tsv").touch()
    assert find_file(tmp_path, "a.tsv", "b.tsv").name == "b.tsv"
    with pytest.raises(InputError, match=r"holds none of c\.tsv, d\.tsv"):
        find_file(tmp_path, "c.tsv", "d.tsv")


def test_the_checksum_is_that_of_the_content(tmp_path):
    content = os.urandom(3_000_000)
    (tmp_path / "file").write_bytes(content)
    assert sha256_of_file(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_a_folder_whose_replacement_was_killed_between_its_two_renames_comes_back(tmp_path):
    outgoing = tmp_path / ".store.partial-outgoing"
    outgoing.mkdir()
    (outgoing / "old").touch()
    (tmp_path / ".store.partial-7").mkdir()
    remove_leftovers(tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["store", "store/old"]
