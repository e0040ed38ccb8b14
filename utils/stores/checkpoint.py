"""Checkpoints: a model that others can load, and what training needs to go on exactly where it stood.

    TRAINING_DIR/checkpoint-STEP/
        config.json, model.safetensors, tokenizer.json, …   for transformers' AutoModel and AutoTokenizer
        modules.json, 1_Pooling/, 2_Dense/, …               for SentenceTransformer(path) (model/saving.py)
        optimizer.pt, random_states.pt                      read with weights_only=True: nothing in them can run
        trainer_state.json                                  round, step, position in the data, DRO state
        checksums.json                                      SHA-256 of what training goes on from

The folder appears by a rename once it is whole. STEP counts optimizer steps over all episodes.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from utils.runtime import distributed
from utils.runtime.errors import InputError, first_line
from utils.runtime.logs import say, say_once
from utils.stores.episode import read_result
from utils.stores.files import atomic_folder, check_sha256, read_json, remove_folder, sha256_of_file, write_json

FORMAT_VERSION = 3
KINDS = {int: "a count", str: "a text", dict: "an object", bool: "true or false"}
CURE = "remove this checkpoint, and the one before is used"
POLL_SECONDS = 5  # between two looks for a newer checkpoint
MOST = 2**40  # of any count
WEIGHTS = "model.safetensors"
CHECKED = (WEIGHTS, "config.json", "optimizer.pt", "random_states.pt", "trainer_state.json")
HEAD_WEIGHTS = re.compile(rf"\d+_\w+/{re.escape(WEIGHTS)}")
READING = re.compile(  # what says how the encoder is read, the head's weights with it
    rf"modules\.json|sentence_bert_config\.json|config_sentence_transformers\.json|\d+_\w+/(config\.json|{re.escape(WEIGHTS)})"
)
CHECKSUMS = "checksums.json"


@dataclass
class TrainerState:
    """Where a run stands. Steps are optimizer steps.

    `round` is the episode and `episode_step` the steps done in it; `position` is the sample (by the `loss`, a triplet
    or a line), in the mined file's order, that the next step begins with, and `mined_sha256` that file's SHA-256;
    `ended` says that the episode's training was done with this step. `skipped_steps` had a gradient that was not
    finite, of which `skipped_in_a_row` are the last ones; `dro` is the objective's own state as plain lists,
    `unlogged` that of the steps that no log entry has yet (`utils.stores.training_log.UnloggedSteps`).
    """

    round: int = 0
    global_step: int = 0
    episode_step: int = 0
    position: int = 0
    mined_sha256: str = ""
    ended: bool = False
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    processes: int = 1
    optimizer: str = ""
    objective: str = ""
    loss: str = "pairwise"
    dro: dict[str, Any] = field(default_factory=dict)
    unlogged: dict[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    @property
    def episode_start(self) -> int:
        """The steps that were done when the episode began."""
        return self.global_step - self.episode_step

    def advance(self, position: int, skipped: bool) -> None:
        """Counts a step, after which the next one begins at sample `position`."""
        self.ended = False
        self.global_step += 1
        self.episode_step += 1
        self.position = position
        self.skipped_steps += skipped
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0

    def enter(self, mined: str | Path) -> None:
        """Notes the mined file that training stands in; `InputError` where the episode has begun on another one."""
        digest = sha256_of_file(mined)
        if self.episode_step and self.mined_sha256 != digest:
            raise InputError(
                f"is another file than the one that {self.episode_step} steps of this episode were taken on; remove "
                f"the checkpoints beyond step {self.episode_start} to begin the episode anew",
                mined,
            )
        self.mined_sha256 = digest

    def begin(self, round: int) -> None:
        """Goes to the front of another episode."""
        self.round, self.episode_step, self.position, self.ended, self.unlogged = round, 0, 0, False, {}

    def has_finished(self, round: int, max_steps: int) -> bool:
        """Whether that episode has so many steps, or a later one has begun; `max_steps` 0: a pass over its file.

        (`ended` is whether training took it for the end, too.)
        """
        if self.round != round:
            return self.round > round
        return self.episode_step >= max_steps if max_steps else self.episode_step > 0 and self.position == 0


def checkpoint_step(folder: str | Path, training_dir: str | Path) -> int:
    """The step of a checkpoint of `training_dir`; 0 for one from elsewhere (an initial model), whatever its name."""
    name = re.fullmatch(r"checkpoint-(\d+)", Path(folder).name)
    own = Path(folder).parent.resolve() == Path(training_dir).resolve()
    return int(name[1]) if name and own else 0


def newest_checkpoint(
    training_dir: str | Path, accept: Callable[[TrainerState], bool] = lambda state: True
) -> Path | None:
    """The valid checkpoint of the highest step whose state is accepted, None where there is none.

    Invalid ones are named and passed over.
    """
    steps = {path: checkpoint_step(path, training_dir) for path in Path(training_dir).glob("checkpoint-*")}
    for folder in sorted(filter(steps.get, steps), key=steps.get, reverse=True):
        try:
            state = read_trainer_state(folder)
            if state.global_step != steps[folder]:
                raise InputError(f"is of step {state.global_step}: it was renamed", folder)
            check_files(folder)
        except InputError as error:
            say_once(f"warning: not a valid checkpoint, passed over: {error}")
        else:
            if accept(state):
                return folder
    return None


def newest_or_initial(training_dirs: Sequence[str | Path], init_model_dir: str) -> tuple[str, TrainerState | None]:
    """The newest valid checkpoint in these folders and its state; without any, the initial model and None.

    The same in every process, all of which must call it. `InputError` where no initial model is given either.
    """

    def find() -> list[str]:
        return [str(folder) for folder in map(newest_checkpoint, dict.fromkeys(training_dirs)) if folder]

    states = {folder: read_trainer_state(folder) for folder in distributed.on_main(find)}
    if states:
        return max(states.items(), key=lambda found: found[1].global_step)
    if not init_model_dir:
        raise InputError("no checkpoint there; give --init_model_dir to begin with", training_dirs[0])
    return init_model_dir, None


def checkpoint_to_mine(
    number: int, result_dir: str | Path, training_dir: str | Path, init_model_dir: str, waits: bool
) -> tuple[str, int] | None:
    """The checkpoint that mines an episode, newer than the one before's, and its step; the same in every process.

    A miner that trains in turn needs the end of the round before, and gets None, and the reason is said, while there
    is none; one that `waits`, beside training, takes the newest, and waits for it. `InputError` where training has
    begun on the episode itself.
    """
    mined = read_result(result_dir, number - 1) if number else {"step": -1}
    mined_step = mined.get("step", checkpoint_step(mined.get("checkpoint", ""), training_dir))

    def newest() -> tuple[str, int, TrainerState | None]:
        checkpoint, state = newest_or_initial([training_dir], init_model_dir)
        return checkpoint, state.global_step if state else 0, state

    checkpoint, step, state = newest()
    if waits:
        if step <= mined_step:
            say(f"episode {number}: waiting for a checkpoint newer than {mined.get('checkpoint')}")
            distributed.wait_until(lambda: newest()[1] > mined_step, POLL_SECONDS)
            checkpoint, step, state = newest()
        return checkpoint, step
    if state and state.round >= number:
        raise InputError(
            f"was trained on episode {state.round}, so that it cannot mine episode {number}; remove the "
            f"checkpoints of round {number} and later ones, and it is mined again",
            checkpoint,
        )
    if step <= mined_step:
        say(f"nothing to mine with: no checkpoint is newer than {mined.get('checkpoint')}, of episode {number - 1}")
        return None
    if state and not state.ended:
        say(f"nothing to mine with: {checkpoint} stands inside round {state.round}; train that to its end")
        return None
    return checkpoint, step


def remove_old_checkpoints(training_dir: str | Path, keep: int, first: int) -> None:
    """Removes all checkpoints of steps beyond `first`, the episode's, but the newest `keep`; the main process does.

    Nothing is removed unless the newest of all is valid.
    """
    steps = {path: checkpoint_step(path, training_dir) for path in Path(training_dir).glob("checkpoint-*")}
    own = sorted((path for path, step in steps.items() if step > first), key=steps.get)
    if own and newest_checkpoint(training_dir) == own[-1]:
        for path in own[:-keep]:
            remove_folder(path)


def check_files(folder: Path) -> None:
    """`InputError` naming the file that is missing or not as it was saved.

    A version before readings has no sums of what says them.
    """
    digests = read_json(folder / CHECKSUMS, CURE)
    for name in (*CHECKED, *filter(READING.fullmatch, digests)):
        check_sha256(folder / name, str(digests.get(name)), CURE)


def check_weights(folder: str | Path) -> None:
    """`InputError` where a checkpoint that was saved here has other weights than were saved; others have no sum."""
    if Path(folder, CHECKSUMS).is_file():
        cure = f"{CURE}; where you changed them yourself, remove {CHECKSUMS}"
        digests = read_json(Path(folder, CHECKSUMS), CURE)
        for name in (WEIGHTS, *filter(HEAD_WEIGHTS.fullmatch, digests)):
            check_sha256(Path(folder, name), str(digests.get(name)), cure)


def read_trainer_state(folder: str | Path) -> TrainerState:
    """Reads trainer_state.json; `InputError` where it is missing or not as written here."""
    path = Path(folder) / "trainer_state.json"
    content = read_json(path, CURE)
    if content.get("format_version") != FORMAT_VERSION:
        raise InputError(f"format version {content.get('format_version')!r}; this code reads {FORMAT_VERSION}", path)
    content.setdefault("unlogged", {})  # of a version that logged single steps
    content.setdefault("loss", "pairwise")  # of a version that had no other
    for entry in fields(TrainerState):
        expected = dict if entry.name in ("dro", "unlogged") else entry.type
        value = content.get(entry.name)
        if type(value) is not expected or (expected is int and not 0 <= value < MOST):
            raise InputError(f"{entry.name} is {value!r:.80}, not {KINDS[expected]} as it was saved", path)
    return TrainerState(**{entry.name: content[entry.name] for entry in fields(TrainerState)})


def fingerprint_of_weights(checkpoint: str | Path, encoder: torch.nn.Module) -> str:
    """The SHA-256 of a checkpoint's weights: of its file, or of the parameters for a model from elsewhere.

    The file of a model from elsewhere may lack the head that loading adds, which is why it does not do; nor does it
    where the head has files of its own.
    """
    weights = Path(checkpoint) / WEIGHTS
    in_one_file = encoder.keeps_head_with_weights or not encoder.head_layers
    if in_one_file and weights.is_file() and (Path(checkpoint) / CHECKSUMS).is_file():  # see `check_weights`
        return sha256_of_file(weights)
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_checkpoint(
    training_dir: str | Path,
    encoder: torch.nn.Module,
    tokenizer: Any,
    max_seq_length: int,
    max_query_length: int,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    state: TrainerState,
) -> Path:
    """Saves checkpoint-STEP; every process must call it, for its random states. Returns the folder.

    `encoder` is a `model.encoders.Encoder`; the lengths (tokens) are what SentenceTransformer cuts passages and
    queries to, as far as there are positions.
    """
    folder = Path(training_dir) / f"checkpoint-{state.global_step}"
    random_states = _gather_random_states(next(encoder.parameters()).device)

    def write() -> str:
        with atomic_folder(folder) as partial:
            encoder.save_pretrained(partial)
            encoder.save_reading(partial, max_seq_length, max_query_length)
            tokenizer.save_pretrained(partial)
            torch.save({"optimizer": optimizer.state_dict(), "scaler": scaler.state_dict()}, partial / "optimizer.pt")
            torch.save(random_states, partial / "random_states.pt")
            write_json(partial / "trainer_state.json", asdict(state))
            names = (path.relative_to(partial).as_posix() for path in partial.rglob("*"))
            checked = (*CHECKED, *sorted(filter(READING.fullmatch, names)))
            write_json(partial / CHECKSUMS, {name: sha256_of_file(partial / name) for name in checked})
        return str(folder)

    distributed.on_main(write)
    return folder


def load_training_state(
    folder: str | Path, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, random_states: bool
) -> None:
    """Loads the optimizer's moments and the scaler's state, and this process's random states where they are wanted.

    The optimizer must be of the kind that was saved (`TrainerState.optimizer`); its options stay as they are.
    """
    folder = Path(folder)
    with _reading(folder / "optimizer.pt") as saved:
        options = [
            {k: v for k, v in group.items() if k not in ("params", "step")} for group in optimizer.param_groups
        ]
        optimizer.load_state_dict(saved["optimizer"])
        for group, own in zip(optimizer.param_groups, options, strict=True):
            group.update(own)
        if scaler.is_enabled() and saved["scaler"]:
            scaler.load_state_dict(saved["scaler"])
    if random_states:
        with _reading(folder / "random_states.pt") as states:
            own = states[distributed.rank()]
            torch.set_rng_state(own["cpu"])
            device = optimizer.param_groups[0]["params"][0].device
            if device.type == "cuda" and "cuda" in own:
                torch.cuda.set_rng_state(own["cuda"], device)


@contextmanager
def _reading(path: Path) -> Iterator[Any]:
    """What torch saved there; `InputError` where it cannot be read, or the block cannot make use of it."""
    try:
        yield torch.load(path, map_location="cpu", weights_only=True)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # torch raises many kinds for a damaged file
        raise InputError(f"cannot be read ({first_line(error)[:120]}); {CURE}", path) from None


def _gather_random_states(device: torch.device) -> list[dict[str, torch.Tensor]]:
    """The random states of every process, those of its own `device` too, the same in all of them."""
    own = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        own["cuda"] = torch.cuda.get_rng_state(device)
    if distributed.world_size() == 1:
        return [own]
    gathered = [None] * distributed.world_size()
    dist.all_gather_object(gathered, {name: value.numpy() for name, value in own.items()})
    return [{name: torch.from_numpy(np.array(value)) for name, value in one.items()} for one in gathered]
