#!/usr/bin/env bash
# Sets up, then runs the tests: of every room, of the whole pipeline, and of the house itself (format, lint, import
# rule: tests/test_house.py).
#
#     bash commands/test.sh [PYTEST ARGUMENTS]        e.g. bash commands/test.sh -k metrics -x
set -euo pipefail
unset CDPATH # with it, cd prints where it goes
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

# .venv with the requirements, and what the tests need beside them: minutes the first time, then nothing.
bash "$root/commands/install.sh" dev

# All tests, by as many processes as there are cores, at most 4: under 15 minutes on 2 cores.
cd "$root"
exec "${ANCE_VENV:-$root/.venv}/bin/python" -m pytest tests --numprocesses logical --maxprocesses 4 --dist worksteal "$@"
