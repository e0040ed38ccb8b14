"""What token stores were made from and with, so that they are made again just where that has changed.

    OUT/sources.json    the settings that tokens follow from; of the collection's file, and apart from it of each
                        split's, name, size, SHA-256 and the times of the last changes; the passages' meta.json

Another split, or another version of one, so leaves the passages alone. Contents count, not places: the same files in
another folder are the same sources. A file whose size and times are as noted is not read for its checksum again; else
it is, about a GB a second. The file is written once the passages are tokenized, before the judgments that make a
split whole. Passages that are not those of the noted meta.json were left by a run that was stopped before that.
"""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

from model.reading import Reading
from utils.runtime.errors import InputError
from utils.runtime.logs import say
from utils.stores.files import read_json, sha256_of_file, write_json
from utils.stores.lock import hold_lock
from utils.stores.token_store import TokenizerInfo, TokenStore

FORMAT_VERSION = 1
WITHOUT_PROMPTS = {"query_prompt": "", "passage_prompt": ""}  # what a version before prompts did not note

Settings = dict[str, str | int | bool]
Noted = dict[str, dict[str, str | int]]  # a file's name → what sources.json has of it


@dataclass(frozen=True)
class Changed:
    """When a file was changed last, in nanoseconds: its content, and anything about it; and its size in bytes."""

    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, path: Path) -> "Changed":
        status = path.stat()
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    def same_content(self, other: "Changed") -> bool:
        """Whether nothing was written in between; who may read the file, or links to it, may have changed."""
        return (self.size, self.mtime_ns) == (other.size, other.mtime_ns)


def settings(tokenizer, reading: Reading, max_seq_length: int, max_query_length: int) -> Settings:
    """What tokens follow from in every layout: the tokenizer (of transformers), case, prompts, and the lengths."""
    return {
        "tokenizer": TokenizerInfo.of(tokenizer).fingerprint,
        "lowercased": reading.lowercase,
        "query_prompt": reading.query_prompt,
        "passage_prompt": reading.passage_prompt,
        "max_seq_length": max_seq_length,
        "max_query_length": max_query_length,
    }


class SourceFiles:
    """Files by the names that they are noted under, as they are when this is made, before anybody reads them."""

    def __init__(self, paths: dict[str, Path]) -> None:
        self._paths = paths
        self.changed = {name: Changed.of(path) for name, path in paths.items()}
        self._digests: dict[str, str] = {}

    def entry(self, name: str) -> dict[str, str | int]:
        """What is noted of a file; `InputError` where it was written to since this object was made."""
        path = self._paths[name]
        before = Changed.of(path)
        entry = asdict(before) | {"sha256": self._digest(name)}
        if not (before.same_content(self.changed[name]) and before.same_content(Changed.of(path))):
            raise InputError("was changed while it was read; run this again", path)
        return entry

    def differences(self, noted: Noted, names: Iterable[str]) -> list[str]:
        """How these files differ from the noted ones, in words."""
        names = list(names)
        differences = [f"{name} is no more among the files" for name in noted if name not in names]
        for name in names:
            changed = self.changed[name]
            if name not in noted:
                differences.append(f"{name} was not among the files")
            elif noted[name] == asdict(changed) | {"sha256": noted[name]["sha256"]}:
                self._digests[name] = noted[name]["sha256"]
            elif noted[name]["size"] != changed.size:
                differences.append(f"{name} had {noted[name]['size']:,} bytes and has {changed.size:,}")
            elif noted[name]["sha256"] != self._digest(name):
                differences.append(f"{name} has another content")
        return differences

    def _digest(self, name: str) -> str:
        if name not in self._digests:
            self._digests[name] = sha256_of_file(self._paths[name])
        return self._digests[name]


