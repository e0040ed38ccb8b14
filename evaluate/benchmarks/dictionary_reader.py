"""Reads pairs the plain way, as a process of its own: dictionaries from texts to numbers, the standard library alone.

    python evaluate/benchmarks/dictionary_reader.py --pairs PAIRS.jsonl --out_dir OUT

Writes OUT/passages.jsonl, OUT/queries.jsonl and OUT/judgments.tsv, of each distinct text and pair in the order in
which it comes first. Nothing is checked, and no dev queries are held out.
"""

import argparse
import json
from pathlib import Path
from typing import IO


def number_of(text: str, numbers: dict[str, int], letter: str, file: IO[str]) -> int:
    """The number of a text, from 1; a new one is written."""
    number = numbers.get(text)
    if number is None:
        number = numbers[text] = len(numbers) + 1
        file.write(json.dumps({"_id": f"{letter}{number}", "text": text}, ensure_ascii=False) + "\n")
    return number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=Path, required=True, help="a JSON object with query and positive a line")
    parser.add_argument("--out_dir", type=Path, required=True, help="a folder that is there")
    args = parser.parse_args()
    queries: dict[str, int] = {}
    passages: dict[str, int] = {}
    judged: set[tuple[int, int]] = set()
    with (
        args.pairs.open(encoding="utf-8") as lines,
        (args.out_dir / "queries.jsonl").open("w", encoding="utf-8") as query_file,
        (args.out_dir / "passages.jsonl").open("w", encoding="utf-8") as passage_file,
        (args.out_dir / "judgments.tsv").open("w", encoding="utf-8") as judgment_file,
    ):
        for line in lines:
            row = json.loads(line)
            query = number_of(row["query"].strip(), queries, "q", query_file)
            passage = number_of(row["positive"].strip(), passages, "p", passage_file)
            if (query, passage) not in judged:
                judged.add((query, passage))
                judgment_file.write(f"q{query}\tp{passage}\t1\n")


if __name__ == "__main__":
    main()
