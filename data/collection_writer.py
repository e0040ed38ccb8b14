"""Writes what layouts read as one collection in BEIR's layout, streamed: a text costs some 100 bytes of memory.

    passages.jsonl     {"_id": "p1", "title": "…", "text": "…"} a line. It is called corpus.jsonl where a source is of
                       BEIR's layout: there a passage with a query's own id is that query
    queries.jsonl      {"_id": "q1", "text": "…"} a line, the queries of all splits
    qrels/SPLIT.tsv    query-id, corpus-id, score with tabs between: train, dev and, where a source has it, test
    sources.tsv        the source of each query: the query's id, a tab, the source's name
    scores.tsv         a teacher's scores, where the data bring them along: query-id, corpus-id, score

Passages are in the order in which they come first. Texts are not kept: ids, or texts that have none, are known again
by 64-bit hashes (`data.hashed`). A negative of an example is a judgment of grade 0, unless another example has it as
the query's positive. Nothing is shared between sources: equal texts of two sources are two passages.
"""

import json
from collections.abc import Sequence
from hashlib import blake2b
from itertools import chain, groupby, islice
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from data.hashed import HashedValues, hashes_of
from data.judgments import judged_twice
from data.layouts.records import DEV, SPLITS, TEST, TRAIN, Example, Judgment, Layout, Passage, Place, Query
from utils.runtime.errors import InputError
from utils.runtime.logs import progress, say

BLOCK_RECORDS = 4_000
MOST_DEV_QUERIES = 1_000
APART = "passages/"  # before the ids of passages that may be those of queries, and of other texts
HEADER = "query-id\tcorpus-id\tscore\n"


class Numbers:
    """A growing column of whole numbers."""

    def __init__(self, dtype: type) -> None:
        self._held, self._count = np.empty(BLOCK_RECORDS, dtype=dtype), 0

    def append(self, values: np.ndarray) -> None:
        end = self._count + len(values)
        if end > len(self._held):
            held = np.empty(end + end // 2, dtype=self._held.dtype)  # what is not written to takes no memory
            held[: self._count] = self.values
            self._held = held
        self._held[self._count : end] = values
        self._count = end

    @property
    def values(self) -> np.ndarray:
        return self._held[: self._count]


class IdFile:
    """Ids by their numbers: on the disk, with 8 bytes each in memory. They can be read once it is closed."""

    def __init__(self, path: Path) -> None:
        self._path, self._handle, self._ends = path, path.open("wb"), Numbers(np.int64)
        self._bytes: mmap | bytes = b""

    def append(self, ids: list[str]) -> None:
        encoded = [text_id.encode() for text_id in ids]
        lengths = np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded))
        self._ends.append(self._ends.values[-1:].sum() + np.cumsum(lengths))
        self._handle.write(b"".join(encoded))

    def close(self) -> None:
        self._handle.close()
        if len(self._ends.values):
            with self._path.open("rb") as handle:
                self._bytes = mmap(handle.fileno(), 0, access=ACCESS_READ)
        self._path.unlink()

    def read(self, numbers: np.ndarray) -> list[str]:
        """The ids of these numbers, int64 (n,)."""
        ends = self._ends.values
        starts, stops = np.where(numbers > 0, ends[numbers - 1], 0).tolist(), ends[numbers].tolist()
        return [self._bytes[start:stop].decode() for start, stop in zip(starts, stops, strict=True)]


class Entry(NamedTuple):
    """A text to be written, or known again; `id` and `text` as in `data.layouts.records.Passage`."""

    place: Place
    id: str | None
    text: str | None
    title: str = ""


