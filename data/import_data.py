"""Brings training data, in whatever layout people have them, into one collection in BEIR's layout.

    python data/import_data.py --data_dir pairs.jsonl --out_dir OUT/collection/imported
    python data/import_data.py --data_dir wiki:mails.csv:beir/fiqa --out_dir OUT/collection/imported

Reads MS MARCO's files, BEIR's, Tevatron's, FlagEmbedding's, pairs in named columns and data sets of the library
`datasets` (docs/your_data.md shows each), one source or several with colons between, in one streamed pass. Writes
OUT_DIR as data/collection_writer.py describes it, and last OUT_DIR/import.json: what it was made from and how. A
collection that is there already, made from the same files in the same way, is left alone.

Where a source has no dev queries of its own, a share of its training queries is held out. Of several sources, ids
begin with the source's name and a slash.

One folder in MS MARCO's layout with dev queries is left where it is: data/msmarco_data.py reads it. --settings_file
tells the caller where the collection is then: DATA_DIR, and its LAYOUT, msmarco or beir.
"""

import gc
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.collection_writer import CollectionWriter
from data.layouts.beir import Beir
from data.layouts.datasets import DataSets
from data.layouts.find import AUTO, find_layout
from data.layouts.msmarco import MSMarco
from data.layouts.pairs import Pairs
from data.layouts.records import DEV, Layout, Options
from data.layouts.rows import kind_of
from data.sources import SourceFiles, are_files
from utils.runtime.arguments import option, parse, required
from utils.runtime.errors import InputError, run
from utils.runtime.logs import say
from utils.runtime.plain_text import printable
from utils.stores.files import atomic_file, atomic_folder, read_json, write_json
from utils.stores.lock import hold_lock

FORMAT_VERSION = 1
SETTINGS = ("pair_columns", "data_config", "data_split", "dev_share", "seed")  # that the collection follows from
BETWEEN = ":"


@dataclass
class Arguments:
    data_dir: str = required("the data: a file, a folder, or several with colons between")
    out_dir: str = required("the folder of the collection that is written")
    layout: str = option(AUTO, "auto: by what is there; or msmarco, beir, tevatron, flagembedding, pairs, datasets")
    pair_columns: str = option(
        "", "columns of pairs, in the order QUERY,POSITIVE[,NEGATIVE…] (default: by their names)"
    )
    data_config: str = option("", "configuration of a data set on the hub (--layout datasets)")
    data_split: str = option("", "its split that is trained on (default: train, with dev and test where they are)")
    dev_share: float = option(0.1, "share of the training queries that are held out where there are no dev queries")
    seed: int = option(42, "decides which ones are held out")
    in_use: bool = option(False, "refuse, rather than replace a collection of other data or another share")
    settings_file: str = option(
        "",
        "file that gets DATA_DIR, LAYOUT, TEST (1: has test queries) and TEST_NAME (their sources)",
    )

    def __post_init__(self) -> None:
        if not 0 < self.dev_share < 1:
            raise InputError(f"--dev_share is {self.dev_share:g}; a share between 0 and 1 is needed")


def find_sources(args: Arguments) -> dict[str, Layout]:
    """The sources by their names: what their folders or files are called."""
    paths, layouts = args.data_dir.split(BETWEEN), args.layout.split(BETWEEN)
    if not all(paths):
        raise InputError(
            f"--data_dir is {args.data_dir!r}: a colon stands between two sources, and one of them is empty"
        )
    if len(layouts) not in (1, len(paths)):
        raise InputError(f"--layout names {len(layouts)} layouts for {len(paths)} sources; name one, or one for each")
    options = Options(tuple(filter(None, args.pair_columns.split(","))), args.data_config, args.data_split)
    sources: dict[str, Layout] = {}
    for path, layout in zip(map(Path, paths), layouts * len(paths), strict=False):
        name = name_of(path)
        if name in sources:
            raise InputError(f"two sources are named {name!r}; rename one of them", path)
        if len(paths) > 1 and printable(name) != name:
            raise InputError(
                f"the source's name would be {name!r}, and stands before its ids: rename it, without several blanks "
                "in a row and hidden characters",
                path,
            )
        sources[printable(name)] = find_layout(path, layout, options)
    known = {layout.name for layout in sources.values()}
    for flag, value, of in (
        ("pair_columns", args.pair_columns, {Pairs.name, DataSets.name}),
        ("data_config", args.data_config, {DataSets.name}),
        ("data_split", args.data_split, {DataSets.name}),
    ):
        if value and not known & of:
            raise InputError(
                f"--{flag} is of the layout {' or '.join(sorted(of, reverse=True))}, and the data are read as "
                f"{', '.join(sorted(known))}; leave it out, or ask for that layout with --layout"
            )
    return sources


def name_of(path: Path) -> str:
    """What a source is called: its folder's or file's name, or the last part of a name on the hub."""
    name = Path(os.path.realpath(path)).name  # unlike Path.resolve, it bears links that go in a circle
    if path.is_file() and (kind := kind_of(path)):
        name = name.removesuffix(".gz")[: -len(kind)]
    return name


