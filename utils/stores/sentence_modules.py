"""The modules of a model as sentence-transformers saves them: what follows the last layer, and with which weights.

    modules.json                                      the modules in their order, a folder each
    1_Pooling/config.json                             settings of a module
    2_Dense/config.json, 2_Dense/model.safetensors    settings and weights (or pytorch_model.bin)

The classes were moved: older versions write "sentence_transformers.models.Dense", newer ones
"sentence_transformers.base.modules.dense.Dense". The last name is the same. A class of another package keeps its
whole name, for it may do anything. Only names are read here: no class is looked up, and weights are safetensors or
torch's with weights_only=True.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers.utils import cached_file

from utils.runtime.errors import InputError, first_line
from utils.runtime.logs import say_once
from utils.stores.files import read_json
from utils.stores.pretrained import check_place, loading

LIBRARY = "sentence_transformers."
WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")
CURE = "copy or download the checkpoint again"


@dataclass(frozen=True)
class SentenceModule:
    """A module: the name of its class (see above), its folder in the checkpoint, the content of its config.json."""

    kind: str
    folder: str
    config: dict
    checkpoint: str
    cache_dir: str | None

    @property
    def place(self) -> Path:
        """Where it is, for a person."""
        return Path(self.checkpoint, self.folder)

    def weights(self) -> dict[str, Tensor]:
        """Its parameters, on the CPU; `InputError` where they are missing or damaged."""
        found = (checkpoint_file(self.checkpoint, f"{self.folder}/{name}", self.cache_dir) for name in WEIGHTS_FILES)
        path = next(filter(None, found), None)
        if path is None:
            raise InputError(f"holds no weights ({' or '.join(WEIGHTS_FILES)}); {CURE}", self.place)
        try:
            if path.suffix == ".safetensors":
                return load_file(path)
            weights = torch.load(path, map_location="cpu", weights_only=True)
        except (SafetensorError, UnpicklingError, EOFError, RuntimeError, ValueError, KeyError) as error:
            reason = first_line(error) if isinstance(error, SafetensorError) else type(error).__name__
            raise InputError(f"the weights are damaged ({reason}); {CURE}", path) from None
        if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
            raise InputError(f"holds something else than named weights; {CURE}", path)
        return weights


def read_modules(checkpoint: str, cache_dir: str | None = None) -> list[SentenceModule]:
    """The modules of a checkpoint, a folder or a hub name; none where it is not of sentence-transformers."""
    path = declaration(checkpoint, "modules.json", cache_dir)
    if path is None:
        return []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"is not JSON ({first_line(error)}); {CURE}", path) from None
    modules = []
    for entry in content if isinstance(content, list) else [content]:
        kind, folder = (entry.get(name) if isinstance(entry, dict) else None for name in ("type", "path"))
        # A folder's name, so that nothing outside the checkpoint is read.
        if not isinstance(kind, str) or not isinstance(folder, str) or not re.fullmatch(r"(\w[\w.-]*)?", folder):
            raise InputError(f"has {entry!r:.200}, where a module has type and path (a folder's name); {CURE}", path)
        config = checkpoint_file(checkpoint, f"{folder}/config.json", cache_dir) if folder else None
        settings = read_json(config, CURE) if config else {}
        kind = kind.rpartition(".")[2] if kind.startswith(LIBRARY) else kind
        modules.append(SentenceModule(kind, folder, settings, checkpoint, cache_dir))
    return modules


def weight_names(checkpoint: str, cache_dir: str | None = None) -> set[str]:
    """The names of a checkpoint's weights, which are read from its file or, of several, their index."""
    for name in WEIGHTS_FILES:
        index = checkpoint_file(checkpoint, f"{name}.index.json", cache_dir)
        if index is not None:
            return set(read_json(index, CURE).get("weight_map", {}))
        path = checkpoint_file(checkpoint, name, cache_dir)
        if path is not None:
            return set(_names_in(path))
    return set()


def _names_in(path: Path) -> list[str]:
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as weights:
                return [*weights.keys()]
        return [*torch.load(path, map_location="meta", weights_only=True)]
    except (SafetensorError, UnpicklingError, EOFError, RuntimeError, ValueError, KeyError, TypeError) as error:
        reason = first_line(error) if isinstance(error, SafetensorError) else type(error).__name__
        raise InputError(f"the weights are damaged ({reason}); {CURE}", path) from None


def declaration(checkpoint: str, name: str, cache_dir: str | None) -> Path | None:
    """What `checkpoint_file` gives, of a file that says how the checkpoint is read.

    It is said where it is not known that there is none: the hub does not answer, and was never asked for it.
    """
    path = checkpoint_file(checkpoint, name, cache_dir)
    if path is None and not Path(checkpoint).is_dir() and _may_have(checkpoint, name, cache_dir):
        say_once(
            f"warning: the hub cannot be asked whether {checkpoint} has a {name}, and its copy in the cache has "
            "none; it is read as a model without. Run this once with the network"
        )
    return path


def _may_have(checkpoint: str, name: str, cache_dir: str | None) -> bool:
    """Whether the cache has a model of the hub, and neither this file of it nor the note that there is none."""
    config, wanted = (try_to_load_from_cache(checkpoint, part, cache_dir) for part in ("config.json", name))
    return isinstance(config, str) and wanted is None


def checkpoint_file(checkpoint: str, name: str, cache_dir: str | None) -> Path | None:
    """A file of a checkpoint, downloaded where that is on the hub; None where it has no such file.

    `InputError` where there can be no such checkpoint, or the hub refuses it.
    """
    check_place(checkpoint)
    with loading(checkpoint):
        found = cached_file(
            checkpoint,
            name,
            cache_dir=cache_dir,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,  # of a model that was downloaded before
        )
    return Path(found) if found else None
