#!/usr/bin/env bash
# The settings of run_ance.sh, a line each: NAME VALUES DEFAULT [DEMO'S DEFAULT] HELP (see commands/common.sh). Those
# that are auto are chosen once the data are tokenized, by size, or as published (model/hyperparameters.py has both).
# The demo's make two episodes a matter of minutes on two cores.
# shellcheck disable=SC2154 # set by who sources this
set -euo pipefail

# What was trained in turn by a version without these two settings goes on by that version's schedule.
is_older() {
    [[ -n "$(there "$OUT_DIR"/saved_models/checkpoint-*)" && -f "$OUT_DIR/settings.train" ]] &&
        grep -q "^ASYNC=0" "$OUT_DIR/settings.train" && ! grep -q "^NUM_TRAINING_STEPS=" "$OUT_DIR/settings.train"
}
older_total() { echo "$((${EPISODES/auto/3} * STEPS))"; } # three episodes were that version's default
is_async() { [[ "${ASYNC:-0}" != 0 ]]; } # also before it is settled
demo_on_one_gpu() { (($(processes_on ${gpus[@]+"${gpus[@]}"}) == 1)); } # one process then takes the triplets of two
is_published_type() { [[ "$MODEL_TYPE" != auto ]]; }
contrasts_by_idro() { [[ "$LOSS $OBJECTIVE" == "contrastive idro" ]]; }
half_of_the_gpus() { # 0 | 1: the first or the second
    local half=$((${#gpus[@]} / 2))
    if (($1 == 0)); then with_commas ${gpus[@]+"${gpus[@]:0:half}"}; else with_commas ${gpus[@]+"${gpus[@]:half}"}; fi
}

heading "Where"
setting OUT_DIR text "" '$root/runs/demo$(is_async && echo -async || true)' \
    "everything that the run makes (demo: runs/demo)"
setting DATA_DIR text "" '$OUT_DIR/collection/msmarco' \
    "the training data, a file or folder in any layout that LAYOUT names, or several with colons between (docs/your_data.md; MS MARCO: commands/download_msmarco.sh); without it, the demo"
setting LAYOUT text auto "auto: by what is there; or msmarco, beir, tevatron, flagembedding, pairs, datasets (then DATA_DIR may be a name on the hub); of several sources, one each with colons between"
setting PAIR_COLUMNS text "" "the columns of pairs: QUERY,POSITIVE[,NEGATIVE…] (default: by their names)"
setting DATA_CONFIG text "" "the configuration of a data set on the hub"
setting DATA_SPLIT text "" "the one split of it that is read, as training data (default: train, and dev and test where there are some)"
setting DEV_SHARE number 0.1 "share of the training queries, 1000 at most, that is held out to measure with where the data have no dev queries"
setting CHECKPOINT text "" "the model to begin with: a folder or a hub name (demo: all-MiniLM-L6-v2)"
setting ZERO_SHOT_DIRS text "" '$OUT_DIR/collection/python-docs' \
    "folders in BEIR's layout to evaluate on, separated by colons (demo: its own)"
setting PUBLIC_ANN_DATA_DIR text "" \
    "the initial checkpoint's embeddings, made by mining and used by its evaluation too; several runs on the same data can share them (default: OUT_DIR/ann_data/embeddings-0)"

heading "What"
setting MODEL_SIZE "base|large" base "sets the published defaults that differ, and the layers that iDRO compares"
setting DATA_TYPE "0|1" 1 "0: documents, 1: passages"
setting MAX_SEQ_LENGTH count 256 128 "tokens per passage, special ones and prompt included; longer texts are cut"
setting MAX_QUERY_LENGTH count 64 32 "tokens per query, likewise"

heading "How the checkpoint is read"
reading_settings

heading "Mining"
setting TOPK "auto|count" auto 100 "passages ranked per training query"
setting NEGATIVES "auto|count" auto 5 "negatives drawn from them"
setting GIVEN_NEGATIVES "0|1" 0 "1: the first episode trains on the negatives that the data bring along, where a query has some"
setting SKIP_RANKS "off|whole" off "so many of a query's best-ranked candidates are no negatives (docs/inside.md)"
setting MIN_MARGIN "off|number" off \
    "nor are those that score less than this below the positive, in standard deviations of the scores of the query's TOPK"
setting MAX_RELATIVE_SCORE "auto|off|number" '$([[ "$SKIP_RANKS $MIN_MARGIN" == "off off" ]] && echo auto || echo off)' \
    "nor those that score above this share of the positive, like 0.95: for vectors of length 1 (default: auto; off where one of the two above is given)"
setting NEGATIVES_A_QUERY "auto|whole" auto '$(is_published_type && echo 0 || echo 1)' \
    "of them in a pass over the queries; a mined file has as many passes as that takes. 0: 5 passes (default: auto; demo: 1)"
setting QUERIES_TOGETHER "auto|whole" auto '$(is_published_type && echo 0 || echo 16)' \
    "queries of one cluster that stand together in a block, whose passages a contrastive loss shares; 0: none, as published (default: auto; demo: 16)"
setting CLUSTERS "auto|count" auto 16 "clusters of the training queries"
setting QUERY_GROUPS text clusters \
    "what the objective weighs, and metrics are told of (flag: --groups too): clusters of the training queries by k-means; source: the sources of mixed data; or a TSV of query id and group name"
also_called GROUPS # bash has a variable of that name
setting EMBEDDING_DTYPE "float32|float16" float32 "the type of stored vectors; float16 takes half the disk, and rounds"
setting INDEX_FACTORY text Flat "Flat: exact search; else an approximate index, by faiss's factory string"
setting INDEX_PARAMETERS text "" "of an approximate index's search, like nprobe=64"

heading "Training"
setting EPISODES "auto|count" auto 2 "rounds of mining and training"
setting STEPS "auto|count" auto 40 "optimizer steps per episode"
setting LOSS "auto|pairwise|contrastive" auto '$( ((QUERIES_TOGETHER)) && echo contrastive || echo pairwise)' \
    "pairwise: each negative by itself, as published; contrastive: all passages of a block (default: auto; demo: contrastive)"
setting BATCH_SIZE "auto|count" auto 16 "triplets per process and pass; with a contrastive loss lines, whole blocks of them"
setting PROCESSES count '$(processes_on "${gpus[@]-}")' '$(demo_on_one_gpu && echo 1 || echo 2)' \
    "processes on this machine: by default as many as GPUs, else 1 (demo: 2, on one GPU 1). GPUs are those that CUDA_VISIBLE_DEVICES lists, where it is set"
setting ACCUMULATION "auto|count" auto '$(demo_on_one_gpu && ! is_async && echo 2 || echo 1)' \
    "passes per step. Published are 512 triplets per step (large: 256); with fewer than 8 GPUs, 8 / GPUs passes take as many. (The demo takes 2 on one GPU.)"
setting OPTIMIZER "auto|lamb|adamW" auto adamW "how steps are taken"
setting LEARNING_RATE "auto|number" auto 1e-4 "peak of the first episode"
setting WARMUP_STEPS "auto|whole" auto 8 "steps of linear warm-up at the beginning of each episode"
setting NUM_TRAINING_STEPS "auto|count" '$(is_older && echo "$STEPS" || echo auto)' '$STEPS' \
    "the episode's step at which its learning rate is down to 0, or would be, did the episode not end before (default: auto; demo: STEPS)"
setting TOTAL_TRAINING_STEPS "auto|count" \
    '$(is_older && older_total || echo auto)' '$(is_older && older_total || echo "$((2 * STEPS))")' \
    "an episode that begins at step s of the run has the peak LEARNING_RATE x max(0.2, 1 - s / TOTAL_TRAINING_STEPS) (default: auto; demo: 2 x STEPS)"
setting OBJECTIVE "idro|dro-greedy|balanced|erm" idro "how clusters, or groups by name, are weighed (docs/objectives.md)"
setting ABSENT "auto|drop|keep" auto '$(contrasts_by_idro && echo keep || echo drop)' \
    "iDRO: drop: a cluster that is absent from a step falls to the least weight, as published; keep: it keeps its own (default: auto; demo: keep)"
setting NORMALIZE_WEIGHTS "auto|0|1" auto '$(contrasts_by_idro && echo 1 || echo 0)' \
    "iDRO, DRO-greedy: 1: a step's coefficients sum to 1, whichever clusters are in it (default: auto; demo: 1)"
setting ALPHA number 0.25 "iDRO: power of the losses; DRO-greedy: share of the data that weighs most"
setting EMA number 0.1 "iDRO: power of the old weights; DRO-greedy: decay of the running means"
setting RHO number 0.05 "iDRO: step size of the weights"
setting EPS number 0.01 "the least weight of a cluster; with iDRO above 0"
setting IDRO_LAYERS whole 0 "last layers that iDRO compares gradients over; 0: 3, large 2"
setting IDRO_SKETCH_DIM whole 0 "numbers that a cluster's gradient is projected to; 0: exact"
setting ATTENTION_DROPOUT "auto|number" auto \
    "share of attention's weights that training drops; auto: the checkpoint's own; 0: none, and GPUs then do without padding, in mixed precision"
setting SAVE_STEPS "auto|count" auto 20 "steps between checkpoints"
setting SAVE_TOTAL_LIMIT whole 0 \
    "newest checkpoints that an episode keeps; 0: all. The last checkpoint of each episode stays in any case, for mining and evaluation"
setting GRADIENT_CHECKPOINTING "0|1" 0 "1: compute every layer but the last twice, and keep less"
setting SEED whole 42 "of dropout, and of all that is drawn in mining"
setting MINING_SEED whole '$SEED' "of clusters and negatives alone (default: SEED)"

heading "How"
setting LAUNCHER text "" \
    "what starts a script with its arguments in all processes, words between blanks (default: torchrun with PROCESSES); for several nodes see commands/slurm_ance.sbatch"
setting ASYNC "0|1" 0 "1: mine beside training, see commands/run_ance_async.sh"
setting TRAINING_GPUS text '$(half_of_the_gpus 0)' \
    "with ASYNC: numbers or UUIDs with commas, a process on each (default: first half of the GPUs)"
setting MINING_GPUS text '$(half_of_the_gpus 1)' "likewise (default: second half)"
setting MIXED_PRECISION "0|1" 1 "1: bfloat16 where the hardware has it, else float16 (GPU)"
setting EVAL_BATCH_SIZE count 512 64 "texts that a process encodes at once"
setting BM25 "0|1" 0 1 "1: BM25 in the table too (holds the collection in memory)"
setting LICENSE text "" \
    "of the model card, by the hub's identifier: the weights inherit the terms of the initial checkpoint and of the data. A card that is there is written anew where this is given, and else kept (default: other)"

# What settings are called in the scripts that get them, for what these say.
export ANCE_FLAGS="out_data_dir=--out_dir training_dir=--out_dir output_dir=--out_dir result_dir=--out_dir
    ann_dir=--out_dir run_dir=--out_dir log_dir=--out_dir settings_file=--out_dir
    embedding_dir=--public_ann_data_dir
    model_name_or_path=--checkpoint init_model_dir=--checkpoint
    topk_training=--topk negative_sample=--negatives cluster_centroids=--clusters n_groups=--clusters
    groups_file=--query_groups
    max_steps=--steps per_gpu_train_batch_size=--batch_size
    gradient_accumulation_steps=--accumulation per_gpu_eval_batch_size=--eval_batch_size dro_type=--objective
    fp16=--mixed_precision no_cuda=CUDA_VISIBLE_DEVICES="
