"""What token stores were made from and with, so that they are made again just where that has changed.

    OUT/sources.json    the settings that tokens follow from; of each raw file its name, size and SHA-256, and the
                        times of its last changes

Contents count, not places: the same files in another folder are the same sources. A file whose size and times are as
noted is not read for its checksum again; else it is, about a GB a second. The file is written once the passages are
tokenized, before the judgments that make a split whole.
"""

from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from data.tokenizing import text_normalizer
from utils.runtime.errors import InputError
from utils.runtime.logs import say
from utils.stores.files import read_json, sha256_of_file, write_json
from utils.stores.lock import hold_lock
from utils.stores.token_store import TokenizerInfo, TokenStore

FORMAT_VERSION = 1

Settings = dict[str, str | int | bool]


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


def settings(tokenizer, model_type: str, max_seq_length: int, max_query_length: int) -> Settings:
    """What tokens follow from in every layout: the tokenizer (of transformers), the case of the text, the lengths."""
    return {
        "tokenizer": TokenizerInfo.of(tokenizer).fingerprint,
        "lowercased": text_normalizer(model_type) is str.lower,
        "max_seq_length": max_seq_length,
        "max_query_length": max_query_length,
    }


class Sources:
    """The files in `raw` that stores in `out` are made from, and the settings that tokens follow from.

    To be made before the files are read: `note` refuses files that were changed after that.
    """

    def __init__(self, out: Path, raw: Path, files: list[Path], made_with: Settings) -> None:
        self._out, self._settings = out, made_with
        self._path = out / "sources.json"
        self._files = {path.relative_to(raw).as_posix(): path for path in files}
        self._changed = {name: Changed.of(path) for name, path in self._files.items()}
        self._digests: dict[str, str] = {}

    def are_tokenized(self, splits: list[str], in_use: bool) -> bool:
        """Whether whole stores of these splits, made from these files with these settings, are there already.

        `in_use`: something was mined or measured with the stores, so that others must not take their place;
        `InputError` with the differences where they would. Stores of a version that noted no sources are then known
        by what meta.json says; without `in_use` they are not known to be of these files.
        """
        whole = all(
            (self._out / name).exists()
            for split in splits
            for name in ("passages/meta.json", f"{split}-query/meta.json", f"{split}-qrel.tsv")
        )
        if self._path.exists():
            differences = self._differences_from_noted()
        elif whole and in_use:
            differences = self._differences_from_meta(splits)
        else:
            return False
        if differences and in_use:
            raise InputError(
                f"the token stores there are in use, and were made from other data or with other settings: "
                f"{'; '.join(differences)}. Go back to those, or begin anew in another --out_data_dir",
                self._out,
            )
        if differences:
            say(f"{self._out}: made from other data or with other settings, and made anew: {'; '.join(differences)}")
        if differences or not whole:
            return False
        with suppress(InputError):  # where nothing can be written, the files are read for their sums again next time
            self.note()
        say(f"{self._out}: tokenized already, from the same files")
        return True

    def note(self) -> None:
        """Writes sources.json; `InputError` where a file was changed since this object was made."""
        files = {}
        for name, path in self._files.items():
            files[name] = asdict(self._changed[name]) | {"sha256": self._digest(name)}
            if Changed.of(path) != self._changed[name]:
                raise InputError("was changed while it was read; run this again", path)
        content = {"format_version": FORMAT_VERSION, "settings": self._settings, "files": files}
        if not self._path.exists() or read_json(self._path) != content:
            hold_lock(self._out)
            write_json(self._path, content)

    def _digest(self, name: str) -> str:
        if name not in self._digests:
            self._digests[name] = sha256_of_file(self._files[name])
        return self._digests[name]

    def _differences_from_noted(self) -> list[str]:
        """What is other than in sources.json, in words."""
        cure = "remove it, with the token stores and *-qrel.tsv beside it, and tokenize again"
        noted = read_json(self._path, cure)
        settings, files = noted.get("settings"), noted.get("files")
        if noted.get("format_version") != FORMAT_VERSION or not isinstance(settings, dict) or not _are_files(files):
            raise InputError(f"is not as it was written; {cure}", self._path)
        differences = self._differing_settings(settings)
        for name in files.keys() - self._files.keys():
            differences.append(f"{name} is no more among the files")
        for name, changed in self._changed.items():
            if name not in files:
                differences.append(f"{name} was not among the files")
                continue
            if files[name] == asdict(changed) | {"sha256": files[name]["sha256"]}:
                self._digests[name] = files[name]["sha256"]
            elif files[name]["size"] != changed.size:
                differences.append(f"{name} had {files[name]['size']:,} bytes and has {changed.size:,}")
            elif files[name]["sha256"] != self._digest(name):
                differences.append(f"{name} has another content")
        return differences

    def _differences_from_meta(self, splits: list[str]) -> list[str]:
        """The same by the meta.json of stores without sources.json, which know their texts' file by name and size."""
        differences = []
        for name, setting in [("passages", "max_seq_length"), *((f"{s}-query", "max_query_length") for s in splits)]:
            meta = TokenStore(self._out / name).meta
            found = {setting: meta.max_length, "tokenizer": meta.tokenizer_fingerprint}
            differences += [text for text in self._differing_settings(found) if text not in differences]
            if meta.source_file not in self._changed:
                differences.append(f"{meta.source_file} is no more among the files")
            elif meta.source_size != self._changed[meta.source_file].size:
                size = self._changed[meta.source_file].size
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
                differences.append(f"{name} was {was} and is {self._settings.get(name)}")
        return differences


def _are_files(files: object) -> bool:
    """Whether this is what sources.json has of files."""
    expected = {"size": int, "mtime_ns": int, "ctime_ns": int, "sha256": str}
    return isinstance(files, dict) and all(
        isinstance(entry, dict) and {key: type(value) for key, value in entry.items()} == expected
        for entry in files.values()
    )
