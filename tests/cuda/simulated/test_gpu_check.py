"""commands/run_gpu_check.sh's measurements run to their end on the simulated device, and are what costs.py reads."""

import json
from pathlib import Path

import pytest

from evaluate import costs
from evaluate.benchmarks import encoding, gpu_check, search
from tests.cuda.device import NAME, simulated_cuda
from tests.cuda.simulated.test_scripts import one_process  # noqa: F401
from tests.drivers.conftest import own_signals  # noqa: F401
from tests.tiny_run import call

pytestmark = pytest.mark.usefixtures("own_signals", "one_process")

TINY = ("--shapes", "tiny", "--texts", 70, "--triplets", 8, "--steps", 2, "--rounds", 1, "--product_size", 8)
TINY = (*TINY, "--passages", 300, "--queries", 20, "--dimensions", 8)
JUNIT = '<testsuites><testsuite tests="9" failures="1" errors="0" skipped="2"/></testsuites>'


def checked(folder: Path) -> dict:
    (folder / "tests.xml").write_text(JUNIT)
    with simulated_cuda():
        call(gpu_check, "--out_dir", folder, "--tests", folder / "tests.xml", *TINY)
    return json.loads((folder / "gpu_check.json").read_text())


def test_every_stage_runs_and_costs_reads_the_result(tmp_path, capsys):
    result = checked(tmp_path)
    assert [*result["seconds"]] == ["peak", "texts", "encoding, tiny", "training, tiny", "search"]
    assert {one["what"] for one in result["left_out"]} == {
        *(f"{stage}: {gpu_check.FLASH}" for stage in ("encoding", "training")),
        "search: faiss-gpu",
    }
    assert not [one for one in result["left_out"] if one["why"].startswith("failed")]
    peak = result["peak_operations_a_second"]
    of_training = result["training"]["shapes"]["tiny"]
    assert [*of_training["contenders"]] == ["erm", "idro", gpu_check.LIBRARY]
    for name in ("erm", "idro"):
        reached = result["training"][name]["useful_share"] * peak
        slowest, fastest = (pick(of_training["contenders"][name]["seconds"]) for pick in (max, min))
        useful = of_training["batch"]["useful_operations"]  # of a batch in the median
        assert useful / slowest / 2 < reached < useful / fastest * 2
    assert result["search"]["useful_share"] == pytest.approx(
        2 * 20 * 300 * 8 / result["search"]["contenders"]["ours"]["median_seconds"] / peak
    )
    of_encoding = result["encoding"]["shapes"]["tiny"]["contenders"]
    assert [*of_encoding] == ["ours", gpu_check.LIBRARY]
    assert all("gpu_peak_gib" in one for one in (*of_encoding.values(), *result["search"]["contenders"].values()))

    page = (tmp_path / "gpu_check.md").read_text()
    assert "Tests: 6 passed, 1 failed, 2 skipped." in page
    for row in (
        "encoding, tiny: ours",
        "training, tiny: idro",
        "search: ours",
        f"training, tiny: {gpu_check.LIBRARY}",
    ):
        assert f"\n| {row} | " in page
    assert "- search: faiss-gpu: the installed faiss is a CPU's" in page

    capsys.readouterr()
    call(costs, "--measured_gpu", tmp_path / "gpu_check.json")
    printed = capsys.readouterr().out
    assert f"measured, gpu_check.json: {NAME}" in printed
    assert (
        f"| share of the peak in training (bfloat16) | {result['training']['idro']['useful_share']:.0%} |" in printed
    )


def test_a_library_or_a_stage_that_fails_keeps_the_others_and_is_told(tmp_path, monkeypatch, capsys):
    def fail(*arguments: object) -> None:
        raise RuntimeError("no such kernel\nmore")

    monkeypatch.setattr(encoding, "load_model", fail)
    monkeypatch.setattr(search, "search", fail)
    monkeypatch.setattr(gpu_check, "TRAINER_NEEDS", ["not_installed"])
    with pytest.raises(SystemExit, match="1"):
        checked(tmp_path)
    result = json.loads((tmp_path / "gpu_check.json").read_text())
    failed = [one for one in result["left_out"] if one["why"].startswith("failed")]
    assert failed == [
        {"what": f"encoding, tiny: {gpu_check.LIBRARY}", "why": "failed: RuntimeError: no such kernel"},
        {"what": "search", "why": "failed: RuntimeError: no such kernel"},
    ]
    assert [*result["encoding"]["shapes"]["tiny"]["contenders"]] == ["ours"]
    lacking = {"what": f"training: {gpu_check.LIBRARY}", "why": "the module not_installed is not installed"}
    assert lacking in result["left_out"]
    assert result["training"]["idro_to_erm"] > 0
    assert "search" not in result
    assert "no such kernel" in (tmp_path / "gpu_check.md").read_text()


def test_a_stage_that_there_is_no_time_for_is_left_out(tmp_path):
    with simulated_cuda():
        call(gpu_check, "--out_dir", tmp_path, *TINY, "--most_seconds", 20)
    result = json.loads((tmp_path / "gpu_check.json").read_text())
    assert result["peak_operations_a_second"] > 0
    assert {"what": "search", "why": "no time left of 20 seconds"} in result["left_out"]
    assert result["tests"] is None
    assert "Tests: none were run, or not to their end." in (tmp_path / "gpu_check.md").read_text()