class TextFile:
    """Passages or queries, written a line each and numbered from 0 in the order in which they come first.

    `letter` stands before the number in the id of a text that has none of its own. `ids` can be read once it is
    closed.
    """

    def __init__(self, path: Path, letter: str) -> None:
        self._letter = letter
        self._lines = path.open("wb")
        self._numbers, self._contents = HashedValues(), Numbers(np.int64)
        self.ids = IdFile(path.with_name(f".{path.name}.ids"))
        self._source, self._first, self._prefix = -1, 0, ""

    def begin_source(self, prefix: str) -> None:
        """From now on texts are of another source, whose ids get this prefix."""
        self._source, self._first, self._prefix = self._source + 1, len(self), prefix

    def __len__(self) -> int:
        return len(self._contents.values)

    def add(self, entries: list[Entry]) -> tuple[np.ndarray, np.ndarray]:
        """Writes the texts that are new: the number of each entry, int64 (n,), and which of them were new, in order.

        An entry without a text has the number -1 where its id is unknown. Raises `InputError` where an id comes again
        with another text.
        """
        count, at = len(entries), self._source
        keys = hashes_of(((at, e.title, e.text) if e.id is None else (at, e.id) for e in entries), count)
        contents = hashes_of(((e.title, e.text) for e in entries), count)
        has_text = np.fromiter((e.text is not None for e in entries), dtype=bool, count=count)
        numbers, found = self._numbers.find(keys)
        unknown = np.flatnonzero(~found & has_text)
        unique, first = np.unique(keys[unknown], return_index=True)
        new = unknown[np.sort(first)]
        of_unique = len(self) + np.argsort(np.argsort(first))  # numbered in the order of the entries
        self._write([entries[i] for i in new.tolist()])
        self._contents.append(contents[new])
        self._numbers.add(unique, of_unique)
        rest = np.flatnonzero(~found)
        numbers[rest], found[rest] = self._numbers.find(keys[rest])
        known = np.flatnonzero(has_text)
        for i in known[self._contents.values[numbers[known]] != contents[known]][:1].tolist():
            raise entries[i].place.error(
                f"the id {entries[i].id!r} was given before, with another text; ids must differ: remove one of the "
                "two, or give it another id"
            )
        return np.where(found, numbers, -1), new

    def id_of(self, entry: Entry, number: int) -> str:
        """The id that the text of this number is written with."""
        return self._prefix + (f"{self._letter}{number - self._first + 1}" if entry.id is None else entry.id)

    def _write(self, entries: list[Entry]) -> None:
        quoted, lines, ids = json.JSONEncoder(ensure_ascii=False).encode, [], []
        for number, entry in enumerate(entries, start=len(self)):
            ids.append(self.id_of(entry, number))
            title = f'"title": {quoted(entry.title)}, ' if entry.title else ""
            line = f'{{"_id": {quoted(ids[-1])}, {title}"text": {quoted(entry.text)}}}\n'
            try:
                lines.append(line.encode())
            except UnicodeEncodeError:
                raise entry.place.error(
                    "holds half of a pair of surrogates, like \\ud800; it is no character, remove it"
                ) from None
        self._lines.write(b"".join(lines))
        self.ids.append(ids)

    def close(self) -> None:
        """Ends the file; texts are not known again any more, which frees most of the memory."""
        self._lines.close()
        self.ids.close()
        self._numbers, self._contents = HashedValues(), Numbers(np.int64)


class Judged(NamedTuple):
    """Judgments, int32 (n,) each.

    `split` is its place in SPLITS, `passage` from -2 down one that the collection lacks, and `line` that of the
    judgments' own file, 0 for an example's.
    """

    split: np.ndarray
    query: np.ndarray
    passage: np.ndarray
    grade: np.ndarray
    line: np.ndarray

    def only(self, kept: np.ndarray | slice) -> "Judged":
        return Judged(*(column[kept] for column in self))


