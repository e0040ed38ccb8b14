#!/usr/bin/env bash
# Answers a question from a collection with a run's newest checkpoint: rank, score, id and text of the best passages.
#
#     bash commands/search.sh [--flag value]… ["how do I sort a list"]
#
# Without a question it asks for one after another, until an empty line; from a pipe, every line is a question.
# Settings are environment variables, or flags of the same name in lower case:
#   OUT_DIR            the run, whose checkpoint and collections are searched                 runs/demo
#   COLLECTION         a zero-shot collection of the run, by name, or any folder of token     the training collection
#                      stores (passages/ inside)
#   CHECKPOINT         a folder or a hub name                                                 the newest of OUT_DIR
#   DATA_DIR           the collection's own files, which the texts are shown from             the run's
#   MODEL_TYPE         rdot_nll | rdot_nll_multi_chunk | rdot_nll_condenser                   the run's
#   POOLING            cls | mean: of all tokens, as many models of others are meant          cls
#   NORMALIZE          1: vectors of length 1, so that scores are cosines                     0
#   EMBEDDING_DIR      where the passages' embeddings are found or kept        the run's where they fit, else a new one
#   DEPTH              passages shown                                                         10
#   TEXT_LINES         lines shown of a passage; 0: all of it                                 6
#   MAX_QUERY_LENGTH   tokens of a question at most; 0: as the collection's own queries       0
#   MIXED_PRECISION    1: passages that have no embeddings yet are encoded in bfloat16        1
#                      where the hardware has it, else in float16 (GPU)
#   EVAL_BATCH_SIZE    passages encoded at once                                               128
set -euo pipefail
unset CDPATH # with it, cd prints where it goes
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
source "$root/commands/arguments.sh"
settings=(OUT_DIR COLLECTION CHECKPOINT DATA_DIR MODEL_TYPE POOLING NORMALIZE EMBEDDING_DIR DEPTH TEXT_LINES
    MAX_QUERY_LENGTH MIXED_PRECISION EVAL_BATCH_SIZE)

# What settings are called in the script that gets them, for what it says.
export ANCE_FLAGS="run_dir=--out_dir model_name_or_path=--checkpoint per_gpu_eval_batch_size=--eval_batch_size
    fp16=--mixed_precision"

fail() { printf 'error: %s\n' "$*" >&2; exit 2; }
words=()
while (($#)); do
    case "$1" in
        -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit 0 ;;
        --) words+=("${@:2}") && break ;;
        --*) take_flag "$@" && shift "$taken" ;;
        *) words+=("$1") && shift ;;
    esac
done
question="${words[*]}"
((${#words[@]} == 0)) || [[ "$question" == *[![:space:]]* ]] || fail "the question is empty"

: "${OUT_DIR:=$root/runs/demo}" "${COLLECTION:=}" "${CHECKPOINT:=}" "${DATA_DIR:=}" "${MODEL_TYPE:=}"
: "${EMBEDDING_DIR:=}" "${DEPTH:=10}" "${TEXT_LINES:=6}" "${MAX_QUERY_LENGTH:=0}"
: "${POOLING:=cls}" "${NORMALIZE:=0}" "${MIXED_PRECISION:=1}" "${EVAL_BATCH_SIZE:=128}"
# A mistake shows now, not after minutes.
[[ -z "$MODEL_TYPE" ]] || one_of MODEL_TYPE "${MODEL_TYPES[@]}"
[[ -z "$CHECKPOINT" ]] || check_checkpoint
for name in MIXED_PRECISION NORMALIZE; do
    one_of "$name" 0 1
done
for name in DEPTH TEXT_LINES MAX_QUERY_LENGTH EVAL_BATCH_SIZE; do
    [[ "${!name}" =~ ^(0|[1-9][0-9]*)$ ]] || fail "$name is '${!name}'; a whole number is needed"
done

# The environment: minutes the first time, then nothing.
bash "$root/commands/install.sh"
python="${ANCE_VENV:-$root/.venv}/bin/python"

options=()
((MIXED_PRECISION == 0)) || options+=(--fp16)
((NORMALIZE == 0)) || options+=(--normalize)

# Load, and encode the passages where nobody has: seconds (demo), then a question at a time. (With =, for a question
# may begin with a dash.)
exec "$python" "$root/evaluate/search_collection.py" --run_dir "$OUT_DIR" --collection "$COLLECTION" \
    --data_dir "$DATA_DIR" --model_name_or_path "$CHECKPOINT" --model_type "$MODEL_TYPE" \
    --embedding_dir "$EMBEDDING_DIR" --depth "$DEPTH" --text_lines "$TEXT_LINES" \
    --max_query_length "$MAX_QUERY_LENGTH" --per_gpu_eval_batch_size "$EVAL_BATCH_SIZE" \
    --pooling "$POOLING" ${options[@]+"${options[@]}"} --query="$question"
