"""The token store: tokenized texts in one flat array, read through a memory map.

    FOLDER/tokens.npy     uint16 (int32 for a vocabulary over 65,536), every row's tokens one after another
    FOLDER/offsets.npy    int64, rows + 1: row i is tokens[offsets[i]:offsets[i + 1]]
    FOLDER/ids.txt        the collection's own id of each row, a line a row
    FOLDER/lines.npy      int64, rows: the line of the source, from 0, that each row is from; where rows are the first
                          lines one after another, there is no such file
    FOLDER/meta.json      what it was made from and with, see `TokenStoreMeta`

Nothing is padded: MS MARCO's passages have 77 tokens in the mean and are asked for at 256, so padding on disk
would triple the file and every read of it. The folder appears by a rename once it is whole.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np

from utils.runtime.errors import InputError
from utils.stores.files import atomic_folder, check_sha256, load_array, read_json, sha256_of_file, write_json

FORMAT_VERSION = 2
LARGEST_UINT16_VOCABULARY = 65_536
OFFSET_DTYPE = np.dtype("<i8")


@dataclass(frozen=True)
class TokenizerInfo:
    """What a store has to remember of its tokenizer.

    `fingerprint` is the SHA-256 of the tokenizer's whole definition: equal fingerprints give equal tokens.
    """

    name: str
    fingerprint: str
    vocabulary_size: int
    pad_token_id: int

    @classmethod
    def of(cls, tokenizer) -> "TokenizerInfo":
        """Reads it off a fast tokenizer of transformers."""
        if tokenizer.pad_token_id is None:
            raise InputError("the tokenizer has no padding token", tokenizer.name_or_path)
        backend = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
        backend.no_truncation()
        backend.no_padding()
        return cls(
            name=str(tokenizer.name_or_path),
            fingerprint=hashlib.sha256(backend.to_str().encode()).hexdigest(),
            vocabulary_size=len(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
        )


@dataclass(frozen=True)
class Preparation:
    """What is done to a text before it is tokenized: a prompt is put before it, and both are lowercased or not."""

    prompt: str = ""
    lowercased: bool = False

    def __call__(self, text: str) -> str:
        text = self.prompt + text
        return text.lower() if self.lowercased else text


AS_IT_IS = Preparation()


@dataclass(frozen=True)
class TokenStoreMeta:
    """The content of meta.json. `max_length` counts special tokens too; `sha256` is of tokens and offsets.

    `ids_sha256` is of ids.txt. `prompt` is what every text begins with, nothing in stores of older versions, and
    `lowercased` whether texts were before they were tokenized, None in those.
    """

    format_version: int
    tokenizer: str
    tokenizer_fingerprint: str
    vocabulary_size: int
    pad_token_id: int
    max_length: int
    rows: int
    tokens: int
    source_file: str
    source_size: int
    sha256: str
    ids_sha256: str
    prompt: str = ""
    lowercased: bool | None = None


class _NpyAppender:
    """A one-dimensional .npy file that grows; its header is written again, in place, when the length is known."""

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self.dtype = np.dtype(dtype)
        self.length = 0
        self.sha256 = hashlib.sha256()
        self._handle = path.open("wb")
        self._write_header()

    def _write_header(self) -> None:
        header = {
            "descr": np.lib.format.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": (self.length,),
        }
        np.lib.format.write_array_header_1_0(self._handle, header)

    def append(self, values: np.ndarray) -> None:
        content = np.ascontiguousarray(values, dtype=self.dtype).data
        self._handle.write(content)
        self.sha256.update(content)
        self.length += len(values)

    def close(self) -> None:
        data_start = self._handle.tell() - self.length * self.dtype.itemsize
        self._handle.seek(0)
        self._write_header()
        assert self._handle.tell() == data_start, "numpy keeps room in its header for a growing length"
        self._handle.close()


class TokenStoreWriter:
    """Appends rows to a store that is being made; see `create_token_store`."""

    def __init__(self, folder: Path, tokenizer: TokenizerInfo, max_length: int, prepared: Preparation) -> None:
        self.tokenizer = tokenizer
        self.prepared = prepared
        self.max_length = max_length
        self._folder = folder
        self._tokens = _NpyAppender(folder / "tokens.npy", _token_dtype(tokenizer.vocabulary_size))
        self._offsets = _NpyAppender(folder / "offsets.npy", OFFSET_DTYPE)
        self._offsets.append(np.zeros(1, dtype=OFFSET_DTYPE))
        self._ids = (folder / "ids.txt").open("w", encoding="utf-8", newline="\n")

    @property
    def rows(self) -> int:
        return self._offsets.length - 1

    def append(self, ids: Sequence[str], token_rows: Iterable[Sequence[int]]) -> None:
        """Appends a block of rows: ids and, for each, its token ids (at most `max_length` of them)."""
        token_rows = list(token_rows)
        if len(ids) != len(token_rows):
            raise ValueError(f"{len(ids)} ids for {len(token_rows)} rows")
        lengths = np.fromiter((len(row) for row in token_rows), dtype=np.int64, count=len(token_rows))
        if len(lengths) and lengths.max() > self.max_length:
            raise ValueError(f"a row of {lengths.max()} tokens in a store of at most {self.max_length}")
        for text_id in ids:
            if "\n" in text_id or "\r" in text_id:
                raise InputError(f"the id {text_id!r} holds a line break, which ids.txt cannot keep")
        self._offsets.append(self._tokens.length + np.cumsum(lengths))
        flat = np.fromiter(chain.from_iterable(token_rows), dtype=self._tokens.dtype, count=int(lengths.sum()))
        self._tokens.append(flat)
        self._ids.writelines(f"{text_id}\n" for text_id in ids)

    def note_lines(self, lines: np.ndarray) -> None:
        """Notes which line of the source, from 0, each row is from, int64 (rows,): for a source with other lines."""
        np.save(self._folder / "lines.npy", lines.astype(OFFSET_DTYPE))

    def close(self, source: Path) -> None:
        self._tokens.close()
        self._offsets.close()
        self._ids.close()
        meta = TokenStoreMeta(
            format_version=FORMAT_VERSION,
            tokenizer=self.tokenizer.name,
            tokenizer_fingerprint=self.tokenizer.fingerprint,
            vocabulary_size=self.tokenizer.vocabulary_size,
            pad_token_id=self.tokenizer.pad_token_id,
            max_length=self.max_length,
            rows=self.rows,
            tokens=self._tokens.length,
            source_file=source.name,
            source_size=source.stat().st_size,
            sha256=_digest_of(self._tokens.sha256.hexdigest(), self._offsets.sha256.hexdigest()),
            ids_sha256=sha256_of_file(self._folder / "ids.txt"),
            prompt=self.prepared.prompt,
            lowercased=self.prepared.lowercased,
        )
        write_json(self._folder / "meta.json", asdict(meta))


@contextmanager
def create_token_store(
    folder: str | Path,
    tokenizer: TokenizerInfo,
    max_length: int,
    source: str | Path,
    prepared: Preparation = AS_IT_IS,
) -> Iterator[TokenStoreWriter]:
    """Makes a token store; it appears at `folder` only if the block ends without an error.

    `source` is the file that the texts come from: its name and size go into meta.json, so that a store can be
    told from one made of another file. `prepared` is what was done to the texts.
    """
    with atomic_folder(folder) as partial:
        writer = TokenStoreWriter(partial, tokenizer, max_length, prepared)
        yield writer
        writer.close(Path(source))


class TokenStore:
    """A token store opened for reading. `store[row]` is that row's tokens; nothing is read before it is asked for.

    Attributes: `tokens` (memory map), `offsets` (int64, rows + 1), `meta`. Raises `InputError` where the folder is
    not a whole token store.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise InputError("no such token store; make it with data/msmarco_data.py or data/beir_data.py", folder)
        self.meta = _read_meta(self.folder / "meta.json")
        token_dtype = _token_dtype(self.meta.vocabulary_size)
        self.tokens = _open_array(self.folder / "tokens.npy", token_dtype, self.meta.tokens, memory_map=True)
        self.offsets = _open_array(self.folder / "offsets.npy", OFFSET_DTYPE, self.meta.rows + 1)
        shortest, longest = self.lengths.min(initial=0), self.lengths.max(initial=0)
        ends = (self.offsets[0], self.offsets[-1]) == (0, self.meta.tokens)
        if not ends or shortest < 0 or longest > self.meta.max_length:
            raise InputError(
                f"the offsets do not fit the tokens: the store is damaged; {_cure(self.folder)}", self.folder
            )

    def __len__(self) -> int:
        return self.meta.rows

    def __getitem__(self, row: int) -> np.ndarray:
        return self.tokens[self.offsets[row] : self.offsets[row + 1]]

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, int64."""
        return np.diff(self.offsets)

    @cached_property
    def lines(self) -> Sequence[int] | np.ndarray:
        """The line of the source, from 0, that each row is from."""
        path = self.folder / "lines.npy"
        if not path.exists():
            return range(len(self))
        lines = _open_array(path, OFFSET_DTYPE, len(self))
        if (np.diff(lines, prepend=-1) < 1).any():
            raise InputError(f"the lines are not in order: the store is damaged; {_cure(self.folder)}", path)
        return lines

    @cached_property
    def ids(self) -> list[str]:
        """The collection's own id of each row; `InputError` where ids.txt is not as it was written."""
        return list(self.iter_ids())

    def iter_ids(self) -> Iterator[str]:
        """The same one by one, for a large store."""
        path = self.folder / "ids.txt"
        check_sha256(path, self.meta.ids_sha256, _cure(self.folder))
        count = 0
        try:
            with path.open(encoding="utf-8", newline="\n") as lines:
                for line in lines:
                    count += 1
                    yield line.removesuffix("\n")
        except ValueError as error:
            raise InputError(f"is no text ({error}); {_cure(self.folder)}", path) from None
        if count != len(self):
            raise InputError(f"holds {count} ids for {len(self)} rows; {_cure(self.folder)}", path)

    def ids_of(self, rows: np.ndarray) -> list[str]:
        """The ids of these rows, int64 (n,) in ascending order; the others are read, not kept."""
        wanted = set(rows.tolist())
        return [text_id for row, text_id in enumerate(self.iter_ids()) if row in wanted]

    def check_content(self) -> None:
        """`InputError` where tokens or offsets are not what was written; reads all of them, about a GB a second."""
        digests = (hashlib.sha256(array.data).hexdigest() for array in (self.tokens, self.offsets))
        if _digest_of(*digests) != self.meta.sha256:
            raise InputError(
                f"the tokens are not those that were written: they were altered; {_cure(self.folder)}", self.folder
            )

    def row_hashes(self, block_tokens: int = 2**17) -> np.ndarray:
        """A 64-bit hash of each row's tokens, uint64: equal rows have equal hashes.

        h = Σ_j (t_j + 1) · m_j (mod 2^64) with fixed odd random multipliers m_j a position, mixed with the length.
        Tokens are read in blocks of whole rows, of a bounded number of tokens however long the rows are, which the
        processor's caches hold.
        """
        generator = np.random.default_rng(0x5EED)
        multipliers = generator.integers(0, 2**63, size=self.lengths.max(initial=0), dtype=np.uint64) * 2 + 1
        hashes = np.empty(len(self), dtype=np.uint64)
        start = 0
        while start < len(self):
            whole = int(np.searchsorted(self.offsets, self.offsets[start] + block_tokens, side="right")) - 1
            stop = max(whole, start + 1)
            offsets = self.offsets[start : stop + 1] - self.offsets[start]
            lengths = np.diff(offsets)
            positions = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
            values = self.tokens[self.offsets[start] : self.offsets[stop]].astype(np.uint64) + np.uint64(1)
            running = np.concatenate([np.zeros(1, np.uint64), np.cumsum(values * multipliers[positions])])
            hashes[start:stop] = (running[offsets[1:]] - running[offsets[:-1]]) * np.uint64(0x9E3779B97F4A7C15)
            hashes[start:stop] ^= lengths.astype(np.uint64)
            start = stop
        return hashes

    def expect(self, tokenizer, max_length: int, prepared: Preparation = AS_IT_IS) -> "TokenStore":
        """Itself, if made with this tokenizer (of transformers) and length, of texts so prepared; else `InputError`.

        Whether they were lowercased matters where the tokenizer tells cases apart.
        """
        if self.meta.tokenizer_fingerprint != TokenizerInfo.of(tokenizer).fingerprint:
            raise InputError(
                f"was made with another tokenizer ({self.meta.tokenizer}) than the checkpoint's; tokenize the "
                "collection again with the checkpoint's own, or use a checkpoint with the store's tokenizer",
                self.folder,
            )
        if self.meta.prompt != prepared.prompt:
            raise InputError(
                f"its texts begin with the prompt {self.meta.prompt!r}, and the checkpoint is read with "
                f"{prepared.prompt!r}; "
                "tokenize the collection again with the checkpoint's, or give --query_prompt and --passage_prompt",
                self.folder,
            )
        if self.meta.lowercased not in (None, prepared.lowercased) and _tells_cases_apart(tokenizer):
            was, wanted = ("" if of else "not " for of in (self.meta.lowercased, prepared.lowercased))
            raise InputError(
                f"its texts were {was}lowercased, and those that the checkpoint reads are {wanted}lowercased; "
                "tokenize the collection again as the checkpoint is read, or give --lowercase",
                self.folder,
            )
        if self.meta.max_length != max_length:
            raise InputError(
                f"was made with at most {self.meta.max_length} tokens a row, and {max_length} were asked for; "
                "give the same length here, or tokenize again",
                self.folder,
            )
        return self


