#!/usr/bin/env bash
# The long form of tests/faults: kills every stage again and again, fills disks, and fuzzes every reader for minutes.
#
#     bash commands/run_fault_tests.sh                three to four hours on 2 cores: two and a half of them fuzzing
#     KILLS=5 FUZZ_SECONDS=30 bash commands/run_fault_tests.sh
#
# Prints the kills that each stage survived, and what each reader was fuzzed with; ends with an error where a fault is
# not survived. Settings are environment variables, or flags of the same name in lower case:
#   KILLS           kills at random moments of each of tokenizing, mining and training (2 processes), and    20
#                   of a whole run_ance.sh. Every third one hits a single process of several, and every third
#                   of the whole run is a SIGTERM to it
#   DISKS           disks of different sizes, all too small, for each of tokenizing, mining and training     6
#   FUZZ_SECONDS    of coverage-guided fuzzing a reader (atheris); 0: none                                   600
#   FUZZ_JOBS       readers that are fuzzed at once                                                          the cores
#   FUZZ_EXAMPLES   damaged files a reader (hypothesis)                                                      2000
set -euo pipefail
unset CDPATH # with it, cd prints where it goes
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
source "$root/commands/arguments.sh"
settings=(KILLS DISKS FUZZ_SECONDS FUZZ_JOBS FUZZ_EXAMPLES)
fail() { printf 'error: %s\n' "$*" >&2; exit 2; }
while (($#)); do
    [[ "$1" != --help && "$1" != -h ]] || { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit 0; }
    take_flag "$@" && shift "$taken"
done
: "${KILLS:=20}" "${DISKS:=6}" "${FUZZ_SECONDS:=600}" "${FUZZ_JOBS:=$(nproc)}" "${FUZZ_EXAMPLES:=2000}"
for name in "${settings[@]}"; do
    [[ "${!name}" =~ ^(0|[1-9][0-9]*)$ ]] || fail "$name is '${!name}'; a whole number is needed"
done
((FUZZ_JOBS > 0)) || fail "FUZZ_JOBS is 0; at least 1 is needed"

bash "$root/commands/install.sh" dev fuzz
python="${ANCE_VENV:-$root/.venv}/bin/python"
cd "$root"

# 1. Kills, full disks, signals, lost processes, damaged files by hypothesis: an hour and a half.
ANCE_KILLS="$KILLS" ANCE_DISKS="$DISKS" ANCE_FUZZ_EXAMPLES="$FUZZ_EXAMPLES" "$python" -m pytest tests/faults --timeout 14400 -q

# 2. Coverage-guided fuzzing: FUZZ_SECONDS a reader.
fuzz() { # NAME
    local log
    log="$(mktemp)"
    if "$python" tests/faults/fuzz.py "$1" "$FUZZ_SECONDS" > "$log" 2>&1; then
        printf '%-40s %s\n' "$1" "$(grep '^Done' "$log")"
        rm -f "$log"
    else
        tail -n 40 "$log" >&2
        printf 'error: %s: a reader raised something else than our own error; see above, all in %s\n' "$1" "$log" >&2
        return 1
    fi
}
status=0
if ((FUZZ_SECONDS > 0)); then
    names="$("$python" tests/faults/fuzz.py)"
    running=0
    for name in $names; do
        ((running < FUZZ_JOBS)) || { wait -n || status=1; ((running--)) || true; }
        fuzz "$name" &
        ((++running))
    done
    while ((running > 0)); do wait -n || status=1; ((running--)) || true; done
fi
exit "$status"
