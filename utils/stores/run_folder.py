"""What a run of commands/run_ance.sh was made with, read back from its folder."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from utils.runtime.arguments import prompt_of_flag
from utils.runtime.errors import InputError
from utils.stores.checkpoint import checkpoint_step, newest_checkpoint
from utils.stores.files import read_lines

READING = {  # the settings that drivers/find_reading.py finds
    "MODEL_TYPE": str,
    "POOLING": str,
    "NORMALIZE": lambda value: bool(int(value)),
    "SCALE": float,
    "QUERY_PROMPT": prompt_of_flag,
    "PASSAGE_PROMPT": prompt_of_flag,
    "LOWERCASE": lambda value: bool(int(value)),
}
STAGES = ("tokenize", "mine", "train", "evaluate")


def read_settings(path: Path) -> dict[str, str]:
    """NAME=value lines, in their order; `InputError` for a file that is missing or holds another line."""
    if not path.is_file():
        raise InputError("no such file; is the folder that of a run of commands/run_ance.sh?", path)
    settings = {}
    for number, line in read_lines(path):
        name, equals, value = line.partition("=")
        if not equals:
            raise InputError(f"expected NAME=value, found {line[:80]!r}", path, number)
        settings[name] = value
    return settings


@dataclass(frozen=True)
class RunFolder:
    """The OUT_DIR of a run. Nothing is read before it is asked for."""

    path: Path

    @cached_property
    def settings(self) -> dict[str, str]:
        """Of all stages, by the names of commands/run_ance.sh."""
        return {
            name: value for stage in STAGES for name, value in read_settings(self.path / f"settings.{stage}").items()
        }

    def setting(self, name: str) -> str:
        if name not in self.settings:
            raise InputError(f"no settings.* file there holds {name}; they were altered", self.path)
        return self.settings[name]

    @property
    def reading(self) -> dict[str, Any]:
        """How its checkpoints are read, as `find_reading` takes it; a version before readings has the type alone."""
        self.setting("MODEL_TYPE")
        found = {}
        for name, parse in READING.items():
            if name in self.settings:
                try:
                    found[name.lower()] = parse(self.settings[name])
                except ValueError:
                    raise InputError(
                        f"{name} is {self.settings[name]!r} in settings.*; they were altered", self.path
                    ) from None
        return found

    def owns(self, checkpoint: str) -> bool:
        """Whether it is one of the run's, or what it began with: these are read by the run's settings."""
        initial = self.settings.get("CHECKPOINT", "")
        is_initial = checkpoint == initial or Path(checkpoint).resolve() == (self.path / initial).resolve()
        return is_initial or checkpoint_step(checkpoint, self.models) > 0

    @property
    def tokens(self) -> Path:
        """The token stores of the training collection."""
        return self.path / "preprocessed"

    @property
    def data_dir(self) -> Path:
        """The training collection's own files; what lies in the run's folder is named from there."""
        return self.path / self.setting("DATA_DIR")

    @property
    def initial_embeddings(self) -> Path:
        """The initial checkpoint's, which several runs may share."""
        shared = self.setting("PUBLIC_ANN_DATA_DIR")
        return self.path / (shared or "ann_data/embeddings-0")

    @property
    def models(self) -> Path:
        return self.path / "saved_models"

    def newest_checkpoint(self) -> Path:
        """The newest valid checkpoint; `InputError` where there is none."""
        checkpoint = newest_checkpoint(self.models)
        if checkpoint is None:
            raise InputError("holds no checkpoint; train first, or name one with --model_name_or_path", self.models)
        return checkpoint

    def zero_shot(self) -> list[str]:
        """The names of the zero-shot collections that are tokenized."""
        return sorted(path.parents[1].name for path in (self.path / "zero_shot").glob("*/passages/meta.json"))

    def zero_shot_data_dir(self, name: str) -> Path:
        """A zero-shot collection's own files."""
        path = self.path / "zero_shot" / name / "settings"
        settings = read_settings(path)
        if "folder" not in settings:
            raise InputError("does not say which folder the collection is from; it was altered", path)
        return self.path / settings["folder"]
