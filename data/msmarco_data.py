"""Tokenizes MS MARCO, passages or documents, into token stores and judgments by row.

    python data/msmarco_data.py --data_dir RAW --out_data_dir OUT --model_type rdot_nll_condenser \\
        --model_name_or_path CHECKPOINT --max_seq_length 256 --max_query_length 32 --data_type 1

Reads the public files, plain or gzipped, and writes OUT/passages/, OUT/{train,dev}-query/ and, of each split last,
OUT/{train,dev}-qrel.tsv. Tokenizing once for all epochs and episodes is worth a file: every episode encodes the whole
collection. One process reads and the tokenizer's threads work, which keeps the rows in the collection's order without
a second pass; the 8.8 million passages go by in blocks, so memory does not grow with them.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.judgments import qrel_file, read_split, write_split
from data.tokenizing import Text, count_lines, load_tokenizer, text_normalizer, write_token_store
from utils.arguments import check_at_least_one, option, parse, required
from utils.errors import InputError, run
from utils.files import find_file, read_lines, split_fields
from utils.lock import hold_lock
from utils.logs import say

DOCUMENTS, PASSAGES = 0, 1
# The collection, then queries and judgments of each split; where two names are given, the first that exists is read.
FILES = {
    PASSAGES: {
        "collection": ("collection.tsv",),
        "train": (("queries.train.tsv",), ("qrels.train.tsv",)),
        "dev": (("queries.dev.small.tsv", "queries.dev.tsv"), ("qrels.dev.small.tsv", "qrels.dev.tsv")),
    },
    DOCUMENTS: {
        "collection": ("msmarco-docs.tsv",),
        "train": (("msmarco-doctrain-queries.tsv",), ("msmarco-doctrain-qrels.tsv",)),
        "dev": (("msmarco-docdev-queries.tsv",), ("msmarco-docdev-qrels.tsv",)),
    },
}


@dataclass
class Arguments:
    data_dir: str = required("folder with MS MARCO's files, plain or .gz")
    out_data_dir: str = required("where token stores and judgments are written")
    model_name_or_path: str = required("checkpoint (folder or hub name) whose tokenizer is used")
    model_type: str = option("rdot_nll", "rdot_nll, rdot_nll_multi_chunk or rdot_nll_condenser (lowercased text)")
    max_seq_length: int = option(128, "tokens of a passage or document at most, special ones included")
    max_query_length: int = option(64, "tokens of a query at most, special ones included")
    max_doc_character: int = option(10_000, "characters of a document (url, title, body) that are tokenized")
    data_type: int = option(PASSAGES, "0: documents, 1: passages")

    def __post_init__(self) -> None:
        if self.data_type not in FILES:
            raise InputError(f"--data_type {self.data_type}: there are 0 (documents) and 1 (passages)")
        check_at_least_one(self, "max_doc_character")


def read_numbered(path: Path, normalize: Callable[[str], str]) -> Iterator[Text]:
    """Passages or queries: a number, a tab, the text."""
    for line, content in read_lines(path):
        text_id, text = split_fields(content, 2, path, line)
        if not (text_id.isascii() and text_id.isdigit()):
            raise InputError(f"expected a number as the id, found {text_id[:80]!r}", path, line)
        yield line, text_id, normalize(text)


def read_documents(
    path: Path, normalize: Callable[[str], str], separator: str, max_characters: int
) -> Iterator[Text]:
    """Documents: D and a number, url, title, body, with tabs between; the last three become one text."""
    for line, content in read_lines(path):
        text_id, *parts = split_fields(content, 4, path, line)
        if not (text_id.isascii() and text_id[:1] == "D" and text_id[1:].isdigit()):
            raise InputError(f"expected D and a number as the id (like D123), found {text_id[:80]!r}", path, line)
        # Normalized first: a separator in lower case would be an ordinary word.
        yield line, text_id, separator.join(map(normalize, parts))[:max_characters]


def main() -> None:
    args = parse(Arguments, __doc__)
    raw, out = Path(args.data_dir), Path(args.out_data_dir)
    files = FILES[args.data_type]
    tokenizer = load_tokenizer(args.model_name_or_path)
    normalize = text_normalizer(args.model_type)

    collection = find_file(raw, *files["collection"])
    splits = []
    for name in ("train", "dev"):
        queries, qrels = (find_file(raw, *names) for names in files[name])
        say(f"reading {queries.name} and {qrels.name}")
        splits.append(read_split(name, read_numbered(queries, normalize), queries, qrels))

    if args.data_type == PASSAGES:
        texts = read_numbered(collection, normalize)
    elif tokenizer.sep_token is None:
        raise InputError(f"the tokenizer of {args.model_name_or_path!r} has no separator token for documents")
    else:
        texts = read_documents(collection, normalize, tokenizer.sep_token, args.max_doc_character)
    hold_lock(out)
    for split in splits:  # judgments of earlier stores would name rows of the new ones
        qrel_file(out, split.name).unlink(missing_ok=True)
    total = count_lines(collection)
    say(f"tokenizing {collection.name}" + (f", {total:,} texts" if total is not None else ""))
    passage_rows = write_token_store(
        out / "passages",
        texts,
        tokenizer,
        args.max_seq_length,
        collection,
        wanted=set().union(*(split.passage_ids for split in splits)),
        label="passages",
        total=total,
    )
    for split in splits:
        write_split(split, passage_rows, tokenizer, args.max_query_length, out)
    say(f"token stores and judgments are in {out}")


if __name__ == "__main__":
    run(main)
