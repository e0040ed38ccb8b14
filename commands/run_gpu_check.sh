#!/usr/bin/env bash
# Checks a machine with a GPU: runs the tests that need one, then measures what it reaches. By estimate, 9 minutes
# on one H100 at most: it has run on a simulated device only.
#
#     bash commands/run_gpu_check.sh [--out_dir DIR]
#
# OUT_DIR gets gpu_check.md, a page, and gpu_check.json, which evaluate/costs.py --measured_gpu reads. Needs no network,
# no data and no checkpoint. Ends with an error where a test or a stage has failed.
#
# The Python is that of ANCE_VENV (default: .venv) where it has what is needed and sees a GPU, else python3 where that
# does; where neither does and there is an NVIDIA driver, ANCE_VENV is installed. What a Python of your own may lack
# (faiss-gpu, sentence-transformers, flash-attn) is left out, and the page says so.
# Settings are environment variables, or flags of the same name in lower case:
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

setting OUT_DIR text '$root/runs/gpu_check' "results (default: runs/gpu_check)"
setting SHAPES text "base minilm" "encoders that are measured, of base, mid, minilm and tiny; costs.py takes the first one's"
setting TEXTS count 20000 "passages that are encoded"
setting PASSAGES count 1000000 "vectors that are searched"
setting QUERIES count 100000 "queries that they are searched for"
setting TEST_SECONDS count 130 "seconds after which the tests are ended"
setting MOST_SECONDS count 360 "seconds in which the measurements should end"

resumes=0
take_arguments "$@"
takes_no_words
settle
find_gpus
read -ra shapes <<< "$SHAPES"
check="$root/evaluate/benchmarks/gpu_check.py"
export ANCE_FLAGS="" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=true

# 0. The Python: seconds, or the minutes of an installation.
find_python() { # sets `python` to one that can run the check, or says why each cannot
    local candidate reason
    for candidate in "$python" python3; do
        command -v "$candidate" > /dev/null || continue
        reason="$(ANCE_ERRORS="" run "$candidate" "$check" --can_run 2>&1)" && python="$candidate" && return
        printf '%s cannot: %s\n' "$candidate" "$(tail -n 1 <<< "$reason")" >&2
    done
    return 1
}
if ! find_python; then
    ((${#gpus[@]} > 0)) || fail "nvidia-smi lists no GPU either: the check needs one, and its driver"
    run bash "$root/commands/install.sh" dev
    run "$python" "$check" --can_run # says what is missing still
fi
printf 'python: %s\n' "$(command -v "$python")"
make_folder "$OUT_DIR"
OUT_DIR="$(absolute "$OUT_DIR")"
rm -f "$OUT_DIR/tests.xml"

# 1. The tests that need a GPU, or several: 2 minutes.
stage "tests that need a GPU"
cd "$root"
failed=()
run timeout "$TEST_SECONDS" "$python" -m pytest tests/gpu --confcutdir tests/gpu -p no:cacheprovider -q \
    --junitxml "$OUT_DIR/tests.xml" || failed+=("tests")

# 2. The measurements, on one GPU: 6 minutes.
stage "measurements"
((${#gpus[@]} == 0)) || export CUDA_VISIBLE_DEVICES="${gpus[0]}"
tests=()
[[ ! -e "$OUT_DIR/tests.xml" ]] || tests=(--tests "$OUT_DIR/tests.xml")
OMP_NUM_THREADS="$(threads 1)" run timeout $((MOST_SECONDS + 10)) "$python" "$check" --out_dir "$OUT_DIR" \
    --shapes "${shapes[@]}" --texts "$TEXTS" --passages "$PASSAGES" --queries "$QUERIES" \
    --most_seconds "$MOST_SECONDS" ${tests[@]+"${tests[@]}"} || failed+=("measurements")
((${#failed[@]} == 0)) || fail "failed: ${failed[*]}; see above, and what there is in $OUT_DIR"
printf '\n%s\n' "$OUT_DIR/gpu_check.md"
