"""What is said of a run's objective."""

import pytest

from evaluate.reporting.objectives import IN_SHORT, OPTIONS, SENTENCES, in_sentences, in_short, name_of
from model.dro import OBJECTIVES
from utils.runtime.errors import InputError
from utils.stores.run_folder import RunFolder


def run_with(folder, settings: str) -> RunFolder:
    for stage in ("tokenize", "mine", "evaluate"):
        (folder / f"settings.{stage}").write_text("SEED=42\n")
    (folder / "settings.train").write_text(settings)
    return RunFolder(folder)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_is_named_and_described_with_each_of_its_options(tmp_path, name):
    kind, *options = name.split("+")
    settings = f"OBJECTIVE={kind}\nABSENT={'keep' if 'keep' in options else 'drop'}\n"
    assert name_of(run_with(tmp_path, f"{settings}NORMALIZE_WEIGHTS={int('normalized' in options)}\n")) == name
    short, sentences = in_short(name, "cluster"), in_sentences(name, "cluster")
    assert short.startswith(IN_SHORT[kind].format("cluster"))
    assert (f"({name})" in short) == bool(options)
    assert sentences.startswith(SENTENCES[kind].format("cluster"))
    for option, text in OPTIONS.items():
        assert (text.format("cluster") in sentences) == (option in options)
    assert not set("{}") & set(short + sentences)


@pytest.mark.parametrize("kind", ["idro", "dro-greedy", "erm"])
def test_a_run_of_a_version_without_options_has_none(tmp_path, kind):
    assert name_of(run_with(tmp_path, f"OBJECTIVE={kind}\n")) == kind


@pytest.mark.parametrize(
    "settings", ["OBJECTIVE=vrex", "OBJECTIVE=idro\nABSENT=stay", "OBJECTIVE=erm\nABSENT=keep", "ABSENT=drop"]
)
def test_settings_of_no_objective_are_refused(tmp_path, settings):
    with pytest.raises(InputError, match="were altered"):
        name_of(run_with(tmp_path, f"{settings}\n"))
