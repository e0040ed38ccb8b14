"""The miner's command line: what contradicts itself is refused before anything is encoded."""

import runpy

import pytest

from drivers import run_ann_data_gen
from drivers.run_ann_data_gen import Arguments
from utils.runtime import errors
from utils.runtime.errors import InputError

NEEDED = {"data_dir": "d", "output_dir": "o", "training_dir": "t"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"end_output_num": -2}, "--end_output_num is -2"),
        ({"group": 1}, "--cluster_query is not set"),
        ({"topk_training": 0}, "--topk_training is 0"),
        ({"zero_shot_dirs": ["a/scifact", "b/scifact/"]}, "have the same name: scifact, scifact"),
        ({"index_parameters": "nprobe=8"}, "--index_parameters are of an approximate index"),
        ({"max_relative_score": 1.5}, "--max_relative_score is 1.5; a share above 0, at most 1, is needed"),
        ({"skip_ranks": 200}, "--skip_ranks is 200, and only 200 passages are ranked"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(changes, reason):
    with pytest.raises(InputError, match=reason):
        Arguments(**NEEDED | changes)
    assert Arguments(**NEEDED, groups_file="f", group=1).cluster_query
    assert Arguments(**NEEDED, index_factory="IVF64,Flat", index_parameters="nprobe=8").index_parameters


def test_the_published_texts_name_of_the_mining_step_is_the_same_script(monkeypatch):
    ran = []
    monkeypatch.setattr(errors, "run", ran.append)
    runpy.run_path(f"{run_ann_data_gen.__file__}".replace(".py", "_beir.py"), run_name="__main__")
    assert ran == [run_ann_data_gen.main]