class Sources:
    """The files in `raw` that stores in `out` are made from, and the settings that tokens follow from.

    `splits` has the files of each split that is wanted. To be made before the files are read: `note` refuses files
    that were written to after that.
    """

    def __init__(
        self, out: Path, raw: Path, collection: Path, splits: dict[str, list[Path]], made_with: Settings
    ) -> None:
        self._out, self._settings = out, made_with
        self._path, self._meta_path = out / "sources.json", out / "passages" / "meta.json"
        files = {path.relative_to(raw).as_posix(): path for path in (collection, *chain(*splits.values()))}
        self._files, self._names = SourceFiles(files), list(files)
        self._collection = [collection.relative_to(raw).as_posix()]
        self._splits = {
            split: [path.relative_to(raw).as_posix() for path in paths] for split, paths in splits.items()
        }
        self._other_splits: dict[str, Noted] = {}  # what stays noted

    def to_make(self, in_use: bool) -> tuple[bool, list[str]]:
        """Whether the passages are to be made (anew), and which splits, all of them where the passages are.

        The rest is there, made from these files with these settings. `in_use`: something was mined or measured with
        the stores, so that others must not take their place; `InputError` with the differences where they would.
        Stores of a version that noted no sources are then known by what meta.json says; without `in_use` they are not
        known to be of these files.
        """
        whole = [
            split
            for split in self._splits
            if self._meta_path.exists()
            and all((self._out / name).exists() for name in (f"{split}-query/meta.json", f"{split}-qrel.tsv"))
        ]
        noted = self._read() if self._path.exists() else None
        if noted is None and not (whole and in_use):
            return True, [*self._splits]
        if noted is None:
            of_all, of_splits = self._differences_from_meta("passages", "max_seq_length", "passage_prompt"), {}
        else:
            of_all = self._differing_settings(WITHOUT_PROMPTS | noted["settings"])
            of_all += self._files.differences(noted["collection"], self._collection)
            of_splits = {
                split: self._files.differences(noted["splits"][split], names)
                for split, names in self._splits.items()
                if split in noted["splits"]
            }
        if in_use:
            for split in (split for split in whole if split not in of_splits):
                of_splits[split] = self._differences_from_meta(f"{split}-query", "max_query_length", "query_prompt")
        differences = [*dict.fromkeys(chain(of_all, *of_splits.values()))]
        if differences and in_use:
            raise InputError(
                f"the token stores there are in use, and were made from other data or with other settings: "
                f"{'; '.join(differences)}. Go back to those, or begin anew in another --out_data_dir",
                self._out,
            )
        if differences:
            say(f"{self._out}: made from other data or with other settings, and made anew: {'; '.join(differences)}")
        if of_all or (noted is not None and noted["passages"] != self._meta()):
            return True, [*self._splits]
        if noted is not None:
            self._other_splits = {split: of for split, of in noted["splits"].items() if split not in self._splits}
        splits = [split for split in self._splits if split not in whole or of_splits.get(split) != []]
        if splits:
            say(f"{self._out}: the passages are tokenized already, from the same file")
            return False, splits
        with suppress(InputError):  # where nothing can be written, the files are read for their sums again next time
            self.note()
        say(f"{self._out}: tokenized already, from the same files")
        return False, []

    def note(self) -> None:
        """Writes sources.json; `InputError` where a file was written to since this object was made."""
        entries = {name: self._files.entry(name) for name in self._names}
        splits = {split: {name: entries[name] for name in names} for split, names in self._splits.items()}
        content = {
            "format_version": FORMAT_VERSION,
            "settings": self._settings,
            "collection": {name: entries[name] for name in self._collection},
            "splits": self._other_splits | splits,
            "passages": self._meta(),
        }
        if not self._path.exists() or read_json(self._path) != content:
            hold_lock(self._out)
            write_json(self._path, content)

    def _meta(self) -> dict | None:
        """What tells the passages from others: their meta.json, with the sums of their tokens and ids."""
        cure = "remove the folder and tokenize again"
        return read_json(self._meta_path, cure) if self._meta_path.exists() else None

    def _read(self) -> dict:
        """What sources.json holds."""
        cure = "remove it, with the token stores and *-qrel.tsv beside it, and tokenize again"
        noted = read_json(self._path, cure)
        splits = noted.get("splits")
        if (
            noted.get("format_version") != FORMAT_VERSION
            or not isinstance(noted.get("settings"), dict)
            or not isinstance(splits, dict)
            or not all(map(are_files, (noted.get("collection"), *splits.values())))
            or not isinstance(noted.get("passages"), dict)
        ):
            raise InputError(f"is not as it was written; {cure}", self._path)
        return noted

    def _differences_from_meta(self, store: str, length: str, prompt: str) -> list[str]:
        """The same of a store without a note, by its meta.json, which knows the texts' file by name and size.

        `length` and `prompt` are what the settings call those of this store.
        """
        meta = TokenStore(self._out / store).meta
        noted = {length: meta.max_length, prompt: meta.prompt, "tokenizer": meta.tokenizer_fingerprint}
        differences = self._differing_settings(noted)
        if meta.source_file not in self._files.changed:
            differences.append(f"{meta.source_file} is no more among the files")
        elif meta.source_size != self._files.changed[meta.source_file].size:
            size = self._files.changed[meta.source_file].size
            differences.append(f"{meta.source_file} had {meta.source_size:,} bytes and has {size:,}")
        return differences

    def _differing_settings(self, noted: Settings) -> list[str]:
        differences = []
        for name, was in noted.items():
            if self._settings.get(name) == was:
                continue
            if name == "tokenizer":
                differences.append("the tokenizer is another one")
            else:
                differences.append(f"{name} was {was!r} and is {self._settings.get(name)!r}")
        return differences


def are_files(files: object) -> bool:
    """Whether this is what sources.json has of files."""
    expected = {"size": int, "mtime_ns": int, "ctime_ns": int, "sha256": str}
    return isinstance(files, dict) and all(
        isinstance(entry, dict) and {key: type(value) for key, value in entry.items()} == expected
        for entry in files.values()
    )
