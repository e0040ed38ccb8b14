"""From a stream of texts to a token store: the part that both preprocessing scripts share.

The fast tokenizers' own threads take every core, a block at a time; meanwhile Python writes the block before and
reads the next. A block is bounded in characters, not only in texts, so that memory stays the same for passages of 300
characters and documents of 10,000. A tokenizer reads a text to its end and only then truncates: where the tokens stay
the same, it is given just the beginning of a long one. Ids are not kept: 16 bytes of each
tell whether it comes again, and with which text.
"""

import gzip
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from tokenizers import Encoding, Tokenizer
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer, ByteLevel
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from data.hashed import HashedValues, WantedIds, hashes_of
from model.reading import Reading
from utils.runtime.errors import InputError
from utils.runtime.logs import progress, say
from utils.stores.files import open_binary
from utils.stores.pretrained import check_first_token, longest_sequence, pretrained_config, pretrained_tokenizer
from utils.stores.token_store import AS_IT_IS, Preparation, TokenizerInfo, TokenStore, create_token_store

Text = tuple[int, str, str]  # line of the source file, the collection's own id, text
Block = tuple[list[int], list[str], list[str]]  # lines, ids, texts

BLOCK_TEXTS = 4_000
BLOCK_CHARACTERS = 2_000_000
CHARACTERS_A_TOKEN = 6  # of a text's beginning; English has 4 to 5, and a text with more is read again to its end


def load_tokenizer(name_or_path: str, pooling: str = "cls", cache_dir: str | None = None) -> PreTrainedTokenizerFast:
    """A checkpoint's fast tokenizer; `InputError` where there is none, or it does not do for its model or pooling."""
    tokenizer = pretrained_tokenizer(name_or_path, cache_dir)
    if pooling == "cls":
        check_first_token(tokenizer, name_or_path)
    return tokenizer


def positions_of(name_or_path: str, cache_dir: str | None = None) -> int | None:
    """The tokens, special ones included, that a checkpoint's encoder has positions for; None: without limit.

    A folder with a tokenizer and no config.json is of no encoder, and has no limit.
    """
    if Path(name_or_path).is_dir() and not Path(name_or_path, "config.json").is_file():
        return None
    config = pretrained_config(name_or_path, cache_dir)
    return longest_sequence(config) if hasattr(config, "max_position_embeddings") else None


def check_lengths(
    name_or_path: str,
    positions: int | None,
    tokenizer: PreTrainedTokenizerBase,
    reading: Reading,
    lengths: tuple[int, int],
) -> None:
    """`InputError` where passages or queries of so many tokens leave no room for text beside the prompts.

    And where they are longer than the checkpoint has positions for.
    """
    max_seq_length, max_query_length = lengths
    for flag, length, at_once, prepared in (
        ("max_seq_length", max_seq_length, reading.chunk_length, reading.passages),
        ("max_query_length", max_query_length, None, reading.queries),
    ):
        _check_room(tokenizer, prepared, length, f"--{flag} is {length}, which")
        if positions is not None and min(length, at_once or length) > positions:
            raise InputError(
                f"--{flag} is {length}, and {name_or_path} has positions for {positions} tokens, special ones "
                "included; give at most as many"
            )


def _check_room(tokenizer: PreTrainedTokenizerBase, prepared: Preparation, max_length: int, subject: str) -> int:
    """The tokens of an empty text with its prompt; `InputError` where `max_length` has no more."""
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    specials, tokens = tokenizer.num_special_tokens_to_add(), len(backend.encode(prepared("")))
    if max_length <= tokens:
        prompt = f" and {tokens - specials} of the prompt {prepared.prompt!r}" if prepared.prompt else ""
        raise InputError(f"{subject} leaves no room for text beside {specials} special tokens{prompt}")
    return tokens


def write_token_store(
    folder: Path,
    texts: Iterable[Text],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    source: Path,
    *,
    prepared: Preparation = AS_IT_IS,
    wanted: WantedIds | None = None,
    label: str,
    total: int | None = None,
    flag: str = "",
) -> None:
    """Tokenizes `texts` into a token store at `folder`; `wanted` sees the rows of all ids.

    A row has at most `max_length` tokens, special ones included, and equals what `tokenizer(text)` gives, truncated.
    `source` is the file that the texts come from, `prepared` what was done to them, and `total`, if known, how many
    there are. Texts that are cut are counted, and `flag` is named, which sets the maximum. A text that comes again
    with its id is left out, see `each_once`. Raises `InputError` where an id comes with two texts; then no store
    appears.
    """
    least = _check_room(tokenizer, prepared, max_length, f"a maximum length of {max_length} tokens")
    backend = tokenizer.backend_tokenizer
    backend.enable_truncation(max_length)
    encode = partial(encode_beginnings, backend, max_length) if reads_words(backend) else backend.encode_batch_fast
    left_out: list[int] = []
    empty = cut = 0
    with (
        create_token_store(folder, TokenizerInfo.of(tokenizer), max_length, source, prepared) as writer,
        progress(total=total, unit="texts", label=label) as bar,
    ):
        for _, ids, encodings in _encode_ahead(_once(blocks_of(texts), source, left_out), encode):
            if wanted:
                wanted.see(ids, writer.rows)
            writer.append(ids, (encoding.ids for encoding in encodings))
            empty += sum(len(encoding) <= least for encoding in encodings)
            cut += sum(_is_cut(encoding, max_length) for encoding in encodings)
            bar.update(len(ids))
        if left_out:
            writer.note_lines(np.delete(np.arange(writer.rows + len(left_out)), np.array(left_out) - 1))
    if cut:
        share, by = cut / writer.rows, f" ({flag})" if flag else ""
        say(
            f"{source.name}: {cut:,} of the {label} ({share:.1%}) are longer than {max_length} tokens, special ones "
            f"included, and cut there{by}"
        )
    if empty:
        say(f"warning: {source.name}: {empty:,} of the {label} hold no text; they are kept, and all have one vector")


