#!/usr/bin/env bash
# The long form of tests/faults: kills every stage again and again, and fuzzes every reader for minutes.
#
#     bash commands/run_fault_tests.sh                five to six hours: 25 readers of 10 minutes, 3 stages of 20 kills
#     KILLS=5 FUZZ_SECONDS=30 bash commands/run_fault_tests.sh
#
# Prints the kills that each stage survived, and what each reader was fuzzed with; ends with an error at the first
# fault that is not survived. Settings are environment variables:
#   KILLS           SIGKILLs at random moments of each of tokenizing, mining and training (2 processes)      20
#   FUZZ_SECONDS    of coverage-guided fuzzing a reader (atheris); 0: none                                   600
#   FUZZ_EXAMPLES   damaged files a reader (hypothesis)                                                      2000
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
[[ "${1:-}" != --help && "${1:-}" != -h ]] || { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit 0; }
fail() { printf 'error: %s\n' "$*" >&2; exit 2; }
: "${KILLS:=20}" "${FUZZ_SECONDS:=600}" "${FUZZ_EXAMPLES:=2000}"
for name in KILLS FUZZ_SECONDS FUZZ_EXAMPLES; do
    [[ "${!name}" =~ ^(0|[1-9][0-9]*)$ ]] || fail "$name is '${!name}'; a whole number is needed"
done
(($# == 0)) || fail "unknown argument '$1'; see --help"

bash "$root/commands/install.sh" dev fuzz
python="${ANCE_VENV:-$root/.venv}/bin/python"
cd "$root"

# 1. Kills, signals, lost processes, damaged files by hypothesis: half an hour.
ANCE_KILLS="$KILLS" ANCE_FUZZ_EXAMPLES="$FUZZ_EXAMPLES" "$python" -m pytest tests/faults --timeout 14400 -q

# 2. Coverage-guided fuzzing: FUZZ_SECONDS a reader, one after another.
((FUZZ_SECONDS > 0)) || exit 0
"$python" tests/faults/fuzz.py | while read -r name; do
    log="$(mktemp)"
    if "$python" tests/faults/fuzz.py "$name" "$FUZZ_SECONDS" > "$log" 2>&1; then
        printf '%-32s %s\n' "$name" "$(grep '^Done' "$log")"
    else
        tail -n 40 "$log" >&2
        fail "$name: a reader raised something else than our own error; see above"
    fi
    rm -f "$log"
done
