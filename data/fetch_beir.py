"""Fetches a collection of BEIR by its name, with BEIR's own library.

    python data/fetch_beir.py --name scifact --out_dir runs/beir

Unpacks BEIR's archive into OUT_DIR/NAME: corpus.jsonl, queries.jsonl and qrels/, of CQADupStack a folder of these for
each of its 12 parts. The folder appears by a rename once it is whole. Four collections may not be distributed; for
them, and where the network is out of reach, the message says what to get and where to put it.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import BadZipFile

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from requests import RequestException

from data.beir_sets import BeirSet, named_set
from utils.runtime.arguments import option, parse, required
from utils.runtime.errors import InputError, first_line, run
from utils.runtime.logs import say
from utils.stores.files import atomic_folder, find_file
from utils.stores.lock import taking_turns

PUBLIC = "https://public.ukp.informatik.tu-darmstadt.de/thakur/BEIR/datasets"


@dataclass
class Arguments:
    name: str = required("the collection, as BEIR names it")
    out_dir: str = required("folder that gets a folder of that name")
    url: str = option(PUBLIC, "where NAME.zip lies")


def fetch(name: str, out_dir: str | Path, url: str = PUBLIC) -> Path:
    """The folder of a collection of BEIR, unpacked there if it is not there yet.

    Raises `InputError` with what to do by hand where that cannot be done.
    """
    entry, folder = named_set(name), Path(out_dir, name)
    if folder.is_dir():
        return folder
    place = f"put its corpus.jsonl, queries.jsonl and qrels/test.tsv into {folder}"
    if entry.access:
        raise InputError(f"BEIR may not distribute {name}; get it by {entry.access}, and {place}")
    with taking_turns(out_dir, name):  # two evaluations may want it at once
        if not folder.is_dir():
            _fetch(entry, folder, url, place)
    return folder


def _fetch(entry: BeirSet, folder: Path, url: str, place: str) -> None:
    """Fetches and unpacks it; `place` tells what to put where by hand."""
    try:
        from beir.util import download_and_unzip
    except ImportError:
        raise InputError(
            f"fetching wants BEIR's library: bash commands/install.sh beir installs it; without it, {place}"
        ) from None
    name, out_dir = folder.name, folder.parent
    try:
        say(f"fetching {url}/{name}.zip")
        with atomic_folder(folder) as partial, TemporaryDirectory(dir=partial) as place_of_archive:
            unpacked = Path(download_and_unzip(f"{url}/{name}.zip", place_of_archive))
            for part in (unpacked / part for part in entry.parts or ("",)):
                for found in (part / "corpus.jsonl", part / "queries.jsonl", part / "qrels" / "test.tsv"):
                    find_file(found.parent, found.name)
            for path in unpacked.iterdir():
                path.replace(partial / path.name)
    except (RequestException, BadZipFile, OSError, InputError) as error:
        reason = first_line(error)[:200]
        raise InputError(
            f"{name} could not be fetched ({reason}); download {url}/{name}.zip where that works and unpack it in "
            f"{out_dir}, or {place}"
        ) from None


def main() -> None:
    args = parse(Arguments, __doc__)
    say(f"{args.name} is in {fetch(args.name, args.out_dir, args.url)}")


if __name__ == "__main__":
    run(main)
