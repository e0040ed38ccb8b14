#!/usr/bin/env bash
# Trains a dense retriever with ANCE and iDRO: tokenize, then mine and train in turn, then evaluate. (To mine beside
# training rather than before it: commands/run_ance_async.sh.)
#
#     bash commands/run_ance.sh                        the demo: Python documentation, minutes on 2 cores
#     bash commands/run_ance.sh --data_dir my-pairs.jsonl --out_dir runs/mine --checkpoint sentence-transformers/all-MiniLM-L6-v2
#     DATA_DIR=msmarco OUT_DIR=runs/base CHECKPOINT=google-bert/bert-base-uncased bash commands/run_ance.sh
#     bash commands/run_ance.sh --data_dir msmarco --out_dir runs/base --checkpoint google-bert/bert-base-uncased
#
# Every setting below is an environment variable, or a flag of the same name in lower case; its default stands in
# brackets. Without DATA_DIR the demo collection is built and trained on, with small settings of its own. Settings of
# mining and training that are auto are chosen by the number of training queries and by the encoder, said, and held to:
# with 400,000 queries and a checkpoint that has no reading of its own they are the published run's (docs/running.md).
# Any of them can be given, and the others are chosen around it. Run again, the script goes on where it stopped, and
# skips what is done. A setting that files in OUT_DIR follow from can no longer be changed there. Data and the initial
# checkpoint count by their content: folders may be moved. Data that were corrected are tokenized again until the first
# episode is mined. The other settings can change at any time. One of them changes training: a step takes BATCH_SIZE x
# ACCUMULATION samples from each of PROCESSES. With another number of them, training goes on at the same place in the
# data, in steps of another size.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source "$root/commands/ance_settings.sh"
source "$root/commands/ance_stages.sh"

take_arguments "$@"
takes_no_words
find_gpus
[[ -n "${DATA_DIR:-}" ]] || demo=1
settle OUT_DIR
go_on_as_noted
settle
check_settings
((demo)) || name_zero_shot_collections # the demo makes its own first

make_folder "$OUT_DIR" && make_folder "${PUBLIC_ANN_DATA_DIR:-$OUT_DIR}"

# 0. The environment: minutes the first time, then nothing.
extras=()
((demo == 0)) || extras=(demo)
((demo)) || ! needs_data_extra || extras=(data)
run bash "$root/commands/install.sh" ${extras[@]+"${extras[@]}"}

# What everything below is given.
: "${CHECKPOINT:=$(demo_checkpoint)}"
OUT_DIR="$(absolute "$OUT_DIR")"
[[ -z "$PUBLIC_ANN_DATA_DIR" ]] || PUBLIC_ANN_DATA_DIR="$(absolute "$PUBLIC_ANN_DATA_DIR")"
[[ ! -d "$CHECKPOINT" ]] || CHECKPOINT="$(absolute "$CHECKPOINT")"
preprocessed="$OUT_DIR/preprocessed" ann_data="$OUT_DIR/ann_data" models="$OUT_DIR/saved_models" results="$OUT_DIR/results"
launcher=("${torchrun[@]}" "$PROCESSES")
[[ -z "$LAUNCHER" ]] || read -ra launcher <<< "$LAUNCHER"
OMP_NUM_THREADS="$(threads $((PROCESSES > 1 + ASYNC ? PROCESSES : 1 + ASYNC)))" # as many processes are at work at once
export OMP_NUM_THREADS TOKENIZERS_PARALLELISM=true
lock_folder "$OUT_DIR"

# 1. The demo's collection: half a minute.
if ((demo)); then
    stage "demo collection: the documentation of installed Python libraries"
    [[ -f "$DATA_DIR/qrels.dev.small.tsv" && -f "$OUT_DIR/collection/python-docs/qrels/test.tsv" ]] ||
        run "$python" "$root/data/demo_data.py" --msmarco_dir "$DATA_DIR" --beir_dir "$OUT_DIR/collection/python-docs"