class CollectionWriter:
    """Takes sources one after another (`add`), then ends the collection (`finish`). `folder` is empty.

    Of a source without dev queries, `dev_share` of the training queries are held out as such, at most
    `MOST_DEV_QUERIES`; which ones follows from `seed` and their texts.
    """

    def __init__(self, folder: Path, one_id_space: bool, dev_share: float, seed: int) -> None:
        self._folder, self._one_id_space, self._dev_share, self._seed = folder, one_id_space, dev_share, seed
        self._passages = TextFile(folder / ("corpus.jsonl" if one_id_space else "passages.jsonl"), "p")
        self._queries = TextFile(folder / "queries.jsonl", "q")
        self._source_of, self._text_keys = Numbers(np.int16), Numbers(np.int64)  # of each query
        self._judged = Judged(*(Numbers(np.int32) for _ in Judged._fields))
        self._missing: dict[str, int] = {}  # ids of judged passages that are not there
        self._names: list[str] = []
        self.tested: list[str] = []  # the sources that have test queries, once all is written
        self._holds_out: list[bool] = []  # whether a source's dev queries are to be held out
        self._qrels: dict[tuple[int, int], Path | str] = {}  # source and split → the file of its judgments
        self._scores: IO[str] | None = None

    def add(self, name: str, layout: Layout, prefix: str) -> None:
        """Reads a source to its end; `prefix` stands before its ids."""
        self._names.append(name)
        self._holds_out.append(DEV not in layout.splits)
        apart = self._one_id_space and not layout.one_id_space  # beside a source of BEIR's layout
        self._passages.begin_source(prefix + APART * apart)
        self._queries.begin_source(prefix)
        passages, queries, missing = len(self._passages), len(self._queries), len(self._missing)
        strangers = 0
        with progress(total=layout.count(), unit="rows", label=f"read {name}") as bar:
            for kind, records in groupby(layout.read(), lambda record: type(record[1])):
                while block := list(islice(records, BLOCK_RECORDS)):
                    if kind is Passage:
                        self._add_passages([Entry(place, *passage) for place, passage in block])
                    elif kind is Query:
                        self._add_queries([Entry(place, *query) for place, query in block])
                    elif kind is Judgment:
                        strangers += self._add_judgments(block)
                    else:
                        self._add_examples(block)
                    bar.update(len(block))
        passages, queries = len(self._passages) - passages, len(self._queries) - queries
        say(f"{name}: {passages:,} passages and {queries:,} queries, read as {layout.name}")
        if strangers:
            say(f"{name}: {strangers:,} judgments left out, their queries are unknown")
        if lost := list(islice(self._missing, missing, None)):
            say(f"{name}: {len(lost):,} judged passages, like {lost[0]}, are not in the collection: never found")

    def _add_passages(self, entries: list[Entry]) -> np.ndarray:
        """The number of each, int64 (n,); from -2 down those that are named and missing."""
        numbers, _ = self._passages.add(entries)
        for i in np.flatnonzero(numbers < 0).tolist():
            numbers[i] = -2 - self._missing.setdefault(self._passages.id_of(entries[i], -1), len(self._missing))
        return numbers

    def _add_queries(self, entries: list[Entry]) -> np.ndarray:
        """The number of each, int64 (n,); -1 where it is named and unknown."""
        numbers, new = self._queries.add(entries)
        self._source_of.append(np.full(len(new), len(self._names) - 1))
        keys = (self._text_key(entries[i].text) for i in new.tolist())
        self._text_keys.append(np.fromiter(keys, dtype=np.int64, count=len(new)))
        return numbers

    def _text_key(self, text: str) -> int:
        """A hash of a query's words that depends on the seed alone, int64; how they are spaced does not count."""
        text = " ".join(text.split())
        return int.from_bytes(blake2b(f"{self._seed} {text}".encode(), digest_size=8).digest(), "big", signed=True)

    def _add_judgments(self, block: list[tuple[Place, Judgment]]) -> int:
        """How many of them are left out, since their queries are unknown."""
        queries = self._add_queries([Entry(place, judgment.query_id, None) for place, judgment in block])
        known = np.flatnonzero(queries >= 0)
        block = [block[i] for i in known.tolist()]
        passages = self._add_passages([Entry(place, judgment.passage_id, None) for place, judgment in block])
        splits = [SPLITS.index(judgment.split) for _, judgment in block]
        grades, lines = [judgment.grade for _, judgment in block], [place.line for place, _ in block]
        self._judge(splits, queries[known], passages, grades, lines)
        source = len(self._names) - 1
        self._qrels |= {(source, split): place.path for split, (place, _) in zip(splits, block, strict=True)}
        return len(queries) - len(known)

    def _add_examples(self, block: list[tuple[Place, Example]]) -> None:
        queries = [Entry(place, *example.query) for place, example in block]
        sides = [(example.positives, example.negatives) for _, example in block]
        passages = [
            Entry(place, *passage) for (place, _), side in zip(block, sides, strict=True) for passage in chain(*side)
        ]
        grades = [grade for pos, neg in sides for grade in chain([1] * len(pos), [0] * len(neg))]
        sizes = [len(pos) + len(neg) for pos, neg in sides]
        splits = np.repeat([SPLITS.index(example.split) for _, example in block], sizes)
        query_numbers = np.repeat(self._add_queries(queries), sizes)
        passage_numbers = self._add_passages(passages)
        self._judge(splits, query_numbers, passage_numbers, grades, np.zeros(len(grades)))
        if any(example.scores for _, example in block):
            asked = [query for query, size in zip(queries, sizes, strict=True) for _ in range(size)]
            scores = chain(*(ex.scores or [None] * size for (_, ex), size in zip(block, sizes, strict=True)))
            self._write_scores(
                zip(asked, query_numbers.tolist(), passages, passage_numbers.tolist(), scores, strict=True)
            )

    def _write_scores(self, pairs) -> None:
        """Writes a teacher's scores: of (query, its number, passage, its number, score), None where there is none."""
        if self._scores is None:
            self._scores = (self._folder / "scores.tsv").open("w", encoding="utf-8", newline="\n")
            self._scores.write(HEADER)
        for query, query_number, passage, passage_number, score in pairs:
            if score is not None:
                query_id = self._queries.id_of(query, query_number)
                passage_id = self._passages.id_of(passage, passage_number)
                self._scores.write(f"{query_id}\t{passage_id}\t{score!r}\n")

    def _judge(self, *columns: Sequence[int] | np.ndarray) -> None:
        """Keeps judgments; `columns` are those of `Judged`."""
        for held, values in zip(self._judged, columns, strict=True):
            held.append(np.asarray(values, dtype=held.values.dtype))

    def finish(self) -> dict[str, int]:
        """Writes judgments and sources. The number of queries with a relevant passage, by split.

        Raises `InputError` where a query and passage are judged twice and differently, and where no query is left.
        """
        self._passages.close()
        self._queries.close()
        if self._scores is not None:
            self._scores.close()
        judged = self._each_once()
        split = judged.split
        split[self._held_out(judged)] = SPLITS.index(DEV)
        counts = {}
        (self._folder / "qrels").mkdir()
        missing = list(self._missing)
        for place, name in enumerate(SPLITS):
            of_split = judged.only(split == place)
            relevant = len(np.unique(of_split.query[of_split.grade > 0]))
            if not relevant and name not in (TRAIN, DEV):
                if len(of_split.query):
                    say(f"the {name} queries are left out: none has a relevant passage")
                continue
            counts[name] = relevant
            if name == TEST:
                sources = np.unique(self._source_of.values[of_split.query[of_split.grade > 0]])
                self.tested = [self._names[source] for source in sources.tolist()]
            with (self._folder / "qrels" / f"{name}.tsv").open("w", encoding="utf-8", newline="\n") as file:
                file.write(HEADER)
                for start in range(0, len(of_split.query), BLOCK_RECORDS):
                    block = of_split.only(slice(start, start + BLOCK_RECORDS))
                    rows = zip(
                        self._queries.ids.read(block.query),
                        self._passage_ids(block.passage, missing),
                        block.grade.tolist(),
                        strict=True,
                    )
                    file.writelines(f"{query}\t{passage}\t{grade}\n" for query, passage, grade in rows)
        with (self._folder / "sources.tsv").open("w", encoding="utf-8", newline="\n") as file:
            sources = self._source_of.values
            for start in range(0, len(sources), BLOCK_RECORDS):
                numbers = np.arange(start, min(start + BLOCK_RECORDS, len(sources)))
                rows = zip(self._queries.ids.read(numbers), sources[numbers].tolist(), strict=True)
                file.writelines(f"{query}\t{self._names[source]}\n" for query, source in rows)
        self._check_leaks(judged)
        return counts

    def _passage_ids(self, numbers: np.ndarray, missing: list[str]) -> list[str]:
        """The ids of passages, int (n,), some of which may be `missing`."""
        if not missing:
            return self._passages.ids.read(numbers)
        there = iter(self._passages.ids.read(numbers[numbers >= 0]))
        return [next(there) if number >= 0 else missing[-2 - number] for number in numbers.tolist()]

    def _each_once(self) -> Judged:
        """The judgments by split, query and passage, each once; of an example's, the higher grade counts.

        They are no longer kept here.
        """
        judged = Judged(*(column.values for column in self._judged))
        self._judged = Judged(*(Numbers(np.int32) for _ in Judged._fields))
        judged = judged.only(np.lexsort((judged.line, judged.passage, judged.query, judged.split)))
        keys = judged.split, judged.query, judged.passage
        same = np.logical_and.reduce([key[1:] == key[:-1] for key in keys])
        differs = same & (judged.grade[1:] != judged.grade[:-1]) & (judged.line[1:] > 0) & (judged.line[:-1] > 0)
        for i in np.flatnonzero(differs)[:1].tolist():
            split, query, passage = (int(key[i]) for key in keys)
            (query_id,) = self._queries.ids.read(np.array([query]))
            (passage_id,) = self._passage_ids(np.array([passage]), list(self._missing))
            path = self._qrels[int(self._source_of.values[query]), split]
            grades = judged.grade[i : i + 2].tolist()
            raise judged_twice(query_id, passage_id, *grades, path, int(judged.line[i + 1]))
        starts = np.flatnonzero(np.concatenate([[True], ~same])[: len(judged.split)])
        highest = np.maximum.reduceat(judged.grade, starts) if len(starts) else judged.grade
        return judged.only(starts)._replace(grade=highest)

    def _held_out(self, judged: Judged) -> np.ndarray:
        """Which judgments of training become those of dev queries, bool (n,)."""
        train = judged.split == SPLITS.index(TRAIN)
        queries = np.unique(judged.query[train & (judged.grade > 0)])
        sources, keys = self._source_of.values[queries], self._text_keys.values[queries]
        chosen = []
        for source in np.flatnonzero(self._holds_out).tolist():
            texts, counts = np.unique(keys[sources == source], return_counts=True)
            if len(texts) < 2:
                raise InputError(
                    f"has {len(texts)} training queries, of which none can be held out to measure with; add some, "
                    "or dev queries of their own",
                    self._names[source],
                )
            most = min(MOST_DEV_QUERIES, max(1, round(self._dev_share * counts.sum())))
            fits = np.cumsum(counts) <= most
            fits[0], fits[-1] = True, False
            chosen.append(texts[fits])
            name, held, all_of_them = self._names[source], counts[fits].sum(), counts.sum()
            say(
                f"{name}: {held:,} of {all_of_them:,} training queries are held out as dev queries "
                f"(--dev_share {self._dev_share:g}, at most {MOST_DEV_QUERIES:,})"
            )
        texts = np.concatenate(chosen) if chosen else np.empty(0, np.int64)
        return train & np.isin(self._text_keys.values[judged.query], texts)

    def _check_leaks(self, judged: Judged) -> None:
        """Says how many dev and test queries have the text of a training query; `InputError` where none is left."""
        by_split = [np.unique(judged.query[(judged.split == i) & (judged.grade > 0)]) for i in range(len(SPLITS))]
        train, *others = (self._text_keys.values[queries] for queries in by_split)
        if not len(train) or not len(others[0]):
            raise InputError(
                f"no query is left to {'measure with' if len(train) else 'train on'}: none has a relevant passage in "
                "the collection",
                ", ".join(self._names),
            )
        for name, keys in zip(SPLITS[1:], others, strict=True):
            if seen := int(np.isin(keys, train).sum()):
                say(f"warning: {seen:,} of {len(keys):,} {name} queries are training queries too, by their texts")
