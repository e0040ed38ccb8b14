#!/usr/bin/env bash
# Runs every benchmark and writes their results and one page of tables. The machine must have nothing else to do.
#
#     bash commands/run_benchmarks.sh [--out_dir DIR]
#     SHAPE=base TRIPLETS=16 bash commands/run_benchmarks.sh
#     bash commands/run_benchmarks.sh quality
#
# OUT_DIR gets a JSON file of each benchmark, benchmarks.json with all of them, and benchmarks.md. All is measured anew
# at every run, in float32 and, where the hardware has it, in mixed precision; only the collection, which is the
# demo's, is kept. With the word quality it measures instead how good models are that ours and sentence-transformers
# train in the same time: hours, in which run after run is kept, so that the same command goes on where it stopped.
# Settings are environment variables, or flags of the same name in lower case:
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

setting OUT_DIR text '$root/runs/benchmarks' "results, collection and token stores (default: runs/benchmarks)"
setting SHAPE "minilm|mid|base|tiny" minilm "the encoder's layers and width"
setting TRIPLETS count 64 "triplets per step and process"
setting ROUNDS count 7 "turns of each contender that count"
setting MINING_ROUNDS count 3 "the same of mining, its growth, search and reading, which take longer"
setting GROWTH_PASSAGES text "10000 100000" "passages of the collections that show how mining grows"
setting SEARCH_PASSAGES count 1000000 "passages of the search benchmark"
setting READING_PAIRS count 200000 "pairs of the benchmark of reading training data"
setting MAX_SEQ_LENGTH count 128 "tokens per passage"
setting MAX_QUERY_LENGTH count 64 "tokens per query"
setting CONTENDERS text "sentence-transformers erm dro-greedy idro published" "contenders of the training benchmark"

setting QUALITY_CONTENDERS text "" "contenders of the benchmark of quality (default: all)"
setting QUALITY_BUDGETS text "seconds texts" "what its contenders have alike"
setting QUALITY_SEEDS count 3 "its seeds"
setting QUALITY_RATES text "2e-5 5e-5 1e-4" "learning rates that each of its contenders tries with the first seed"
setting QUALITY_STEPS count 100 "its training steps of sentence-transformers"
setting QUALITY_EPISODES count 1 "its rounds of mining and training of ours"

resumes=0 # all is measured anew, but for quality
take_arguments "$@"
quality=0
[[ "${words[*]-}" != quality ]] || quality=1 words=() resumes=1
takes_no_words
settle
find_gpus
read -ra contenders <<< "$CONTENDERS"
read -ra growth_passages <<< "$GROWTH_PASSAGES"
for count in "${growth_passages[@]}"; do
    [[ "$count" =~ ^[1-9][0-9]*$ ]] || fail "GROWTH_PASSAGES names '$count', which is no whole number"
done
for contender in "${contenders[@]}"; do
    [[ "$contender" =~ ^(sentence-transformers|erm|dro-greedy|idro|published)$ ]] || fail "CONTENDERS names '$contender', which there is not"
done

