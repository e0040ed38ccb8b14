"""The workplace of the tests that run the real scripts: made once, copied for each test."""

import shutil

import pytest

from tests.workplace import Workplace, make_workplace


@pytest.fixture(scope="session")
def mined(tmp_path_factory) -> Workplace:
    """A collection that is tokenized, and its first episode mined by two processes."""
    return make_workplace(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture
def place(mined, tmp_path) -> Workplace:
    """A copy of the mined workplace that a test may change."""
    shutil.copytree(mined.folder, tmp_path / "work")
    return Workplace(tmp_path / "work")
