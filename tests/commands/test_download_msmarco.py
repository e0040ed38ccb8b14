"""commands/download_msmarco.sh against a file: address; no network."""

import hashlib
import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "commands" / "download_msmarco.sh"
FILES = {"collection.tsv": b"0\ta passage\n" * 50_000, "queries.train.tsv": b"1\ta query\n", "qrels.train.tsv": b""}


def make_archive(path: Path, files: dict[str, bytes], link: tuple[str, str] | None = None) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        if link:
            member = tarfile.TarInfo(link[0])
            member.type, member.linkname = tarfile.SYMTYPE, link[1]
            archive.addfile(member)
    return path


@pytest.fixture
def archive(tmp_path) -> Path:
    return make_archive(tmp_path / "served.tar.gz", FILES)


def md5_of(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def download(archive: Path, folder: Path, md5: str | None = None, **environment: str) -> subprocess.CompletedProcess:
    environment = {"MSMARCO_URL": archive.as_uri(), "MSMARCO_MD5": md5 or md5_of(archive), **environment}
    return subprocess.run(
        ["bash", SCRIPT, folder], env=os.environ | environment, capture_output=True, text=True, check=False
    )


def visible(folder: Path) -> dict[str, bytes]:
    """The folder's files but for the hidden ones, which are the script's own."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def partial_archive(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder / ".collectionandqueries.tar.gz"


def test_a_fresh_download_gives_the_files_and_keeps_no_archive(tmp_path, archive):
    folder = tmp_path / "a folder" / "with blanks"
    finished = download(archive, folder)
    assert finished.returncode == 0, finished.stderr
    assert visible(folder) == FILES
    assert not partial_archive(folder).exists()
    assert not (folder / ".unpacked").exists()


def test_a_second_run_does_nothing_even_where_the_address_is_gone(tmp_path, archive):
    md5 = md5_of(archive)
    assert download(archive, tmp_path / "out").returncode == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    archive.unlink()
    finished = download(archive, tmp_path / "out", md5)
    assert finished.returncode == 0
    assert "complete" in finished.stdout
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


def test_a_file_that_went_missing_is_fetched_again(tmp_path, archive):
    assert download(archive, tmp_path / "out").returncode == 0
    (tmp_path / "out" / "collection.tsv").unlink()
    assert download(archive, tmp_path / "out").returncode == 0
    assert visible(tmp_path / "out") == FILES


def test_a_broken_download_goes_on_where_it_broke(tmp_path, archive):
    folder, content = tmp_path / "out", archive.read_bytes()
    partial_archive(folder).write_bytes(content[: len(content) // 2])
    # The address serves zeros in place of what is here already: only a download that goes on gives the right sum.
    archive.write_bytes(b"\0" * (len(content) // 2) + content[len(content) // 2 :])
    finished = download(archive, folder, hashlib.md5(content).hexdigest())
    assert finished.returncode == 0, finished.stderr
    assert "continuing" in finished.stdout
    assert visible(folder) == FILES


def test_an_archive_that_is_here_whole_is_not_fetched_again(tmp_path, archive):
    folder = tmp_path / "out"
    partial_archive(folder).write_bytes(archive.read_bytes())
    md5 = md5_of(archive)
    archive.unlink()
    assert download(archive, folder, md5).returncode == 0
    assert visible(folder) == FILES


def test_a_part_longer_than_the_file_is_fetched_from_its_start(tmp_path, archive):
    folder = tmp_path / "out"
    partial_archive(folder).write_bytes(archive.read_bytes() + b"more")
    finished = download(archive, folder)
    assert finished.returncode == 0, finished.stderr
    assert visible(folder) == FILES


def test_a_wrong_checksum_is_told_and_the_next_run_starts_over(tmp_path, archive):
    folder, content = tmp_path / "out", archive.read_bytes()
    right = md5_of(archive)
    archive.write_bytes(content[:-1] + b"\0\0")
    wrong = md5_of(archive)
    finished = download(archive, folder, right)
    assert finished.returncode != 0
    assert wrong in finished.stderr
    assert right in finished.stderr
    assert visible(folder) == {}
    assert not partial_archive(folder).exists()
    archive.write_bytes(content)
    assert download(archive, folder, right).returncode == 0
    assert visible(folder) == FILES


def test_an_address_that_does_not_answer_keeps_the_part_and_says_what_to_do(tmp_path, archive):
    folder = tmp_path / "out"
    partial_archive(folder).write_bytes(archive.read_bytes()[:100])
    md5 = md5_of(archive)
    archive.unlink()
    finished = download(archive, folder, md5)
    assert finished.returncode != 0
    assert "curl could not fetch file:" in finished.stderr
    assert "run this again" in finished.stderr
    assert partial_archive(folder).stat().st_size == 100


def test_what_a_killed_unpacking_left_is_done_again(tmp_path, archive):
    folder = tmp_path / "out"
    partial_archive(folder).write_bytes(archive.read_bytes())
    (folder / ".unpacked").mkdir()
    (folder / ".unpacked" / "stale.tsv").write_text("half")
    (folder / "collection.tsv").write_text("moved before the kill")
    assert download(archive, folder).returncode == 0
    assert visible(folder) == FILES


@pytest.mark.parametrize("name", ["../outside.tsv", "inside/../../outside.tsv"])
def test_a_file_outside_the_archives_folder_is_not_written(tmp_path, name):
    archive = make_archive(tmp_path / "served.tar.gz", {"collection.tsv": b"x", name: b"evil"})
    finished = download(archive, tmp_path / "a" / "out")
    assert finished.returncode != 0
    assert not list(tmp_path.rglob("outside.tsv"))
    assert visible(tmp_path / "a" / "out") == {}


def test_an_absolute_name_lands_inside(tmp_path):
    outside = tmp_path / "outside.tsv"
    archive = make_archive(tmp_path / "served.tar.gz", {str(outside): b"evil"})
    assert download(archive, tmp_path / "out").returncode == 0
    assert not outside.exists()
    assert (tmp_path / "out" / outside.relative_to("/")).read_bytes() == b"evil"


def test_links_are_refused(tmp_path):
    archive = make_archive(tmp_path / "served.tar.gz", FILES, link=("passwords", "/etc/passwd"))
    finished = download(archive, tmp_path / "out")
    assert finished.returncode != 0
    assert "links" in finished.stderr
    assert visible(tmp_path / "out") == {}


def test_the_folder_may_come_from_the_environment(tmp_path, archive):
    environment = os.environ | {
        "MSMARCO_URL": archive.as_uri(),
        "MSMARCO_MD5": md5_of(archive),
        "MSMARCO_DIR": str(tmp_path / "out"),
    }
    subprocess.run(["bash", SCRIPT], env=environment, check=True, capture_output=True)
    assert visible(tmp_path / "out") == FILES


def test_help_names_every_setting_and_misuse_fails(tmp_path):
    shown = subprocess.run(["bash", SCRIPT, "--help"], capture_output=True, text=True, check=True).stdout
    for name in ("MSMARCO_DIR", "MSMARCO_URL", "MSMARCO_MD5", "31644046b18952c1386cd4564ba2ae69"):
        assert name in shown
    for arguments in (["--bogus"], [tmp_path / "a", tmp_path / "b"]):
        finished = subprocess.run(["bash", SCRIPT, *arguments], capture_output=True, text=True, check=False)
        assert finished.returncode != 0
        assert "error: " in finished.stderr
    assert list(tmp_path.iterdir()) == []
