#!/usr/bin/env bash
# Makes .venv in the project's folder and installs the requirements into it. Done already: nothing happens.
#
#     bash commands/install.sh [dev] [demo] [data] [beir] [fuzz]
#
# Installs requirements.txt, or requirements-gpu.txt where an NVIDIA driver answers; `dev` adds requirements-dev.txt
# (tests, lint), `demo` requirements-demo.txt (the demo's checkpoint), `data` requirements-data.txt (parquet, and the
# hub's data sets), `beir` requirements-beir.txt (BEIR's library, which fetches its collections), `fuzz`
# requirements-fuzz.txt (the fuzzer). Every other script here calls it first.
#
#     PYTHON      the interpreter to make the environment with (3.11 or newer; default: python3)
#     ANCE_VENV   the environment's folder (default: .venv in the project's folder)
#
# Each requirements file has a stamp inside the environment, with a checksum of what it was installed from. A file
# that changes is installed again. An installation that was killed in the middle leaves .installing behind, and the
# environment is then made anew, since pip may take a package for whole that is not.
set -euo pipefail

unset CDPATH # with it, cd prints where it goes
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${ANCE_VENV:-$root/.venv}"

say() { printf 'install: %s\n' "$*" >&2; }
fail() { # what failed, what to do
    printf 'error: %s\n' "$1" >&2
    printf '       %s\n' "${@:2}" >&2
    exit 1
}
# A signal is passed on to pip; it leaves .installing in place, whatever pip makes of it.
# shellcheck disable=SC2046 # one word a process
trap 'kill $(jobs -p) 2> /dev/null || true; wait; exit 130' INT TERM HUP

[[ "$venv" == /* ]] || fail "ANCE_VENV=$venv is not an absolute path"

extras=()
for extra in "$@"; do
    case "$extra" in
        dev | demo | data | beir | fuzz) extras+=("requirements-$extra.txt") ;;
        -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}" && exit 0 ;;
        *) fail "unknown argument '$extra'; usage: bash commands/install.sh [dev] [demo] [data] [beir] [fuzz]" ;;
    esac
done

# What a requirements file's stamp must say: the file, the pins it is held to, the interpreter, the place (the
# environment's scripts hold its absolute path, so a moved one is installed again).
stamp_of() { echo "$venv/.installed-$1"; }
state_of() {
    sha256sum < "$root/$1"
    sha256sum < "$root/$base"
    "$venv/bin/python" --version 2>&1 || true
    printf '%s\n' "$venv"
}
is_installed() {
    [[ -x "$venv/bin/python" && ! -e "$venv/.installing" && -f "$(stamp_of "$1")" ]] &&
        [[ "$(state_of "$1")" == "$(< "$(stamp_of "$1")")" ]]
}

# The GPU build of faiss works on machines of a cluster that have no driver too: an environment that has it stays.
base=requirements.txt
if [[ -f "$(stamp_of requirements-gpu.txt)" ]] || nvidia-smi > /dev/null 2>&1; then
    base=requirements-gpu.txt
fi
all_installed() {
    local file
    for file in "$base" ${extras[@]+"${extras[@]}"}; do
        is_installed "$file" || return 1
    done
}
all_installed && exit 0

ours=("$venv/pyvenv.cfg" "$venv/.lock" "$venv/.installing")
if [[ -d "$venv" && -n "$(ls -A "$venv")" && ! -e "${ours[0]}" && ! -e "${ours[1]}" && ! -e "${ours[2]}" ]]; then
    fail "$venv holds something that is no virtual environment" "move it away, or name another folder: ANCE_VENV=PATH"
fi
mkdir -p "$venv" || fail "cannot make the folder $venv; is the disk full or the folder read-only?"

# One installer at a time: the second waits, and then finds the work done.
if command -v flock > /dev/null; then
    exec 9> "$venv/.lock"
    flock --nonblock 9 || { say "waiting for another installation into $venv" && flock 9; }
    all_installed && exit 0
fi

# 1. The environment: 5 seconds. A whole one is kept; one that was half installed, has lost its interpreter, was moved
# or holds the other build of faiss is emptied first.
keeps_environment() {
    [[ ! -e "$venv/.installing" ]] && "$venv/bin/python" -m pip --version > /dev/null 2>&1 || return 1
    [[ "$base" == requirements.txt || ! -f "$(stamp_of requirements.txt)" ]] || return 1
    [[ ! -f "$(stamp_of "$base")" || "$(tail -n 1 "$(stamp_of "$base")")" == "$venv" ]]
}
find_python() {
    local python version candidates=(python3 python3.13 python3.12 python3.11)
    [[ -z "${PYTHON:-}" ]] || candidates=("$PYTHON")
    for python in "${candidates[@]}"; do
        version="$("$python" --version 2> /dev/null)" || continue
        if [[ "$version" =~ ^Python\ 3\.([0-9]+) ]] && ((BASH_REMATCH[1] >= 11)); then
            echo "$python"
            return
        fi
    done
    fail "no Python 3.11 or newer: tried ${candidates[*]}" \
        "install one, or name it: PYTHON=/path/to/python3.12 bash commands/install.sh"
}
if ! keeps_environment; then
    python="$(find_python)"
    say "making $venv with $("$python" --version)"
    find "$venv" -mindepth 1 -maxdepth 1 ! -name .lock -exec rm -rf {} +
    touch "$venv/.installing"
    "$python" -m venv "$venv" >&2 || fail "$python -m venv failed, see above" \
        "where venv is a package of its own: apt-get install python3-venv; or name another interpreter: PYTHON=PATH"
fi

# 2. The requirements: 2 to 10 minutes the first time, most of it the download of torch. pip's bars show on a terminal.
quiet=(--quiet)
[[ ! -t 2 ]] || quiet=()
for file in "$base" ${extras[@]+"${extras[@]}"}; do
    if is_installed "$file"; then continue; fi
    [[ -f "$root/$file" ]] || fail "$root/$file is missing; is the checkout whole?"
    say "installing $file (minutes the first time)"
    rm -f "$(stamp_of "$file")"
    touch "$venv/.installing"
    status=0 verified=() # a file with hashes brings nothing that has none
    ! grep -q -- --hash= "$root/$file" || verified=(--no-deps --require-hashes)
    "$venv/bin/python" -m pip install --disable-pip-version-check ${quiet[@]+"${quiet[@]}"} --log "$venv/pip.log" \
        ${verified[@]+"${verified[@]}"} --requirement "$root/$file" --constraint "$root/$base" >&2 &
    wait $! || status=$?
    # pip that ends by itself leaves whole packages; only one that a signal ended does not.
    ((status > 128)) || rm -f "$venv/.installing"
    ((status == 0)) || fail "pip could not install $file (exit code $status); its last lines are above, all in $venv/pip.log" \
        "check the network (or the mirror that PIP_INDEX_URL names) and the free disk space, then run this again"
    state_of "$file" > "$(stamp_of "$file")"
done
say "done: $venv"
