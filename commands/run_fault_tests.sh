#!/usr/bin/env bash
# The long form of tests/faults: kills every stage again and again, fills disks, and fuzzes every reader for minutes.
#
#     bash commands/run_fault_tests.sh                three to four hours on 2 cores: two and a half of them fuzzing
#     KILLS=5 FUZZ_SECONDS=30 bash commands/run_fault_tests.sh
#
# Prints the kills that each stage survived, and what each reader was fuzzed with; ends with an error where a fault is
# not survived. Settings are environment variables, or flags of the same name in lower case:
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

setting KILLS whole 20 \
    "kills at random moments of each of tokenizing, mining and training (2 processes), and of a whole run_ance.sh. Every third one hits a single process of several, and every third of the whole run is a SIGTERM to it"
setting DISKS whole 6 "disks of different sizes, all too small, for each of tokenizing, mining and training"
setting FUZZ_SECONDS whole 600 "of coverage-guided fuzzing per reader (atheris); 0: none"
setting FUZZ_JOBS count '$(nproc)' "readers that are fuzzed at once (default: as many as cores)"
setting FUZZ_EXAMPLES whole 2000 "damaged files per reader (hypothesis)"

resumes=0
take_arguments "$@"
takes_no_words
settle

run bash "$root/commands/install.sh" dev fuzz
cd "$root"

# 1. Kills, full disks, signals, lost processes, damaged files by hypothesis: an hour and a half.
stage="tests of faults"
ANCE_KILLS="$KILLS" ANCE_DISKS="$DISKS" ANCE_FUZZ_EXAMPLES="$FUZZ_EXAMPLES" run "$python" -m pytest tests/faults --timeout 14400 -q

# 2. Coverage-guided fuzzing: FUZZ_SECONDS a reader.
fuzz() { # NAME
    local log
    log="$(mktemp)"
    if run "$python" tests/faults/fuzz.py "$1" "$FUZZ_SECONDS" > "$log" 2>&1; then
        printf '%-40s %s\n' "$1" "$(grep '^Done' "$log")"
        rm -f "$log"
    else
        tail -n 40 "$log" >&2
        printf 'error: %s: a reader raised something else than our own error; see above, all in %s\n' "$1" "$log" >&2
        return 1
    fi
}
stage="fuzzing"
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
