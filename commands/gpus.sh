#!/usr/bin/env bash
# Which GPUs a script may use, and how many processes can each have one of its own. Other scripts source this file.
#
# CUDA decides (CUDA_VISIBLE_DEVICES, of its programming guide, and NVIDIA's MIG guide): the variable lists numbers or
# UUIDs, which may be cut short; unset it means all GPUs, empty none, and a negative number ends the list. Of MIG
# instances a process sees one only, and no whole GPU beside it.
set -euo pipefail

# Sets `gpus` to the GPUs that LIST names, each as an entry of CUDA_VISIBLE_DEVICES; without a LIST to all that this
# script may use. A GPU that is cut into MIG instances stands for these.
find_gpus() { # [LIST]
    local line entry i smi="" source="CUDA_VISIBLE_DEVICES" entries=() uuids=() whole=() instances=()
    [[ $# -eq 0 ]] || source="the list '$1'"
    [[ ! -v CUDA_VISIBLE_DEVICES && $# -eq 0 ]] || IFS=, read -ra entries <<< "${1-$CUDA_VISIBLE_DEVICES}"
    gpus=()
    smi="$(nvidia-smi --list-gpus 2> /dev/null)" || return 0 # no driver
    while IFS= read -r line; do
        if [[ "$line" =~ ^GPU\ [0-9]+:.*\(UUID:\ (GPU-[^\)]+)\) ]]; then
            uuids+=("${BASH_REMATCH[1]}") whole+=("${#whole[@]}") instances+=("")
        elif [[ "$line" =~ ^[[:space:]]+MIG\ .*\(UUID:\ (MIG-[^\)]+)\) ]]; then
            instances[-1]+="${BASH_REMATCH[1]} "
        fi
    done <<< "$smi"
    ((${#whole[@]})) || return 0
    [[ -v CUDA_VISIBLE_DEVICES || $# -gt 0 ]] || entries=(${whole[@]+"${whole[@]}"})
    for entry in ${entries[@]+"${entries[@]}"}; do
        entry="${entry//[[:space:]]/}"
        [[ "$entry" != -* ]] || break
        for i in ${whole[@]+"${whole[@]}"}; do
            if [[ "$entry" == MIG-* && ("$entry" == MIG-"${uuids[i]}"/* || " ${instances[i]}" == *" $entry"*) ]]; then
                gpus+=("$entry") && continue 2
            elif [[ "$entry" == "$i" || ("$entry" == GPU-* && "${uuids[i]}" == "$entry"*) ]]; then
                # shellcheck disable=SC2206 # a word an instance
                [[ -n "${instances[i]}" ]] && gpus+=(${instances[i]}) || gpus+=("$entry")
                continue 2
            fi
        done
        fail "$source names '$entry', and nvidia-smi --list-gpus shows no such GPU"
    done
}

processes_on() { # GPU…: prints how many processes can each have one of them
    [[ " $*" == *" MIG-"* ]] && echo 1 || echo $#
}

with_commas() { local IFS=,; printf '%s\n' "$*"; } # WORD…