fi
((demo == 0)) || name_zero_shot_collections
[[ ! -d "$DATA_DIR" ]] || DATA_DIR="$(absolute "$DATA_DIR")"
hold_to_reading
lengths=(--max_seq_length "$MAX_SEQ_LENGTH" --max_query_length "$MAX_QUERY_LENGTH")
precision=() group=1
((MIXED_PRECISION == 0)) || precision=(--fp16)
[[ "$OBJECTIVE" != erm ]] || group=0

# 2. The training data, whatever their layout, as one collection: a minute for two million pairs. The demo's are one.
# shellcheck disable=SC2034 # DATA_FROM is noted with the places
DATA_FROM="$DATA_DIR" TEST=0
if ((demo)); then
    LAYOUT=msmarco
else
    stage "read $DATA_DIR"
    import_data
fi
own_test=()
((TEST == 0)) || own_test=(--test)
hold_to_settings

# 3. Token stores of the training collection and of the zero-shot ones: seconds (demo), half an hour (MS MARCO).
stage "tokenize $DATA_DIR"
if [[ "$LAYOUT" == msmarco ]]; then
    tokenize msmarco_data.py "$DATA_DIR" "$preprocessed" "${lengths[@]}" --data_type "$DATA_TYPE"
else
    splits=(train dev)
    ((TEST == 0)) || splits+=(test)
    tokenize beir_data.py "$DATA_DIR" "$preprocessed" "${lengths[@]}" --split "${splits[@]}"
fi
zero_shot_stores=() zero_shot_lengths=() # of published model types: those of the published evaluation
[[ "$MODEL_TYPE" != auto ]] || zero_shot_lengths=("${lengths[@]}")
for name in ${zero_shot_names[@]+"${zero_shot_names[@]}"}; do
    stage "tokenize ${zero_shot[$name]}"
    tokenize beir_data.py "${zero_shot[$name]}" "$OUT_DIR/zero_shot/$name" ${zero_shot_lengths[@]+"${zero_shot_lengths[@]}"}
    zero_shot_stores+=("$OUT_DIR/zero_shot/$name")
done
note_places

# What mining and training were not told: two seconds.
stage "settings of mining and training"
choose_settings
hold_to_choice
warn_of_steps
grouping=(--cluster_query --cluster_centroids "$CLUSTERS") n_groups="$CLUSTERS"
[[ -z "$groups_file" ]] || grouping=(--groups_file "$groups_file") n_groups=0 # as many as are there

# 4. Encode everything with the newest checkpoint, measure it on the dev queries and the zero-shot collections, cluster
# the queries, mine negatives: a minute (demo). What that and training take on MS MARCO, evaluate/costs.py computes.
mine=("$root/drivers/run_ann_data_gen.py" "${reading[@]}" "${lengths[@]}" ${precision[@]+"${precision[@]}"}
    --training_dir "$models" --init_model_dir "$CHECKPOINT" --data_dir "$preprocessed"
    --output_dir "$ann_data" --result_dir "$results" --public_ann_data_dir "$PUBLIC_ANN_DATA_DIR"
    --embedding_dtype "$EMBEDDING_DTYPE" --index_factory "$INDEX_FACTORY" --index_parameters "$INDEX_PARAMETERS"
    --per_gpu_eval_batch_size "$EVAL_BATCH_SIZE" --topk_training "$TOPK" --negative_sample "$NEGATIVES"
    --ann_chunk_factor 5 --negatives_a_query "$NEGATIVES_A_QUERY" --queries_together "$QUERIES_TOGETHER"
    --group "$group" "${grouping[@]}" --seed "$MINING_SEED")
