"""The compiled part of the simulated CUDA device: built against the installed torch, kept in the user's cache.

It is loaded before torch is imported, for torch asks once and keeps the answer.
"""

import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).with_name("guard.cpp")


class Unavailable(Exception):
    """There can be no simulated device here, and why."""


def built() -> Path:
    """The shared library, compiled now where it is not in the cache; `Unavailable` without a compiler.

    Its name has the version of torch and a digest of the source. Processes may build it at once: each its own, and
    the last one to finish puts it in place.
    """
    torch = Path(importlib.util.find_spec("torch").origin).parent
    if list(torch.glob("lib/libtorch_cuda.*")):
        raise Unavailable("this torch has a CUDA of its own; the simulated one goes with torch's CPU build")
    version = (torch / "version.py").read_bytes()
    digest = hashlib.sha256(SOURCE.read_bytes() + version + sys.version.encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "ance-simulated-cuda")
    library = cache / f"{digest}.so"
    if library.exists():
        return library
    if not shutil.which("g++"):
        raise Unavailable("there is no g++ to compile the simulated CUDA device with; install it to run these tests")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        own = Path(folder, library.name)
        includes = (f"-I{torch / name}" for name in ("include", "include/torch/csrc/api/include"))
        links = (f"-L{torch / 'lib'}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{torch / 'lib'}")
        command = ["g++", "-O0", "-shared", "-fPIC", "-std=c++20", *includes, str(SOURCE), *links, "-o", str(own)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{SOURCE.name} does not compile against this torch:\n{done.stderr}")
        own.replace(library)
    return library


@cache
def load() -> ctypes.CDLL:
    """Loads it into this process, which must not have imported torch yet."""
    if "torch" in sys.modules:
        raise RuntimeError("the simulated CUDA device must be loaded before torch is imported")
    return ctypes.CDLL(str(built()))
