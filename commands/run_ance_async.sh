#!/usr/bin/env bash
# Trains as commands/run_ance.sh does, with the miner beside the trainer: neither waits for the other, as in
# the ANCE paper (arXiv:2007.00808).
#
#     bash commands/run_ance_async.sh                  the demo, in runs/demo-async
#     bash commands/run_ance_async.sh --data_dir msmarco --out_dir runs/async --checkpoint OpenMatch/cocodr-base
#
# The miner mines an episode whenever there is a checkpoint newer than its last one's; training goes on meanwhile, and
# moves to the newest episode at its next log entry. Settings are those of commands/run_ance.sh (--help there), and
# with ASYNC=1 that is the script that runs. These mean something else here:
#
#   EPISODES, STEPS    training ends after EPISODES x STEPS steps; how many episodes it sees follows from how fast the
#                      miner is. The learning rate sinks to 0 over all of them: NUM_TRAINING_STEPS and
#                      TOTAL_TRAINING_STEPS cannot be set. With more EPISODES, training goes on, and sinks slower
#   WARMUP_STEPS       once, at the beginning
#   SAVE_STEPS         how often there is something new to mine with
#   PROCESSES          of the evaluation only. TRAINING_GPUS and MINING_GPUS have a process on each GPU; without a GPU
#                      both have one process
#
# What the miner says is in OUT_DIR/miner.log. When training ends, the miner is stopped, whatever it does. When the
# miner ends, training is stopped too, rather than going on with negatives that grow old, and the script fails. Started
# again by the same command, both go on where they were. The table has the initial and the last checkpoint.
set -euo pipefail
[[ "${1:-}" != --help && "${1:-}" != -h ]] || { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit 0; }
exec bash "$(dirname "${BASH_SOURCE[0]}")/run_ance.sh" --async 1 "$@"
