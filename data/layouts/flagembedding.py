"""FlagEmbedding's files: JSON lines with the texts that answer a query, and those that do not.

    {"query": "…", "pos": ["…"], "neg": ["…", "…"], "pos_scores": [0.9], "neg_scores": [0.2, 0.4], "prompt": "…"}

`neg`, the scores of a teacher and `prompt` may be missing. A prompt is put before its query. Equal texts are one
query or one passage.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from data.layouts.records import Example, Options, Passage, Place, Query, checked_text
from data.layouts.rows import Row, SplitFiles, first_row, split_files
from utils.runtime.logs import say


def is_example(row: Row) -> bool:
    """Whether a row is of this layout."""
    return "query" in row and isinstance(row.get("pos"), list)


def example_of(split: str, row: Row, place: Place) -> Example:
    """The row as an example; `InputError` where something in it is missing or of another type."""
    prompt = row.get("prompt") or ""
    if not isinstance(prompt, str):
        raise place.error(f"expected a text as prompt, found {prompt!r:.80}")
    query = Query(None, (prompt + checked_text(row.get("query"), "query", place)).strip())
    sides = [_texts(row, name, place) for name in ("pos", "neg")]
    if not sides[0]:
        raise place.error("pos is empty: no text answers the query; give one, or remove the row")
    positives, negatives = ([Passage(None, text) for text in texts] for texts in sides)
    scores = [
        _scores(row, f"{name}_scores", len(texts), place) for name, texts in zip(("pos", "neg"), sides, strict=True)
    ]
    if len({of_side is None for of_side, texts in zip(scores, sides, strict=True) if texts}) > 1:
        raise place.error("has the scores of one side only; give pos_scores and neg_scores, or neither")
    return Example(split, query, positives, negatives, None if scores[0] is None else scores[0] + (scores[1] or []))


def _texts(row: Row, name: str, place: Place) -> list[str]:
    texts = row.get(name)
    if texts is None:
        return []
    if not isinstance(texts, list):
        raise place.error(f"expected a list of texts as {name}, found {texts!r:.80}")
    return [checked_text(text, name, place) for text in texts]


def _scores(row: Row, name: str, count: int, place: Place) -> list[float] | None:
    scores = row.get(name)
    if scores is None or (not scores and count):
        return None
    if not (
        isinstance(scores, list)
        and len(scores) == count
        and all(type(score) in (int, float) and abs(score) <= sys.float_info.max for score in scores)
    ):
        raise place.error(f"expected {count} numbers as {name}, one a text, found {scores!r:.80}")
    return [float(score) for score in scores]


class FlagEmbedding(SplitFiles):
    """Files of FlagEmbedding's examples at a path."""

    name = "flagembedding"
    one_id_space = False

    @classmethod
    def find(cls, path: Path, options: Options, asked: bool) -> "FlagEmbedding | None":
        splits = split_files(path)
        if not splits or not (asked or is_example(first_row(next(iter(splits.values()))[0]))):
            return None
        return cls(splits)

    def read(self) -> Iterator[tuple[Place, Example]]:
        said = False
        for split, place, row in self.split_rows():
            if row.get("prompt") and not said:
                said = True
                say(f"{place.path}: queries begin with their prompts, like {row['prompt']!r:.80}; search so, too")
            yield place, example_of(split, row, place)
