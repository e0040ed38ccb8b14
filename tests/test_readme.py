"""What the README shows must run."""

import re
import subprocess
import sys
from pathlib import Path

from tests.tiny import tiny_bert_tokenizer
from tests.tiny_models import tiny_bert

ROOT = Path(__file__).resolve().parents[1]


def python_example(heading: str) -> str:
    section = (ROOT / "README.md").read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]


def test_idro_in_your_own_training_loop_runs_in_at_most_25_lines(tmp_path):
    example = python_example("iDRO in your own training loop")
    assert len(example.strip().splitlines()) <= 25
    tiny_bert_tokenizer(tmp_path / "encoder")
    tiny_bert(layers=4, vocabulary=200).bert.save_pretrained(tmp_path / "encoder")
    name = re.search(r'"([\w-]+/[\w.-]+)"', example)[1]
    finished = subprocess.run(
        [sys.executable, "-c", example.replace(name, str(tmp_path / "encoder"))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    weights = [float(number) for number in re.findall(r"\d+\.\d+", finished.stdout.splitlines()[-1])]
    assert len(weights) == 3
    assert abs(sum(weights) - 1) < 0.1
    assert len(set(weights)) > 1
