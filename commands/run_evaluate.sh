#!/usr/bin/env bash
# Evaluates a checkpoint on collections in BEIR's layout (corpus.jsonl, queries.jsonl, qrels/test.tsv).
#
#     bash commands/run_evaluate.sh [--flag value]… COLLECTION…
#     CHECKPOINT=runs/demo/saved_models/checkpoint-80 bash commands/run_evaluate.sh scifact arguana data/my-set
#
# A collection is a folder, or the name of one of BEIR's 18 sets, which is fetched into BEIR_DIR where it is not there
# yet. A folder without corpus.jsonl whose folders have one (CQADupStack) is evaluated in these parts, and their mean
# counts. Prints a line of metrics per collection and a table at the end, with BM25 and whether the difference could be
# chance; metrics.json, per_query.json and a TREC run file go to OUT_DIR/COLLECTION. Settings are environment
# variables, or flags of the same name in lower case:
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

setting CHECKPOINT text '$(newest_of_the_demo)' \
    "a folder or a hub name (default: the newest of runs/demo, else all-MiniLM-L6-v2)"
setting OUT_DIR text "" \
    "results and embeddings (default: runs/evaluate/NAME, where NAME is RUN-checkpoint-80 for the checkpoint RUN/saved_models/checkpoint-80, PARENT-FOLDER for another folder, AUTHOR-MODEL for a hub name)"
setting BEIR_DIR text '$root/runs/beir' "where BEIR's sets are fetched to (default: runs/beir)"
reading_settings
setting MAX_SEQ_LENGTH whole 0 "tokens per passage; 0: as the checkpoint's own files say, else as the collection's published evaluation (data/beir_sets.py)"
setting MAX_QUERY_LENGTH whole 0 "tokens per query; 0: likewise"
setting SPLIT text test "which qrels file"
setting BM25 "0|1" 1 "0: without BM25"
setting PROCESSES count '$(processes_on "${gpus[@]-}")' "processes on this machine (default: as many as GPUs, else 1)"
setting MIXED_PRECISION "0|1" 1 "1: bfloat16 where the hardware has it, else float16 (GPU)"
setting EVAL_BATCH_SIZE count 128 "texts that a process encodes at once"

# What settings are called in the scripts that get them, for what these say.
export ANCE_FLAGS="model_name_or_path=--checkpoint out_data_dir=--out_dir embedding_dir=--out_dir
    per_gpu_eval_batch_size=--eval_batch_size fp16=--mixed_precision no_cuda=CUDA_VISIBLE_DEVICES="

