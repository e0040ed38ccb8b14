"""What README.md, CONTRIBUTING.md, CHANGELOG.md and docs/ say of the code is true of it.

Links and anchors lead somewhere, paths exist, flags and settings are known to the scripts, commands parse, snippets
run, and no figure stands on two pages.
"""

import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
import torch
import yaml
from torch.distributed.run import get_args_parser

from model.reading import Reading
from tests.tiny import tiny_bert_tokenizer
from tests.tiny_models import tiny_bert
from tests.tiny_run import save_tiny_checkpoint

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(ROOT.glob("docs/*.md"))
page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())

OF_OTHERS = {"exclude", "cpu-bind", "kill-on-bad-exit", "nodes"}  # flags of hf and Slurm
NAMES_OF_OTHERS = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT"}


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def prose_of(page: Path) -> str:
    """The page without its blocks of code."""
    unfenced = re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL)
    return re.sub(r"^ {4}.*$", "", unfenced, flags=re.MULTILINE)


def spans_of(page: Path) -> list[str]:
    """What stands between backticks in the prose."""
    return re.findall(r"`([^`\n]+)`", prose_of(page))


def snippets_of(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text_of(page), re.DOTALL)


def commands_of(page: Path) -> Iterator[list[str]]:
    """The words of every shell command in the page's indented blocks."""
    blocks = re.findall(r"(?:^ {4}.*\n)+", re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL), re.MULTILINE)
    for line in "".join(blocks).replace("\\\n", " ").splitlines():
        words = shlex.split(line.strip(), comments=True) if re.match(r" {4}(\w+=|\w+ )", line) else []
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        if words and words[0] in ("bash", "python", "torchrun", "sbatch"):
            yield words


def scripts() -> list[Path]:
    """Every Python script with a command line, by its path in the project."""
    paths = (path for room in ("data", "drivers", "evaluate") for path in (ROOT / room).rglob("*.py"))
    return [path.relative_to(ROOT) for path in paths if "\nclass Arguments" in path.read_text(encoding="utf-8")]


@cache
def flags_of(script: str) -> frozenset[str]:
    """The flags that a script knows, by its arguments' fields or, of a bash script, by its help."""
    if script.endswith(".py"):
        module = import_module(script.removesuffix(".py").replace("/", "."))
        return frozenset({"help", *(field.name for field in fields(module.Arguments))})
    settings = re.findall(r"\b[A-Z][A-Z0-9_]+\b", help_of(script))
    flags = {"help", *(name.lower() for name in settings), *re.findall(r"\(flag: --(\w+)", help_of(script))}
    if script.endswith(
        ("run_ance_async.sh", "run_comparison.sh", "slurm_ance.sbatch")
    ):  # which hand on what they get
        flags |= flags_of("commands/run_ance.sh")
    return frozenset(flags)


