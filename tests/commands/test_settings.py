"""Settings of the scripts: declared once, each has a variable, a flag, a check and its lines of help."""

import re

import pytest

from tests.commands.stub_environment import Checkout, declarations_of, settings_of

DECLARED = {  # where each script's settings are declared
    "run_ance.sh": "ance_settings.sh",
    "run_evaluate.sh": "run_evaluate.sh",
    "run_comparison.sh": "run_comparison.sh",
    "run_benchmarks.sh": "run_benchmarks.sh",
    "run_fault_tests.sh": "run_fault_tests.sh",
    "run_gpu_check.sh": "run_gpu_check.sh",
    "search.sh": "search.sh",
}


@pytest.fixture
def checkout(tmp_path) -> Checkout:
    return Checkout(tmp_path)


def declarations(script: str) -> list[tuple[str, str, str]]:
    """(name, values, default) of each setting."""
    found = r"""^setting (\w+) +("[^"]*"|[\w$]+) +('[^']*'|"[^"]*"|\S+)"""
    return re.findall(found, declarations_of(DECLARED[script]), re.MULTILINE)


@pytest.mark.parametrize("script", DECLARED)
def test_help_lists_every_setting_with_its_default(checkout, script):
    shown = checkout.run(script, "--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    settings = declarations(script)
    assert [name for name, *_ in settings] == settings_of(DECLARED[script])
    assert len(settings) >= 3
    for name, _, default in settings:
        lines = re.search(rf"^  {name} .*(?:\n {{28}}.*)*", shown.stdout, re.MULTILINE)
        assert lines, f"{name} is not in --help"
        told = " ".join(lines[0].split())
        if default.startswith("'"):
            assert "default" in told or "demo" in told, told
        elif default != '""':
            assert re.search(rf"\[{re.escape(default.strip(chr(34)))}(; demo: [^]]*)?\]$", told), told


@pytest.mark.parametrize("script", DECLARED)
def test_values_that_cannot_be_are_refused_before_anything_runs(checkout, script):
    for name, values, _ in declarations(script):
        wrong = "no value" if values not in ("text", "any") else None
        if wrong is None:
            continue
        needs = ("x/y",) if script == "run_evaluate.sh" else ("why",) if script == "search.sh" else ()
        refused = checkout.run(script, f"--{name.lower().replace('_', '-')}={wrong}", *needs)
        assert refused.returncode == 2, name
        assert refused.stderr.startswith(f"error: {name} is 'no value'; "), refused.stderr
    assert not checkout.calls()


def test_a_flag_comes_before_a_variable_and_both_before_the_default(checkout):
    shown = {}
    for flags, variables in (((), {}), ((), {"SPLIT": "a"}), (("--split", "b"), {"SPLIT": "a"})):
        (checkout.work / "set").mkdir(exist_ok=True)
        (checkout.work / "set" / "corpus.jsonl").touch()
        (checkout.work / "set" / "qrels").mkdir(exist_ok=True)
        for split in ("test", "a", "b"):
            (checkout.work / "set" / "qrels" / f"{split}.tsv").touch()
        (checkout.work / "model").mkdir(exist_ok=True)
        finished = checkout.run(
            "run_evaluate.sh", "--checkpoint", "model", "--out_dir", "o", *flags, "set", **variables
        )
        assert finished.returncode == 0, finished.stderr
        shown[len(shown)] = {call.flags["split"] for call in checkout.calls() if call.script == "beir_data"}
    assert list(shown.values()) == [{"test"}, {"a"}, {"b"}]
