"""Which layout a source of training data has: found by looking at what is there, or as it is asked for.

A new layout is a file beside this one, with a class as `data.layouts.records.Layout` describes it, and a line in
`LAYOUTS`.
"""

from pathlib import Path

from data.layouts.beir import Beir
from data.layouts.datasets import DataSets
from data.layouts.flagembedding import FlagEmbedding
from data.layouts.msmarco import MSMarco
from data.layouts.pairs import POSITIVE_COLUMNS, QUERY_COLUMNS, Pairs
from data.layouts.records import TRAIN, Layout, Options
from data.layouts.rows import KINDS, first_row, rows_in, split_files
from data.layouts.tevatron import Tevatron
from utils.runtime.errors import InputError
from utils.runtime.logs import say

AUTO = "auto"
NOTHING_SAID = Options()
MOST_NAMES = 5  # of files, told in a line
LAYOUTS = {
    layout.name: layout for layout in (MSMarco, Beir, DataSets, Tevatron, FlagEmbedding, Pairs)
}  # asked in turn


def find_layout(path: Path, layout: str = AUTO, options: Options = NOTHING_SAID) -> Layout:
    """The source at `path`, a file or folder (of the layout datasets, also a name on the hub), not read yet.

    Raises `InputError` where nothing is there, it is of no known or not of the asked layout, or has nothing to train
    on.
    """
    if layout != AUTO and layout not in LAYOUTS:
        raise InputError(f"--layout {layout!r} is unknown; there are {AUTO}, {', '.join(LAYOUTS)}")
    if not path.exists() and layout != DataSets.name:
        raise InputError(
            f"no such file or folder (a data set of the hub by its name: --layout {DataSets.name})", path
        )
    asked = layout != AUTO
    for reader in [LAYOUTS[layout]] if asked else LAYOUTS.values():
        if found := reader.find(path, options, asked):
            if TRAIN not in found.splits:
                raise InputError(f"holds nothing to train on, only {', '.join(found.splits)}", path)
            if left := [file.name for file in rows_in(path) if file not in found.files]:
                shown = ", ".join(left[:MOST_NAMES] + ["…"] * (len(left) > MOST_NAMES))
                say(f"{path}: files that are left out: {shown}")
            return found
    if asked:
        raise InputError(f"holds no files of the layout {layout}; docs/your_data.md shows it", path)
    columns = ""
    for files in split_files(path).values():
        found = ", ".join(map(repr, first_row(files[0]))) or "(none)"
        columns = f" ({files[0].name} has the columns {found}; the first line of CSV and TSV names them)"
        break
    raise InputError(
        f"is of no known layout{columns}. Known are MS MARCO's and BEIR's folders, and files of rows "
        f"({', '.join(KINDS)}), or folders with train.jsonl or the like: Tevatron's, FlagEmbedding's, or pairs with "
        f"columns for the query ({', '.join(QUERY_COLUMNS)}) and the positive ({', '.join(POSITIVE_COLUMNS)}), or "
        "others that are named: --pair_columns QUERY,POSITIVE[,NEGATIVE…]; docs/your_data.md shows each",
        path,
    )