newest_of_the_demo() {
    { ls -d "$root"/runs/demo/saved_models/checkpoint-* 2> /dev/null || true; } | sort -V | tail -n 1
}
name_of() { # CHECKPOINT: what tells it from those of other runs
    local path="$1"
    if [[ -d "$path" ]]; then
        path="$(absolute "$path")"
        [[ "$path" != */saved_models/* ]] || path="${path%/saved_models/*}/$(basename "$path")"
        path="$(basename "$(dirname "$path")")/$(basename "$path")"
    fi
    printf '%s\n' "${path//[\/,=]/-}" # compare_runs.py reads NAME=FILE,FILE
}
take_arguments "$@"
find_gpus
settle
[[ -z "$CHECKPOINT" ]] || check_checkpoint
collections=(${words[@]+"${words[@]}"})
((${#collections[@]})) || fail "name at least one collection, a folder in BEIR's layout or a name; see --help"
folders=() absent=()
for collection in "${collections[@]}"; do
    folder="$BEIR_DIR/$collection"
    if [[ -d "$collection" ]]; then
        folder="$(absolute "$collection")"
    elif [[ ! "$collection" =~ ^[a-z0-9-]+$ ]]; then
        fail "'$collection' is no folder, and no name of one of BEIR's sets"
    elif [[ ! -d "$folder" ]]; then
        absent+=("$collection")
    fi
    name="$(basename "$folder")"
    [[ "$name" != *[,=]* ]] || fail "'$folder' has a comma or an equals sign in its name; rename it"
    for other in ${folders[@]+"${folders[@]}"}; do
        [[ "$(basename "$other")" != "$name" ]] ||
            fail "two collections are named '$name': run this once for each, with an OUT_DIR of its own"
    done
    [[ ! -f "$folder/corpus.jsonl" || -f "$folder/qrels/$SPLIT.tsv" || -f "$folder/qrels/$SPLIT.tsv.gz" ]] ||
        fail "'$folder' has no judgments of the split '$SPLIT': qrels/$SPLIT.tsv"
    folders+=("$folder")
done

# The environment: minutes the first time, then nothing; with the demo's checkpoint where no other is named.
extras=()
[[ -n "$CHECKPOINT" ]] || extras=(demo)
((${#absent[@]} == 0)) || extras+=(beir)
run bash "$root/commands/install.sh" ${extras[@]+"${extras[@]}"}
: "${CHECKPOINT:=$(demo_checkpoint)}"

run_name="$(name_of "$CHECKPOINT")" # with what is read otherwise than the defaults have it
[[ "$MODEL_TYPE" == auto ]] || run_name+="-$MODEL_TYPE"
[[ "$POOLING" == auto ]] || run_name+="-$POOLING"
[[ "$NORMALIZE" != 0 ]] || run_name+="-not-normalized"
[[ "$NORMALIZE" != 1 ]] || run_name+="-normalized"
[[ "$LOWERCASE" == auto ]] || run_name+="-lowercase-$LOWERCASE"
[[ "$QUERY_PROMPT$PASSAGE_PROMPT" == autoauto ]] ||
    run_name+="-prompts-$(printf '%s\n' "$QUERY_PROMPT" "$PASSAGE_PROMPT" | cksum | cut -d ' ' -f 1)"
((MAX_SEQ_LENGTH == 0)) || run_name+="-$MAX_SEQ_LENGTH-tokens"
((MAX_QUERY_LENGTH == 0)) || run_name+="-$MAX_QUERY_LENGTH-a-query"
: "${OUT_DIR:=$root/runs/evaluate/$run_name}"
precision=()
((MIXED_PRECISION == 0)) || precision=(--fp16)
OMP_NUM_THREADS="$(threads "$PROCESSES")" && export OMP_NUM_THREADS

reading_flags

ANCE_ERRORS="$(mktemp)"

# The sets that are named and not there: seconds to an hour each.
for name in ${absent[@]+"${absent[@]}"}; do
    stage="fetch $name"
    run "$python" "$root/data/fetch_beir.py" --name "$name" --out_dir "$BEIR_DIR"
done

launch() { run "${torchrun[@]}" "$PROCESSES" "$@"; } # SCRIPT ARGUMENT…: in all processes
evaluate() { # FOLDER OUT
    # Token stores of the collection: seconds to minutes.
    run "$python" "$root/data/beir_data.py" --data_dir "$1" --out_data_dir "$2/preprocessed" --split "$SPLIT" \
        "${reading[@]}" --model_name_or_path "$CHECKPOINT" \
        --max_seq_length "$MAX_SEQ_LENGTH" --max_query_length "$MAX_QUERY_LENGTH"
    # Encode, search, measure: a minute for a thousand passages on two cores.
    launch "$root/evaluate/evaluate_beir.py" \
        "${reading[@]}" --model_name_or_path "$CHECKPOINT" --data_dir "$2/preprocessed" \
        --run_name "$run_name" --split "$SPLIT" --collection "$(basename "$1")" --out_dir "$2" --embedding_dir "$2/embeddings" \
        --per_gpu_eval_batch_size "$EVAL_BATCH_SIZE" ${precision[@]+"${precision[@]}"}
    # The baseline: seconds to minutes.
    ((BM25)) || return 0
    run "$python" "$root/evaluate/bm25.py" --data_dir "$1" --split "$SPLIT" \
        --collection "$(basename "$1")" --out_dir "$2/bm25"
    [[ ! -f "$2/bm25/left_out.txt" ]] || left_out+=("$2/bm25/left_out.txt")
}
mean_of_parts() { # COLLECTION OUT METRICS… [--check_only]
    run "$python" "$root/evaluate/mean_of_parts.py" --collection "$1" --out_dir "$2" --parts "${@:3}"
}
parts_of() { # FOLDER: the folders of its parts, where it has no collection of its own
    [[ ! -f "$1/corpus.jsonl" && ! -f "$1/corpus.jsonl.gz" ]] || return 0
    local path
    for path in "$1"/*/corpus.jsonl*; do [[ ! -f "$path" ]] || printf '%s\n' "${path%/*}"; done | uniq
}
of_parts() { # FOLDER [/bm25]: where the parts' metrics are
    parts_of "$1" | while read -r part; do
        printf '%s\n' "$OUT_DIR/$(basename "$1")/$(basename "$part")${2:-}/metrics.json"
    done
}
for folder in "${folders[@]}"; do # a part that is missing shows now, not after hours
    mapfile -t outs < <(of_parts "$folder")
    ((${#outs[@]} == 0)) || mean_of_parts "$(basename "$folder")" "$OUT_DIR" "${outs[@]}" --check_only
done
all_there() { local path; for path in "$@"; do [[ -f "$path" ]] || return 1; done; } # FILE…
own="" baseline="" measured=0 left_out=()
for folder in "${folders[@]}"; do
    name="$(basename "$folder")" && stage="evaluate $name"
    mapfile -t parts < <(parts_of "$folder")
    if ((${#parts[@]} == 0)); then
        evaluate "$folder" "$OUT_DIR/$name"
    else
        for part in "${parts[@]}"; do evaluate "$part" "$OUT_DIR/$name/$(basename "$part")"; done
        mapfile -t outs < <(of_parts "$folder")
        mean_of_parts "$name" "$OUT_DIR/$name" "${outs[@]}"
        mapfile -t outs < <(of_parts "$folder" /bm25)
        if ((BM25)); then
            rm -f "$OUT_DIR/$name/bm25/metrics.json" # of an earlier run
            ! all_there "${outs[@]}" || mean_of_parts "$name" "$OUT_DIR/$name/bm25" "${outs[@]}"
        fi
    fi
    own+=",$name/metrics.json"
    # Where BM25 is left out (evaluate/bm25.py says why), its place in the table is empty; there may be none at all.
    if ((BM25 == 0)) || [[ ! -f "$OUT_DIR/$name/bm25/metrics.json" ]]; then
        baseline+=",-"
    else
        baseline+=",$name/bm25/metrics.json" measured=1
    fi
done

# The table: seconds.
runs=("$run_name=${own#,}")
((measured == 0)) || runs=("BM25=${baseline#,}" "${runs[@]}")
echo
in_results() { cd "$OUT_DIR" && exec "$python" "$@"; } # the table names metrics by their paths from there
run in_results "$root/evaluate/compare_runs.py" --out_dir . --runs "${runs[@]}"
for path in ${left_out[@]+"${left_out[@]}"}; do printf '\nnote: %s\n' "$(< "$path")"; done
printf '\nmetrics      %s (comparison.md; values per query and run files beside each metrics.json)\n' "$OUT_DIR"