((GIVEN_NEGATIVES == 0)) || mine+=(--given_negatives)
[[ "$SKIP_RANKS" == off ]] || mine+=(--skip_ranks "$SKIP_RANKS")
[[ "$MAX_RELATIVE_SCORE" == off ]] || mine+=(--max_relative_score "$MAX_RELATIVE_SCORE")
[[ "$MIN_MARGIN" == off ]] || mine+=(--min_margin "$MIN_MARGIN")
((${#zero_shot_stores[@]} == 0)) || mine+=(--zero_shot_dirs "${zero_shot_stores[@]}")

# 5. Train on them: minutes (demo).
train=("$root/drivers/run_ann.py" "${reading[@]}" "${lengths[@]}" ${precision[@]+"${precision[@]}"}
    --model_size "$MODEL_SIZE" --training_dir "$models"
    --output_dir "$models" --init_model_dir "$CHECKPOINT" --data_dir "$preprocessed" --ann_dir "$ann_data"
    --result_dir "$results" --per_gpu_train_batch_size "$BATCH_SIZE" --gradient_accumulation_steps "$ACCUMULATION"
    --loss "$LOSS" --optimizer "$OPTIMIZER" --learning_rate "$LEARNING_RATE" --warmup_steps "$WARMUP_STEPS"
    --group "$group" --dro_type "${OBJECTIVE/erm/idro}" --absent "$ABSENT" --n_groups "$n_groups"
    --alpha "$ALPHA" --ema "$EMA" --rho "$RHO" --eps "$EPS"
    --idro_layers "$IDRO_LAYERS" --idro_sketch_dim "$IDRO_SKETCH_DIM"
    --logging_steps 10 --save_steps "$SAVE_STEPS" --save_total_limit "$SAVE_TOTAL_LIMIT"
    --log_dir "$OUT_DIR/logs" --seed "$SEED")
[[ "$ATTENTION_DROPOUT" == auto ]] || train+=(--attention_dropout "$ATTENTION_DROPOUT")
((NORMALIZE_WEIGHTS == 0)) || train+=(--normalize_weights)
((GRADIENT_CHECKPOINTING == 0)) || train+=(--gradient_checkpointing)

if ((ASYNC)); then
    mine_beside_training
else
    for ((episode = 0; episode < EPISODES; episode++)); do
        stage "episode $((episode + 1)) of $EPISODES: mine"
        mine_episode "$episode"
        stage "episode $((episode + 1)) of $EPISODES: train"
        train_episode "$episode"
    done
fi

# 6. Evaluate BM25 and every episode's last checkpoint on the dev queries and on the zero-shot collections, with run
# files: minutes (demo).
if ((BM25)); then
    stage "evaluate BM25"
    evaluate_bm25
fi
baselines=${#rows[@]}
for ((episode = 0; episode <= EPISODES; episode += ASYNC ? EPISODES : 1)); do evaluate_episode "$episode"; done

# 7. The tables, and whether the last checkpoint is better than the initial one by more than chance: seconds.
stage "results"
run in_results "$root/evaluate/results_table.py" --out_dir . \
    --clusters_dir "$ann_data/clusters_0" --dev_query_dir "$preprocessed/dev-query" ${own_test[@]+"${own_test[@]}"} --rows "${rows[@]}"
echo
[[ -z "$reasons" ]] || printf '%s\n\n' "$reasons"
initial="${rows[baselines]}" # the first row, but for BM25's
run in_results "$root/evaluate/compare_runs.py" --out_dir . --apart $((1 + TEST)) --runs "$initial" "${rows[-1]}"

# 8. The last checkpoint's README.md, as the hub shows it: a second.
stage "model card"
last="$models/checkpoint-$((EPISODES * STEPS))"
write_model_card "$last"

# 9. The report, and its pictures: half a minute.
stage "report"
run "$python" "$root/evaluate/report.py" --run_dir "$OUT_DIR"
cat << END

report       $OUT_DIR/report.html
checkpoint   $last
metrics      $results (table.md, comparison.md; values per query and run files beside each metrics.json)
curves       $python -m tensorboard.main --logdir "$OUT_DIR/logs"
load it      SentenceTransformer("$last"), see the README
search       bash commands/search.sh --out_dir "$OUT_DIR" "a question"
END
