#!/usr/bin/env bash
# Compares objectives, ERM, DRO-greedy and iDRO by default: trained from the same start on the same mined negatives,
# with several seeds.
#
#     bash commands/run_comparison.sh                        on the demo's collection: half an hour on 2 cores
#     bash commands/run_comparison.sh --data_dir msmarco --out_dir runs/comparison --checkpoint OpenMatch/cocodr-base
#
# Trains one episode for each objective and seed by commands/run_ance.sh, into OUT_DIR/OBJECTIVE-SEED; what the first
# of these runs has tokenized, encoded, clustered and mined, the others take from it. So the seeds differ in dropout
# alone. Then prints dev, worst-cluster and zero-shot metrics with intervals (evaluate/compare_objectives.py), as OUT_DIR
# gets them in objectives.md. Run again, it goes on where it stopped. Settings are environment variables, or flags of
# the same name in lower case: those below, and all of run_ance.sh's (bash commands/run_ance.sh --help) but EPISODES,
# OBJECTIVE, ABSENT, NORMALIZE_WEIGHTS, SEED, MINING_SEED and ASYNC.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

setting OUT_DIR text '$root/runs/comparison' "a folder per run, and the result (default: runs/comparison)"
setting OBJECTIVES text "erm dro-greedy idro" \
    "of erm, balanced, dro-greedy and idro; with +keep (ABSENT) and +normalized (NORMALIZE_WEIGHTS), like idro+keep+normalized. The first is what the others are compared with"
setting SEEDS text "1 2 3" "of dropout; the first one is mining's too"

hands_on=1 # run_ance.sh's flags
take_arguments "$@"
takes_no_words
settle
own=(EPISODES OBJECTIVE ABSENT NORMALIZE_WEIGHTS SEED MINING_SEED ASYNC) # which this script gives to run_ance.sh itself
for ((i = 0; i < ${#others[@]}; i += 2)); do # flag, value
    name="${others[i]//-/_}" && name="${name#__}"
    [[ " ${own[*]} " != *" ${name^^} "* ]] || fail "${others[i]} is not a setting here; see --help"
done
unset "${own[@]}"
read -ra objectives <<< "$OBJECTIVES"
read -ra seeds <<< "$SEEDS"
all_differ() { [[ -z "$(printf '%s\n' "$@" | sort | uniq -d)" ]]; }
for objective in ${objectives[@]+"${objectives[@]}"}; do
    [[ "$objective" =~ ^(erm|balanced|dro-greedy(\+normalized)?|idro(\+keep)?(\+normalized)?)$ ]] ||
        fail "OBJECTIVES names '$objective'; there are erm balanced dro-greedy[+normalized] idro[+keep][+normalized]"
done
for seed in ${seeds[@]+"${seeds[@]}"}; do
    [[ "$seed" =~ ^(0|[1-9][0-9]*)$ ]] || fail "SEEDS names '$seed', which is no whole number"
done
((${#objectives[@]} && ${#seeds[@]})) || fail "OBJECTIVES is '$OBJECTIVES' and SEEDS '$SEEDS'; name at least one of each"
(all_differ "${objectives[@]}" && all_differ "${seeds[@]}") || fail "OBJECTIVES or SEEDS names one twice"
[[ "$OUT_DIR" != *[,=]* ]] || fail "OUT_DIR is '$OUT_DIR'; a comma or an equals sign cannot stand in it"
make_folder "$OUT_DIR"
OUT_DIR="$(absolute "$OUT_DIR")"
first="$OUT_DIR/${objectives[0]}-${seeds[0]}"

# All begin with what one run has mined, whose folder is noted: another would be another start.
noted="$({ cat "$OUT_DIR/first" 2> /dev/null || true; })"
if [[ -n "$noted" && -f "$OUT_DIR/$noted/results/ann_ndcg_0" ]]; then
    [[ "$noted" == "${first##*/}" ]] ||
        fail "the runs in $OUT_DIR begin with what $noted has mined; name its objective and seed first, or choose another OUT_DIR"
else
    printf '%s\n' "${first##*/}" > "$OUT_DIR/first.partial"
    mv "$OUT_DIR/first.partial" "$OUT_DIR/first"
fi

share() { # OUT: links there what the first run has made before its training
    mkdir -p "$1/ann_data" "$1/results/dev"
    local path up
    for path in collection preprocessed zero_shot \
        ann_data/{ann_training_{data_0,scores_0.npy,examples_0.json},clusters_0,embeddings-0} \
        results/dev/bm25; do
        up="${path//[!\/]/}" # relative links, so that OUT_DIR can be moved
        [[ ! -e "$first/$path" || -e "$1/$path" ]] || ln -s "../${up//\//../}${first##*/}/$path" "$1/$path"
    done
    cp "$first"/settings.{tokenize,mine} "$1/" # which these follow from
    cp "$first/results/ann_ndcg_0" "$1/results/"
}
arguments=()
for objective in "${objectives[@]}"; do
    folders="" absent=drop normalize=0
    [[ "$objective" != *+keep* ]] || absent=keep
    [[ "$objective" != *+normalized ]] || normalize=1
    for seed in "${seeds[@]}"; do
        out="$OUT_DIR/$objective-$seed"
        printf '\n==== %s, seed %s\n' "$objective" "$seed"
        [[ "$out" == "$first" || -e "$out/results/ann_ndcg_0" ]] || share "$out"
        run_script run_ance.sh ${others[@]+"${others[@]}"} --out_dir "$out" --episodes 1 \
            --objective "${objective%%+*}" --absent "$absent" --normalize_weights "$normalize" \
            --seed "$seed" --mining_seed "${seeds[0]}"
        folders+=",$out"
    done
    arguments+=("$objective=${folders#,}")
done

# The tables: a minute.
stage="comparison"
printf '\n==== %s\n' "$stage"
steps=("$first"/saved_models/checkpoint-*)
step="$(printf '%s\n' "${steps[@]##*-}" | sort -n | tail -n 1)"
run "$python" "$root/evaluate/compare_objectives.py" --out_dir "$OUT_DIR" --step "$step" \
    --objectives "${arguments[@]}"