def _tells_cases_apart(tokenizer) -> bool:
    encode = tokenizer.backend_tokenizer.encode
    return encode("A").ids != encode("a").ids


def _digest_of(tokens: str, offsets: str) -> str:
    """What meta.json holds of the digests of both."""
    return hashlib.sha256(f"{tokens} {offsets}".encode()).hexdigest()


def _cure(folder: Path) -> str:
    return f"remove the token stores and *-qrel.tsv in {folder.parent}, and tokenize again"


def _read_meta(path: Path) -> TokenStoreMeta:
    cure = _cure(path.parent)
    content = {"prompt": "", "lowercased": None} | read_json(path, cure)
    if content.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"format version {content.get('format_version')!r}, this code reads {FORMAT_VERSION}; {cure}",
            path,
        )
    for field in fields(TokenStoreMeta):
        value = content.get(field.name)
        kinds = (bool, type(None)) if field.name == "lowercased" else (field.type,)
        if type(value) not in kinds or (field.type is int and value < 0):
            raise InputError(f"{field.name} is {value!r}; the file was altered: {cure}", path)
    if Path(content["source_file"]).name != content["source_file"]:
        raise InputError(f"source_file is {content['source_file']!r}, not the name of a file: {cure}", path)
    return TokenStoreMeta(**{field.name: content[field.name] for field in fields(TokenStoreMeta)})


def _token_dtype(vocabulary_size: int) -> np.dtype:
    return np.dtype("<i4" if vocabulary_size > LARGEST_UINT16_VOCABULARY else "<u2")


def _open_array(path: Path, dtype: np.dtype, length: int, memory_map: bool = False) -> np.ndarray:
    """Opens a one-dimensional .npy that must have `length` entries of just this type."""
    cure = _cure(path.parent)
    array = load_array(path, f"the store is damaged: {cure}", memory_map=memory_map and length > 0)
    if array.shape != (length,) or array.dtype != dtype:
        raise InputError(
            f"holds {array.dtype.str} of shape {array.shape} where {length} of {dtype.str} were expected; {cure}",
            path,
        )
    return array
