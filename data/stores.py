"""Makes the token stores and judgments of a collection: what is done in every layout once its files are found."""

from collections.abc import Iterable
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from data.hashed import WantedIds
from data.judgments import Split, remove_judgments, write_split
from data.layouts.records import TRAIN
from data.sources import Sources
from data.tokenizing import Text, count_lines, find_rows, write_token_store
from model.reading import Reading
from utils.runtime.logs import say
from utils.stores.lock import hold_lock


def write_stores(
    out: Path,
    sources: Sources,
    texts: Iterable[Text] | None,
    collection: Path,
    splits: list[Split],
    tokenizer: PreTrainedTokenizerBase,
    reading: Reading,
    lengths: tuple[int, int],
) -> dict[str, int]:
    """Writes OUT/passages/ of these texts of `collection` (None: they are there), and the splits; queries by split.

    `lengths` are the tokens of a passage and of a query at most. Of a split that is trained on, queries whose
    relevant passages are all missing are left out.
    """
    hold_lock(out)
    # The judgments there would name rows of the stores to come.
    remove_judgments(out, [split.name for split in splits] if texts is None else None)
    wanted = WantedIds(split.passage_keys for split in splits)
    if texts is None:
        find_rows(out / "passages", wanted)
    else:
        total = count_lines(collection)
        say(f"tokenizing {collection}" + (f", {total:,} texts" if total is not None else ""))
        write_token_store(
            out / "passages",
            texts,
            tokenizer,
            lengths[0],
            collection,
            prepared=reading.passages,
            wanted=wanted,
            label="passages",
            total=total,
            flag="--max_seq_length",
        )
    sources.note()
    counts = {}
    for split in splits:
        how = {"prepared": reading.queries, "trained_on": split.name == TRAIN}
        counts[split.name] = write_split(split, wanted, tokenizer, lengths[1], out, **how)
    say(f"token stores and judgments are in {out}")
    return counts