def find_rows(folder: Path, wanted: WantedIds) -> None:
    """Has `wanted` see the rows of the token store at `folder`."""
    ids, row = TokenStore(folder).iter_ids(), 0
    while block := list(islice(ids, BLOCK_TEXTS)):
        wanted.see(block, row)
        row += len(block)


def each_once(texts: Iterable[Text], source: Path) -> Iterator[Text]:
    """`texts` without those that come again with their id, which are counted and said.

    Raises `InputError` with the line of `source` where an id comes again with another text.
    """
    for block in _once(blocks_of(texts), source, []):
        yield from zip(*block, strict=True)


def reads_words(backend: Tokenizer) -> bool:
    """Whether a text's tokens up to a blank after a word follow from that part alone, as with BERT and RoBERTa."""
    splitter = backend.pre_tokenizer
    by_words = isinstance(splitter, BertPreTokenizer) or (isinstance(splitter, ByteLevel) and splitter.use_regex)
    by_characters = backend.normalizer is None or isinstance(backend.normalizer, BertNormalizer)
    added = (token.content for token in backend.get_added_tokens_decoder().values())
    return by_words and by_characters and not any(" " in content for content in added)


def encode_beginnings(backend: Tokenizer, max_length: int, texts: list[str]) -> list[Encoding]:
    """What `backend`, which `reads_words`, pads nothing and truncates to `max_length`, gives for each of `texts`."""
    beginnings = [_beginning(text, CHARACTERS_A_TOKEN * max_length) for text in texts]
    encodings = backend.encode_batch_fast(beginnings)
    again = [
        i
        for i, encoding in enumerate(encodings)
        if len(beginnings[i]) < len(texts[i]) and not _is_cut(encoding, max_length)
    ]
    for i, encoding in zip(again, backend.encode_batch_fast([texts[i] for i in again]), strict=True):
        encodings[i] = encoding
    return encodings


def _is_cut(encoding: Encoding, max_length: int) -> bool:
    return len(encoding) == max_length and bool(encoding.overflowing)  # which are copied out, and so asked for last


def _beginning(text: str, most: int) -> str:
    """At most `most` characters of a text, up to a blank after a word; all of one that has no such place."""
    if len(text) <= most:
        return text
    found = re.match(rf".{{1,{most}}}(?<=\w)(?= )", text, re.DOTALL)
    return found[0] if found else text


def _encode_ahead(blocks: Iterator[Block], encode: Callable[[list[str]], list]) -> Iterator[tuple]:
    """Yields (lines, ids, encodings): a block is encoded while the one before is written and the next one read."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting = None
        for lines, ids, block in blocks:
            encodings = pool.submit(encode, block)
            if waiting:
                yield *waiting[:2], waiting[2].result()
            waiting = (lines, ids, encodings)
        if waiting:
            yield *waiting[:2], waiting[2].result()


def blocks_of(texts: Iterable[Text]) -> Iterator[Block]:
    """Groups texts into (lines, ids, texts) of a bounded number of texts and characters."""
    lines, ids, block, characters = [], [], [], 0
    for line, text_id, text in texts:
        lines.append(line)
        ids.append(text_id)
        block.append(text)
        characters += len(text)
        if len(block) == BLOCK_TEXTS or characters >= BLOCK_CHARACTERS:
            yield lines, ids, block
            lines, ids, block, characters = [], [], [], 0
    if block:
        yield lines, ids, block


def _once(blocks: Iterator[Block], source: Path, left_out: list[int]) -> Iterator[Block]:
    """What `each_once` does, by blocks; the lines of what is left out are added to `left_out`."""
    seen = SeenTexts()
    for lines, ids, texts in blocks:
        again, differs = seen.add(ids, texts)
        if differs.any():
            i = int(differs.argmax())
            raise InputError(
                f"the id {ids[i]!r} was given before, with another text; ids must differ: remove one of the two, or "
                "give it another id",
                source,
                lines[i],
            )
        if again.any():
            left_out += [lines[i] for i in np.flatnonzero(again)]
            kept = np.flatnonzero(~again).tolist()
            lines, ids, texts = ([column[i] for i in kept] for column in (lines, ids, texts))
        yield lines, ids, texts
    if left_out:
        say(
            f"{source.name}: {len(left_out):,} texts left out, which come again with the same id (line {left_out[0]})"
        )


class SeenTexts:
    """Tells an id that comes again, and whether its text does, in 16 bytes a text (`data.hashed`)."""

    def __init__(self) -> None:
        self._contents = HashedValues()

    def add(self, ids: list[str], texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Adds a block. Which of its ids came before, and which of them with another text, both bool (n,)."""
        keys, contents = hashes_of(ids, len(ids)), hashes_of(texts, len(texts))
        unique, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        known, found = self._contents.find(unique)
        self._contents.add(unique[~found], contents[first[~found]])
        again = np.ones(len(ids), dtype=bool)
        again[first[~found]] = False
        return again, again & (contents != np.where(found, known, contents[first])[inverse])


def count_lines(path: Path) -> int | None:
    """The lines of a plain or gzipped file, for a progress bar; None where it cannot be read to its end."""
    count, last = 0, b"\n"
    try:
        with open_binary(path) as handle:
            while block := handle.read(1 << 22):
                count += block.count(b"\n")
                last = block[-1:]
    except (gzip.BadGzipFile, EOFError, zlib.error):  # whoever reads the lines says where
        return None
    return count + (last != b"\n")
