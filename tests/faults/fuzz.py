"""Fuzzes one reader with atheris, which looks for bytes that reach new code, for some seconds.

    python tests/faults/fuzz.py                         prints their names
    python tests/faults/fuzz.py NAME SECONDS            (commands/run_fault_tests.sh does so for all of them)

Ends with another exit code than 0 where a reader raises anything but `InputError`; the bytes are printed, and kept in
the folder for temporary files.
"""

import contextlib
import io
import sys
import tempfile
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

with atheris.instrument_imports(include=["data", "evaluate", "model", "utils", "json"]):
    from tests.faults.readers import NAMES, make_readers


def main() -> None:
    if len(sys.argv) == 1:
        print(*NAMES, sep="\n")
        return
    name, seconds = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder, "corpus")
        corpus.mkdir()
        reader = make_readers(Path(folder, "files"))[name]
        (corpus / "whole").write_bytes(reader.path.read_bytes())

        def read(content: bytes) -> None:
            with contextlib.redirect_stdout(io.StringIO()):  # warnings about what is left out
                reader.survives(content)

        flags = (
            f"-max_total_time={seconds}",
            "-max_len=65536",
            "-rss_limit_mb=8192",
            "-timeout=60",
            f"-artifact_prefix={tempfile.gettempdir()}/{reader.path.name}-",
        )
        atheris.Setup([sys.argv[0], *flags, str(corpus)], read)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
