"""Says how a checkpoint is read, by flags, by its own files or by --model_type (model/reading.py).

    python drivers/find_reading.py --model_name_or_path CHECKPOINT --settings_file FILE

An encoder that cannot be read so is refused here, before anything is made for it; weights and tokenizer are not read.
FILE gets a line NAME=VALUE for each setting of run_ance.sh that it follows from, with nothing left to be found:
MODEL_TYPE, POOLING, NORMALIZE, SCALE, QUERY_PROMPT, PASSAGE_PROMPT, LOWERCASE.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from model.encoders import check_architecture
from model.reading import AUTO, Reading, find_reading
from utils.runtime.arguments import ReadingArguments, option, parse, prompt_flag, required
from utils.runtime.errors import run
from utils.runtime.logs import say
from utils.stores.files import atomic_file
from utils.stores.pretrained import pretrained_config


@dataclass(kw_only=True)
class Arguments(ReadingArguments):
    model_name_or_path: str = required("the checkpoint: a folder or a hub name")
    model_type: str = option(AUTO, "auto: as the checkpoint's own files say; or a published type")
    settings_file: str = option("", "where the settings go (default: nowhere)")


def settings_of(reading: Reading) -> dict[str, str]:
    """The settings of run_ance.sh that give this reading, by name."""
    return {
        "MODEL_TYPE": reading.model_type,
        "POOLING": reading.pooling,
        "NORMALIZE": str(int(reading.normalized)),
        "SCALE": repr(float(reading.scale)).removesuffix(".0"),
        "QUERY_PROMPT": prompt_flag(reading.query_prompt),
        "PASSAGE_PROMPT": prompt_flag(reading.passage_prompt),
        "LOWERCASE": str(int(reading.lowercase)),
    }


def main() -> None:
    args = parse(Arguments, __doc__)
    reading = find_reading(args.model_name_or_path, **args.reading)
    config = pretrained_config(args.model_name_or_path, args.cache_dir or None)
    check_architecture(config, reading, args.model_name_or_path)
    say(f"{args.model_name_or_path} is read by: {reading}")
    if args.settings_file:
        with atomic_file(args.settings_file) as handle:
            handle.writelines(f"{name}={value}\n" for name, value in settings_of(reading).items())


if __name__ == "__main__":
    run(main)
