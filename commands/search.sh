#!/usr/bin/env bash
# Answers a question from a collection with a run's newest checkpoint: rank, score, id and text of the best passages.
#
#     bash commands/search.sh [--flag value]… ["how do I sort a list"]
#
# Without a question it asks for one after another, until an empty line; from a pipe, every line is a question.
# Settings are environment variables, or flags of the same name in lower case:
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

setting OUT_DIR text '$root/runs/demo' "the run, whose checkpoint and collections are searched (default: runs/demo)"
setting COLLECTION text "" \
    "a zero-shot collection of the run, by name, or any folder of token stores, with passages/ inside (default: the training collection)"
setting CHECKPOINT text "" "a folder or a hub name (default: the newest of OUT_DIR)"
setting DATA_DIR text "" "the collection's own files, which the texts are shown from (default: the run's)"
reading_settings "" "auto: read the checkpoint as its own files say; or a published model type (default: of the run's checkpoints its own, else auto)"
setting EMBEDDING_DIR text "" \
    "where the passages' embeddings are found or kept (default: the run's where they fit, else a new folder)"
setting DEPTH whole 10 "passages shown"
setting TEXT_LINES whole 6 "lines shown of a passage; 0: all of it"
setting MAX_QUERY_LENGTH whole 0 "tokens of a question at most; 0: as the collection's own queries"
setting MIXED_PRECISION "0|1" 1 \
    "1: passages that have no embeddings yet are encoded in bfloat16 where the hardware has it, else in float16 (GPU)"
setting EVAL_BATCH_SIZE whole 128 "passages encoded at once"

# What settings are called in the script that gets them, for what it says.
export ANCE_FLAGS="run_dir=--out_dir model_name_or_path=--checkpoint per_gpu_eval_batch_size=--eval_batch_size
    fp16=--mixed_precision"

take_arguments "$@"
settle
[[ -z "$CHECKPOINT" ]] || check_checkpoint
question="${words[*]}"
((${#words[@]} == 0)) || [[ "$question" == *[![:space:]]* ]] || fail "the question is empty"

[[ -d "$OUT_DIR" || (-n "$CHECKPOINT" && -n "$COLLECTION") ]] ||
    fail "OUT_DIR is '$OUT_DIR', which is no folder: name a run of run_ance.sh, or give CHECKPOINT and COLLECTION"

# The environment: minutes the first time, then nothing.
run bash "$root/commands/install.sh"

options=()
((MIXED_PRECISION == 0)) || options+=(--fp16)
reading_flags

# Load, and encode the passages where nobody has: seconds (demo), then a question at a time. (With =, for a question
# may begin with a dash.)
exec "$python" "$root/evaluate/search_collection.py" --run_dir "$OUT_DIR" --collection "$COLLECTION" \
    --data_dir "$DATA_DIR" --model_name_or_path "$CHECKPOINT" "${reading[@]}" \
    --embedding_dir "$EMBEDDING_DIR" --depth "$DEPTH" --text_lines "$TEXT_LINES" \
    --max_query_length "$MAX_QUERY_LENGTH" --per_gpu_eval_batch_size "$EVAL_BATCH_SIZE" \
    ${options[@]+"${options[@]}"} --query="$question"