def name_files(sources: dict[str, Layout], args: Arguments) -> dict[str, Path]:
    """All files of the sources by what they are noted as; a single source may be moved and get another name."""
    files = {}
    for path, (name, layout) in zip(map(Path, args.data_dir.split(BETWEEN)), sources.items(), strict=True):
        inside, folder = f"{name}/" if len(sources) > 1 else "", path if path.is_dir() else path.parent
        for file in layout.files:
            noted = file.relative_to(folder).as_posix().encode(errors="backslashreplace").decode()
            files[f"{inside}{noted}"] = file
    return files


def stays_in_place(sources: dict[str, Layout]) -> bool:
    """Whether data/msmarco_data.py reads them where they are."""
    return len(sources) == 1 and all(isinstance(of, MSMarco) and DEV in of.splits for of in sources.values())


def read_noted(path: Path) -> dict:
    """What import.json holds."""
    cure = f"remove {path.parent}, and run this again"
    noted = read_json(path, cure)
    if noted.get("format_version") != FORMAT_VERSION or not (
        isinstance(noted.get("settings"), dict) and are_files(noted.get("files"))
    ):
        raise InputError(f"is not as it was written; {cure}", path)
    return noted


def settings_of(args: Arguments, sources: dict[str, Layout]) -> dict:
    """What the collection follows from beside the files' contents."""
    made_with = {name: getattr(args, name) for name in SETTINGS} | {"layouts": [of.name for of in sources.values()]}
    places = args.data_dir.split(BETWEEN)
    if len(sources) == 1 and all(of.files for of in sources.values()):
        return made_with  # known by the contents of its files, which may be moved
    names = [name if of.files else place for place, (name, of) in zip(places, sources.items(), strict=True)]
    return made_with | {"sources": names}  # of the hub by their whole names


def is_there_from_hub(args: Arguments) -> bool:
    """Whether the collection is there, made in this way of data sets on the hub alone: the hub is not asked again."""
    places, note = args.data_dir.split(BETWEEN), Path(args.out_dir) / "import.json"
    layouts = args.layout.split(BETWEEN)
    if set(layouts) != {DataSets.name} or any(Path(place).exists() for place in places) or not note.exists():
        return False
    expected = {name: getattr(args, name) for name in SETTINGS} | {"sources": places}
    return read_noted(note)["settings"] == expected | {"layouts": [DataSets.name] * len(places)}


def import_sources(args: Arguments, sources: dict[str, Layout]) -> None:
    """Writes the collection, unless it is there, made in this way from these files."""
    out = Path(args.out_dir)
    named = name_files(sources, args)
    files = SourceFiles(named)
    made_with, note = settings_of(args, sources), out / "import.json"
    if note.exists():
        noted = read_noted(note)
        differences = [
            f"{name} was {noted['settings'].get(name)!r} and is {value!r}"
            for name, value in made_with.items()
            if noted["settings"].get(name) != value
        ]
        differences += files.differences(noted["files"], named)
        if not differences:
            say(f"{out}: imported already, from the same files")
            return
        if args.in_use:
            raise InputError(
                f"the collection there is in use, and was made from other data or in another way: "
                f"{'; '.join(differences)}. Go back to those, or begin anew in another --out_dir",
                out,
            )
        say(f"{out}: made from other data or in another way, and made anew: {'; '.join(differences)}")
    hold_lock(out.parent)
    with atomic_folder(out) as partial:
        one_id_space = any(layout.one_id_space for layout in sources.values())
        writer = CollectionWriter(partial, one_id_space, args.dev_share, args.seed)
        for name, layout in sources.items():
            writer.add(name, layout, f"{name}/" if len(sources) > 1 else "")
        counts = writer.finish()
        entries = {name: files.entry(name) for name in named}
        content = {"format_version": FORMAT_VERSION, "settings": made_with, "files": entries, "queries": counts}
        content |= {"tested": writer.tested}
        write_json(partial / "import.json", content)
    of_splits = ", ".join(f"{count:,} {split}" for split, count in counts.items())
    say(f"the collection is in {out}; queries that have a relevant passage: {of_splits}")


def main() -> None:
    args = parse(Arguments, __doc__)
    sources = {} if is_there_from_hub(args) else find_sources(args)
    if stays_in_place(sources):
        place, layout, tested = args.data_dir, MSMarco.name, []
    else:
        if sources:
            import_sources(args, sources)
        else:
            say(f"{args.out_dir}: imported already, from the hub")
        place, layout = args.out_dir, Beir.name
        tested = read_noted(Path(args.out_dir) / "import.json")["tested"]
    if args.settings_file:
        with atomic_file(args.settings_file) as file:
            name = re.sub("[,=]", "-", "+".join(tested))  # a row of the table of results holds both
            file.write(f"DATA_DIR={place}\nLAYOUT={layout}\nTEST={int(bool(tested))}\nTEST_NAME={name}\n")


if __name__ == "__main__":
    gc.freeze()  # what libraries have loaded is never garbage; looking for some there takes two fifths of the time
    run(main)