@cache
def help_of(script: str) -> str:
    command = ["bash", str(ROOT / script), "--help"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@cache
def flags_of_torchrun() -> frozenset[str]:
    options = (option for action in get_args_parser()._actions for option in action.option_strings)
    return frozenset(option.lstrip("-").replace("-", "_") for option in options)


@cache
def all_flags() -> frozenset[str]:
    shell = (f"commands/{path.name}" for path in (ROOT / "commands").glob("run_*.sh"))
    known = (flags_of(str(script)) for script in (*map(Path.as_posix, scripts()), *shell, "commands/search.sh"))
    others = {flag.replace("-", "_") for flag in OF_OTHERS}
    return frozenset().union(*known, flags_of_torchrun(), others)


@cache
def words_of_the_code() -> frozenset[str]:
    """Every word in the scripts and modules, the tests' among them."""
    found = set()
    for room in ("commands", "data", "drivers", "evaluate", "model", "tests", "utils"):
        for path in (ROOT / room).rglob("*"):
            if path.suffix in (".py", ".sh", ".sbatch", ".jinja") and path != Path(__file__):
                found.update(re.findall(r"\w+", path.read_text(encoding="utf-8")))
    return frozenset(found)


def anchors_of(page: Path) -> set[str]:
    """GitHub's names for the page's headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_has_at_most_200_lines():
    assert len(text_of(ROOT / "README.md").splitlines()) <= 200


def test_every_page_can_be_reached_from_the_readme():
    linked = set(re.findall(r"\]\(([\w/.-]+\.md)", text_of(ROOT / "README.md")))
    assert {page.relative_to(ROOT).as_posix() for page in PAGES} - {"README.md"} <= linked


@page
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", text_of(page)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors_of(file), target


@page
def test_paths_exist(page):
    rooms = "commands|data|docs|drivers|evaluate|model|tests|utils"
    for path in re.findall(rf"(?<![\w./-])(?:{rooms})/[\w./-]*", text_of(page)):
        assert (ROOT / path.rstrip(".")).exists(), path


@page
def test_commands_name_scripts_and_flags_that_there_are(page):
    for words in commands_of(page):
        place = next((i for i, word in enumerate(words) if word.endswith((".sh", ".py", ".sbatch"))), None)
        assert place is not None, words
        script, before, after = words[place], words[1:place], words[place + 1 :]
        assert (ROOT / script).is_file(), words
        known = OF_OTHERS if words[0] == "sbatch" else flags_of_torchrun() - {"help"}
        unknown = {word[2:].split("=")[0] for word in before if word.startswith("--")} - known
        assert not unknown, words
        if script != "commands/test.sh":  # what follows are pytest's arguments
            flags = {word[2:].split("=")[0] for word in after if word.startswith("--")}
            assert not flags - flags_of(script), words


@page
def test_flags_in_the_prose_are_known_to_a_script(page):
    for span in spans_of(page):
        for flag in re.findall(r"(?<![\w-])--([a-z][\w-]*)", span):
            assert flag.replace("-", "_") in all_flags(), span


@page
def test_names_in_the_prose_stand_in_the_code(page):
    """Identifiers and settings: one word with an underscore, or with a capital letter inside it or all through."""
    for span in spans_of(page):
        if re.fullmatch(r"[A-Za-z]\w*", span) and re.search(r"_|[a-z0-9][A-Z]|^[A-Z0-9]{3,}$", span):
            words = {re.sub(r"_N$|STEP$", "", span), span}
            assert words & (words_of_the_code() | NAMES_OF_OTHERS), span


def test_the_table_of_settings_has_those_of_the_help():
    table = text_of(ROOT / "docs" / "running.md").split("| setting |")[1].split("\n\n")[0]
    rows = (line.split("|")[1] for line in table.splitlines()[2:])
    explained = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    helped = re.findall(r"^ {2}([A-Z][A-Z0-9_]+(?:, [A-Z0-9_]+)*) ", help_of("commands/run_ance.sh"), re.MULTILINE)
    assert len(helped) > 20
    assert set(explained) == {name for names in helped for name in names.split(", ")}
    assert len(explained) == len(set(explained))


def test_no_row_of_figures_stands_twice():
    rows = Counter(
        line
        for page in PAGES
        for line in text_of(page).splitlines()
        if line.count("|") > 2 and re.search(r"\d", line)
    )
    assert [row for row, count in rows.items() if count > 1] == []


@page
def test_snippets_are_python(page):
    for snippet in snippets_of(page):
        compile(snippet, page.name, "exec")


def test_idro_in_your_own_loop_runs_in_at_most_25_lines_and_moves_the_weights(tmp_path):
    (example,) = snippets_of(ROOT / "docs" / "idro_in_your_loop.md")
    assert len(example.strip().splitlines()) <= 25
    tiny_bert_tokenizer(tmp_path / "encoder")
    tiny_bert(layers=4, vocabulary=200).model.save_pretrained(tmp_path / "encoder")
    name = re.search(r'"([\w-]+/[\w.-]+)"', example)[1]
    finished = subprocess.run(
        [sys.executable, "-c", example.replace(name, str(tmp_path / "encoder"))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    shown = re.findall(r"^    weights: (.*)$", text_of(ROOT / "docs" / "idro_in_your_loop.md"), re.MULTILINE)
    printed = re.findall(r"^weights: (.*)$", finished.stdout, re.MULTILINE)
    assert len(printed) == len(shown) == 5
    for line in (*printed, *shown):
        weights = [float(number) for number in re.findall(r"\d+\.\d+", line)]
        assert len(weights) == 3
        assert abs(sum(weights) - 1) < 0.01
        assert max(weights) - min(weights) > 0.1
        assert min(weights) == weights[2]  # the group that disagrees


def test_all_ways_to_load_a_checkpoint_give_one_vector(tmp_path):
    as_the_demo = Reading("mean", normalized=True)
    checkpoint = str(save_tiny_checkpoint(tmp_path, "rdot_nll_condenser", reading=as_the_demo))
    snippets = [*snippets_of(ROOT / "README.md"), *snippets_of(ROOT / "docs" / "using.md")]
    examples = [snippet for snippet in snippets if "transformers import" in snippet]
    assert len(examples) == 3
    query, found = "what is the dog", []  # in the words of the tiny tokenizer, so that nothing is cut
    for example in examples:
        space: dict = {}
        example = example.replace("how do I sort a list", query)
        exec(re.sub(r'"runs/[\w/-]+"', repr(checkpoint), example), space)
        encode = space["model"].encode_query if "encode_query" in example else getattr(space["model"], "encode", None)
        found.append(torch.tensor(encode([query])) if encode else space["vector"].detach())
    for vector in found[1:]:
        torch.testing.assert_close(vector, found[0], rtol=1e-5, atol=1e-5)


def test_the_citation_names_both_papers_and_the_licence():
    citation = yaml.safe_load(text_of(ROOT / "CITATION.cff"))
    assert {"cff-version", "title", "message", "authors"} <= set(citation)
    assert text_of(ROOT / "LICENSE").startswith(citation["license"])
    urls = {reference["url"] for reference in citation["references"]}
    assert urls == {"https://arxiv.org/abs/2007.00808", "https://arxiv.org/abs/2210.15212"}
    assert all(url in text_of(ROOT / "README.md") for url in urls)
