#!/usr/bin/env bash
# Reads flags, in the forms that the Python scripts take too, and checks settings. Other scripts source this file; they
# name what can be set in an array `settings`, and have a function `fail`.
set -euo pipefail

# Prints the setting that a flag is of, for --like_this, --like-this and --like_this=VALUE: LIKE_THIS.
setting_of() { # ARGUMENT
    local LC_ALL=C name="${1#--}"
    name="${name%%=*}" && name="${name//-/_}" && printf '%s\n' "${name^^}"
}

# Gives a setting the value of the flag that comes first, and sets `taken` to how many arguments that were.
take_flag() { # ARGUMENT…
    local name
    name="$(setting_of "$1")"
    [[ "$1" == --* && "$name" =~ ^[A-Z0-9_]+$ && " ${settings[*]} " == *" $name "* ]] ||
        fail "unknown argument '$1'; see --help"
    if [[ "$1" == *=* ]]; then
        printf -v "$name" %s "${1#*=}" && taken=1
    else
        (($# > 1)) || fail "$1 wants a value"
        printf -v "$name" %s "$2" && taken=2
    fi
}

one_of() { # NAME VALUE…: refuses another value of this setting
    local value
    for value in "${@:2}"; do [[ "${!1}" != "$value" ]] || return 0; done
    fail "$1 is '${!1}'; it can be: ${*:2}"
}

MODEL_TYPES=(rdot_nll rdot_nll_multi_chunk rdot_nll_condenser)

check_checkpoint() { # refuses a CHECKPOINT that is neither a folder nor like a name on the hub
    [[ ! -d "$CHECKPOINT" ]] || return 0
    [[ "$CHECKPOINT" =~ ^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9._-]+)?$ && ! -d "${CHECKPOINT%%/*}" ]] ||
        fail "CHECKPOINT is '$CHECKPOINT', which is no folder, and no name of a model on the hub"
}
