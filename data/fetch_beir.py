"""Fetches a collection of BEIR by its name, with BEIR's own library.

    python data/fetch_beir.py --name scifact --out_dir runs/beir

Unpacks BEIR's archive into OUT_DIR/NAME: corpus.jsonl, queries.jsonl and qrels/, of CQADupStack a folder of these for
each of its 12 parts. The folder appears by a rename once it is whole. Four collections may not be distributed; for
them, and where the network is out of reach, the message says what to get and where to put it.
"""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from zipfile import BadZipFile

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from requests import RequestException

from data.beir_sets import named_set
from utils.arguments import option, parse, required
from utils.errors import InputError, first_line, run
from utils.files import find_file, sync
from utils.logs import say

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
    try:
        from beir.util import download_and_unzip
    except ImportError:
        raise InputError(
            f"fetching wants BEIR's library: bash commands/install.sh beir installs it; without it, {place}"
        ) from None
    Path(out_dir).mkdir(parents=True, exist_ok=True)
    partial = Path(mkdtemp(dir=out_dir, prefix=f".{name}.partial-"))  # two may fetch at once
    try:
        say(f"fetching {url}/{name}.zip")
        unpacked = Path(download_and_unzip(f"{url}/{name}.zip", str(partial)))
        for part in (unpacked / part for part in entry.parts or ("",)):
            for found in (part / "corpus.jsonl", part / "queries.jsonl", part / "qrels" / "test.tsv"):
                find_file(found.parent, found.name)
        if not folder.is_dir():
            unpacked.replace(folder)
            sync(folder.parent)
    except (RequestException, BadZipFile, OSError, InputError) as error:
        reason = first_line(error)[:200]
        raise InputError(
            f"{name} could not be fetched ({reason}); download {url}/{name}.zip where that works and unpack it in "
            f"{out_dir}, or {place}"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def main() -> None:
    args = parse(Arguments, __doc__)
    say(f"{args.name} is in {fetch(args.name, args.out_dir, args.url)}")


if __name__ == "__main__":
    run(main)
