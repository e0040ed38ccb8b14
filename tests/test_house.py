"""The house itself: format, lint, the import rule, the shell scripts, and that no file knows a machine's folders."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = Path(sys.executable).parent

# A path into somebody's home or work folder, or a program's own temporary one, as it would stand in a file.
MACHINE_PATH = re.compile(r"(?<![\w.$}/~-])/(?:home|root|Users|work|workspace|mnt|scratch|tmp)/[\w.-]+")


def tracked_files() -> list[Path]:
    """What git tracks and is still there; in a copy without git, every file that is no hidden or built one."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0:
        paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:
        hidden_or_built = re.compile(r"(^|/)(\.(?!ci/)|__pycache__|runs/)")
        paths = [path for path in ROOT.rglob("*") if not hidden_or_built.search(path.relative_to(ROOT).as_posix())]
    return [path for path in paths if path.is_file()]


def shell_scripts() -> list[Path]:
    return [path for path in tracked_files() if path.read_bytes().startswith(b"#!/usr/bin/env bash")]


def run(*command: str | Path) -> None:
    """Runs a tool in the project's folder; what it says is the failure's message."""
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if finished.returncode:
        pytest.fail(f"{' '.join(map(str, command))}\n{finished.stdout}{finished.stderr}", pytrace=False)


def test_every_file_is_formatted():
    run(sys.executable, "-m", "ruff", "format", "--check", ".")


def test_every_file_passes_the_linter():
    run(sys.executable, "-m", "ruff", "check", ".")


def test_imports_point_down_only():
    run(PROGRAMS / "lint-imports", "--no-cache")


def test_the_objectives_and_the_group_gradients_can_be_copied_elsewhere_as_they_are(tmp_path):
    for name in ("group_gradients", "dro"):
        shutil.copy(ROOT / "model" / f"{name}.py", tmp_path)
    program = (
        "import sys, group_gradients, dro; print(sorted(sys.modules.keys() & {'transformers', 'utils', 'model'}))"
    )
    command = [sys.executable, "-c", program]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == "[]\n"


def test_every_shell_script_can_be_parsed_and_stops_at_the_first_error():
    scripts = shell_scripts()
    assert {"install.sh", "test.sh"} <= {path.name for path in scripts}
    for path in scripts:
        run("bash", "-n", path)
        assert "\nset -euo pipefail\n" in path.read_text(), path


def test_every_shell_script_passes_shellcheck():
    """But for four notes that hold of settings: they are assigned and worked out by `settle` (commands/common.sh)."""
    notes = "SC1091,SC2016,SC2119,SC2153"
    run(
        PROGRAMS / "shellcheck",
        "--external-sources",
        "--source-path",
        "commands",
        "--exclude",
        notes,
        *shell_scripts(),
    )


def test_commands_hold_no_programs_of_another_language():
    for path in shell_scripts():
        found = re.search(r"python[\w\"}]*\s+(-c\b|-\s|<<)", path.read_text())
        assert not found, f"{path}: {found[0]!r} belongs in a script of its own"


@pytest.mark.parametrize("text", ["/home/ann/x", "see /root/.cache", '"/Users/bob/x"', "cd /tmp/x"])
def test_a_machines_path_is_recognised(text):
    assert MACHINE_PATH.search(text)


@pytest.mark.parametrize("text", ["$root/work/x", "a/home/x", "https://x.org/home/y", "../tmp/x", "/usr/bin/env"])
def test_other_paths_are_not_taken_for_a_machines(text):
    assert not MACHINE_PATH.search(text)


def test_no_file_holds_a_path_of_one_machine():
    found = []
    for path in tracked_files():
        if path == Path(__file__):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in MACHINE_PATH.finditer(text)]
    assert not found, found
