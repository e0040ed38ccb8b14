"""The same small training data in every layout: queries, what answers them, and what does not."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

PASSAGES = [f"the cat is blue {'dog ' * (i % 5)}{i}" for i in range(24)]
QUERIES = [f"what is the sky {i}" for i in range(8)]
# The passages come first in this order wherever examples are read one after another.
POSITIVES = {i: [3 * i] for i in range(8)} | {3: [9, 10]}
NEGATIVES = {i: [3 * i + 1, 3 * i + 2] for i in range(8)} | {3: [11]}
DEV = {8: ("how blue is the tree", 4), 9: ("how is the dog", 13)}  # queries of dev, by number, and their positive


def jsonl(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_msmarco(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "collection.tsv").write_text("".join(f"{i}\t{text}\n" for i, text in enumerate(PASSAGES)))
    (folder / "queries.train.tsv").write_text("".join(f"{i}\t{text}\n" for i, text in enumerate(QUERIES)))
    judged = [(i, p, 1) for i in POSITIVES for p in POSITIVES[i]] + [
        (i, p, 0) for i in NEGATIVES for p in NEGATIVES[i]
    ]
    (folder / "qrels.train.tsv").write_text("".join(f"{q}\t0\t{p}\t{grade}\n" for q, p, grade in judged))
    (folder / "queries.dev.tsv").write_text("".join(f"{i}\t{text}\n" for i, (text, _) in DEV.items()))
    (folder / "qrels.dev.tsv").write_text("".join(f"{i}\t0\t{p}\t1\n" for i, (_, p) in DEV.items()))
    return folder


def write_beir(folder: Path, as_json: bool = False) -> Path:
    jsonl(folder / "corpus.jsonl", [{"_id": f"p{i}", "text": text} for i, text in enumerate(PASSAGES)])
    queries = [*enumerate(QUERIES), *((i, text) for i, (text, _) in DEV.items())]
    jsonl(folder / "queries.jsonl", [{"_id": f"q{i}", "text": text} for i, text in queries])
    judged = {
        "train": [(i, p, 1) for i in POSITIVES for p in POSITIVES[i]]
        + [(i, p, 0) for i in NEGATIVES for p in NEGATIVES[i]],
        "dev": [(i, p, 1) for i, (_, p) in DEV.items()],
    }
    for split, rows in judged.items():
        if as_json:
            named = [{"query-id": f"q{q}", "corpus-id": f"p{p}", "score": float(grade)} for q, p, grade in rows]
            jsonl(folder / "qrels" / f"{split}.jsonl", named)
        else:
            (folder / "qrels").mkdir(exist_ok=True)
            lines = "".join(f"q{q}\tp{p}\t{grade}\n" for q, p, grade in rows)
            (folder / "qrels" / f"{split}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{lines}")
    return folder


def examples() -> dict[str, list[tuple[str, list[str], list[str]]]]:
    """(query, positives, negatives) of each split, as texts."""
    texts = lambda numbers: [PASSAGES[i] for i in numbers]  # noqa: E731
    return {
        "train": [(QUERIES[i], texts(POSITIVES[i]), texts(NEGATIVES[i])) for i in POSITIVES],
        "dev": [(text, texts([p]), []) for text, p in DEV.values()],
    }


def write_tevatron(folder: Path) -> Path:
    jsonl(folder / "corpus.jsonl", [{"docid": f"d{i}", "document_text": text} for i, text in enumerate(PASSAGES)])
    numbered = {
        "train": [(i, QUERIES[i], POSITIVES[i], NEGATIVES[i]) for i in POSITIVES],
        "dev": [(i, text, [p], []) for i, (text, p) in DEV.items()],
    }
    for split, rows in numbered.items():
        jsonl(
            folder / f"{split}.jsonl",
            [
                {
                    "query_id": str(i),
                    "query_text": text,
                    "positive_document_ids": [f"d{p}" for p in positives],
                    "negative_document_ids": [f"d{p}" for p in negatives],
                }
                for i, text, positives, negatives in rows
            ],
        )
    return folder


def write_old_tevatron(folder: Path) -> Path:
    passages = lambda texts: [{"docid": f"d{PASSAGES.index(t)}", "title": "", "text": t} for t in texts]  # noqa: E731
    for split, rows in examples().items():
        jsonl(
            folder / f"{split}.jsonl",
            [
                {
                    "query_id": f"{split}{i}",
                    "query": q,
                    "positive_passages": passages(pos),
                    "negative_passages": passages(neg),
                }
                for i, (q, pos, neg) in enumerate(rows)
            ],
        )
    return folder


def write_flagembedding(folder: Path) -> Path:
    for split, rows in examples().items():
        jsonl(folder / f"{split}.jsonl", [{"query": q, "pos": pos, "neg": neg} for q, pos, neg in rows])
    return folder


def pair_rows(split: str) -> list[dict[str, str]]:
    """A row a positive; the first has the negatives."""
    rows = []
    for query, positives, negatives in examples()[split]:
        negatives = negatives + [""] * (2 - len(negatives))
        for i, positive in enumerate(positives):
            named = dict(
                zip(("negative_1", "negative_2"), negatives if i == len(positives) - 1 else ("", ""), strict=True)
            )
            rows.append({"anchor": query, "positive": positive} | named)
    return rows


def write_pairs(folder: Path) -> Path:
    for split in ("train", "dev"):
        jsonl(folder / f"{split}.jsonl", pair_rows(split))
    return folder


def write_separated(folder: Path, delimiter: str, suffix: str) -> Path:
    folder.mkdir(parents=True)
    for split in ("train", "dev"):
        with (folder / f"{split}.{suffix}").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["anchor", "positive", "negative_1", "negative_2"], delimiter=delimiter)
            writer.writeheader()
            writer.writerows(pair_rows(split))
    if suffix == "tsv":
        for path in folder.iterdir():
            path.write_bytes(path.read_bytes().replace(b"\r\n", b"\n"))
    return folder


def write_csv(folder: Path) -> Path:
    return write_separated(folder, ",", "csv")


def write_tsv(folder: Path) -> Path:
    return write_separated(folder, "\t", "tsv")


def write_parquet(folder: Path) -> Path:
    from pyarrow import Table
    from pyarrow.parquet import write_table

    (folder / "data").mkdir(parents=True)  # as the hub's copies have it
    for split in ("train", "validation"):
        rows = pair_rows("dev" if split == "validation" else split)
        write_table(Table.from_pylist(rows), folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def write_data_set(folder: Path) -> Path:
    from datasets import Dataset, DatasetDict

    rows = {"train": Dataset.from_list(pair_rows("train")), "validation": Dataset.from_list(pair_rows("dev"))}
    DatasetDict(rows).save_to_disk(folder)
    return folder


def write_json_beir(folder: Path) -> Path:
    return write_beir(folder, as_json=True)


# A layout's name and a writer of each form that it comes in.
WRITERS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "msmarco": ("msmarco", write_msmarco),
    "beir": ("beir", write_beir),
    "beir with judgments as JSON": ("beir", write_json_beir),
    "tevatron": ("tevatron", write_tevatron),
    "tevatron of old": ("tevatron", write_old_tevatron),
    "flagembedding": ("flagembedding", write_flagembedding),
    "pairs as JSON": ("pairs", write_pairs),
    "pairs as CSV": ("pairs", write_csv),
    "pairs as TSV": ("pairs", write_tsv),
    "pairs as parquet": ("pairs", write_parquet),
    "datasets": ("datasets", write_data_set),
}