# 0. The environment: minutes the first time, then nothing.
run bash "$root/commands/install.sh" dev demo
checkpoint="$(demo_checkpoint)"
precisions=(false)
if ((${#gpus[@]} > 0)) || grep -qE 'amx_bf16|avx512_bf16' /proc/cpuinfo; then precisions+=(true); fi
export TOKENIZERS_PARALLELISM=true

if ((quality)); then
    stage "collection of the benchmark of quality"
    collection="$OUT_DIR/quality/collection"
    [[ -f "$collection/msmarco/qrels.dev.small.tsv" && -f "$collection/python-docs/qrels/test.tsv" ]] ||
        run "$python" "$root/data/demo_data.py" --dev_queries 1500 --msmarco_dir "$collection/msmarco" \
            --beir_dir "$collection/python-docs"
    stage "quality: hours"
    read -ra budgets <<< "$QUALITY_BUDGETS"
    read -ra rates <<< "$QUALITY_RATES"
    read -ra contenders <<< "$QUALITY_CONTENDERS"
    ((${#contenders[@]} == 0)) || contenders=(--contenders "${contenders[@]}")
    ANCE_FLAGS="contenders=--quality_contenders budgets=--quality_budgets seeds=--quality_seeds rates=--quality_rates
        steps=--quality_steps episodes=--quality_episodes" \
        CUDA_VISIBLE_DEVICES="${gpus[0]-}" OMP_NUM_THREADS="$(threads 1)" \
        run "$python" "$root/evaluate/benchmarks/quality.py" --out_dir "$OUT_DIR" --fp16 "${precisions[-1]}" \
        --collection_dir "$collection/msmarco" --zero_shot_dir "$collection/python-docs" --checkpoint "$checkpoint" \
        --seeds "$QUALITY_SEEDS" --budgets "${budgets[@]}" --rates "${rates[@]}" --steps "$QUALITY_STEPS" \
        --episodes "$QUALITY_EPISODES" --max_seq_length "$MAX_SEQ_LENGTH" --max_query_length "$MAX_QUERY_LENGTH" \
        ${contenders[@]+"${contenders[@]}"}
    exit
fi
export ANCE_FLAGS=steps=--rounds # what scripts call settings, for what they say; below where it is otherwise

# 1. The demo's collection and its token stores: a minute.
stage "collection: the documentation of installed Python libraries"
[[ -f "$OUT_DIR/collection/msmarco/qrels.dev.small.tsv" ]] ||
    run "$python" "$root/data/demo_data.py" --msmarco_dir "$OUT_DIR/collection/msmarco" \
        --beir_dir "$OUT_DIR/collection/python-docs"
stores="$OUT_DIR/preprocessed-$MAX_SEQ_LENGTH-$MAX_QUERY_LENGTH"
run "$python" "$root/data/msmarco_data.py" --data_dir "$OUT_DIR/collection/msmarco" --out_data_dir "$stores" \
    --model_type auto --model_name_or_path "$checkpoint" \
    --max_seq_length "$MAX_SEQ_LENGTH" --max_query_length "$MAX_QUERY_LENGTH"

# 2. Texts to tokens: ours and the library datasets': minutes.
stage "tokenizing"
run "$python" "$root/evaluate/benchmarks/tokenizing.py" --out_dir "$OUT_DIR" \
    --collection_dir "$OUT_DIR/collection/msmarco" --checkpoint "$checkpoint" \
    --rounds "$ROUNDS" --max_seq_length "$MAX_SEQ_LENGTH"

for mixed in "${precisions[@]}"; do
    # 3. A collection's vectors: ours and sentence-transformers': minutes.
    stage "encoding, mixed precision: $mixed"
    CUDA_VISIBLE_DEVICES="${gpus[0]-}" OMP_NUM_THREADS="$(threads 1)" \
        run "$python" "$root/evaluate/benchmarks/encoding.py" --out_dir "$OUT_DIR" --fp16 "$mixed" \
        --collection_dir "$OUT_DIR/collection/msmarco" --checkpoint "$checkpoint" \
        --rounds "$ROUNDS" --max_seq_length "$MAX_SEQ_LENGTH"

    # 4. Training steps of ours, of sentence-transformers and as published, by first tokens and by means: minutes.
    for reading in cls mean; do
        stage "training, reading: $reading, mixed precision: $mixed"
        CUDA_VISIBLE_DEVICES="${gpus[0]-}" OMP_NUM_THREADS="$(threads 1)" \
            run "$python" "$root/evaluate/benchmarks/training.py" --out_dir "$OUT_DIR" --fp16 "$mixed" \
            --collection_dir "$OUT_DIR/collection/msmarco" --data_dir "$stores" --checkpoint "$checkpoint" \
            --reading "$reading" --shape "$SHAPE" --triplets "$TRIPLETS" --rounds "$ROUNDS" \
            --max_seq_length "$MAX_SEQ_LENGTH" --max_query_length "$MAX_QUERY_LENGTH" --contenders "${contenders[@]}"
    done

    # 5. What the clusters' gradients cost, in one process and in two (where each has a GPU, or none): minutes.
    for processes in 1 2; do
        ((${#gpus[@]} == 0 || processes <= $(processes_on "${gpus[@]}"))) || continue
        stage "group gradients, mixed precision: $mixed, processes: $processes"
        launcher=()
        ((processes == 1)) || launcher=(-m torch.distributed.run --standalone --nproc_per_node "$processes")
        OMP_NUM_THREADS="$(threads "$processes")" run "$python" ${launcher[@]+"${launcher[@]}"} \
            "$root/evaluate/benchmarks/group_gradients.py" --out_dir "$OUT_DIR" --fp16 "$mixed" \
            --shape "$SHAPE" --triplets "$TRIPLETS" --steps "$ROUNDS"
    done

    # 6. An episode mined by ours and by sentence-transformers, each as a process of its own: minutes.
    stage "mining, mixed precision: $mixed"
    ANCE_FLAGS=rounds=--mining_rounds CUDA_VISIBLE_DEVICES="${gpus[0]-}" OMP_NUM_THREADS="$(threads 1)" \
        run "$python" "$root/evaluate/benchmarks/mining.py" --out_dir "$OUT_DIR" --fp16 "$mixed" \
        --collection_dir "$OUT_DIR/collection/msmarco" --data_dir "$stores" --checkpoint "$checkpoint" \
        --rounds "$MINING_ROUNDS" --max_seq_length "$MAX_SEQ_LENGTH" --max_query_length "$MAX_QUERY_LENGTH"
done

# 7. Exact search, ours and faiss's: ten minutes.
stage "search"
ANCE_FLAGS="rounds=--mining_rounds passages=--search_passages" \
    CUDA_VISIBLE_DEVICES="${gpus[0]-}" OMP_NUM_THREADS="$(threads 1)" \
    run "$python" "$root/evaluate/benchmarks/search.py" --out_dir "$OUT_DIR" --passages "$SEARCH_PASSAGES" \
    --rounds "$MINING_ROUNDS"

# 8. How mining grows with the collection: minutes.
stage "growth of mining"
ANCE_FLAGS="rounds=--mining_rounds passages=--growth_passages" \
    CUDA_VISIBLE_DEVICES="${gpus[0]-}" OMP_NUM_THREADS="$(threads 1)" \
    run "$python" "$root/evaluate/benchmarks/growth.py" --out_dir "$OUT_DIR" --checkpoint "$checkpoint" \
    --rounds "$MINING_ROUNDS" --passages "${growth_passages[@]}"

# 9. Training data to a collection, ours and plain Python's: a minute; ten million pairs ten, and 15 GB of TMPDIR.
stage "reading training data"
ANCE_FLAGS="rounds=--mining_rounds pairs=--reading_pairs" \
    run "$python" "$root/evaluate/benchmarks/reading.py" --out_dir "$OUT_DIR" --pairs "$READING_PAIRS" \
    --rounds "$MINING_ROUNDS"

# 10. How far sketched gradients are from exact ones: a minute.
stage "sketch errors"
run "$python" "$root/evaluate/benchmarks/sketch_error.py" --out_dir "$OUT_DIR" --shape "$SHAPE"

# 11. The tables: a second.
stage "results"
run "$python" "$root/evaluate/benchmarks/table.py" --out_dir "$OUT_DIR"
printf '\n%s\n' "$OUT_DIR/benchmarks.md"
