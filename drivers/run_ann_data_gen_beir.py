"""drivers/run_ann_data_gen.py, by the name that the published recipe's text gives the mining step."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from drivers.run_ann_data_gen import main
from utils.runtime.errors import run

if __name__ == "__main__":
    run(main)
