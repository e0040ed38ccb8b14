"""Damaged files of every kind: our own error or a proper reading, never another exception."""

import json
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.faults.readers import NAMES, make_readers

EXAMPLES = int(os.environ.get("ANCE_FUZZ_EXAMPLES", "100"))
SLOW = [name for name in NAMES if name.startswith("plain/") or name.endswith((".safetensors", ".pt"))]
PIECES = (
    *(b"\t", b"\n", b"\r", b"\0", b" ", b",", b"-1", b"0", b"99999999999999999999999", b"1e999", b"nan", b"null"),
    *(b"{", b"}", b"[", b'"', b"\\ud800", b"[[[[[[[[[[", b"\xff\xfe", b"\xed\xa0\x80", "\u202e".encode(), b"../../x"),
)
JSON_LINES = [name for name in NAMES if name.endswith(".jsonl")]
JSON_NAMES = [name for name in NAMES if name.endswith((".json", "ann_ndcg_0"))]
VALUES = (
    *(None, True, 0, -1, 2**70, 0.5, 1e300, float("nan"), float("inf")),
    *("", "x", "../x", "\0", "\u202e", [], [[]], [None], {}, {"": 0}, {"x": {"x": []}}),
)


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    return make_readers(tmp_path_factory.mktemp("readers") / "files")


@st.composite
def damages(draw) -> list[tuple[float, float, bytes]]:
    """Places, as shares of the file, where something is taken away, and what is put there instead."""
    piece = st.one_of(st.sampled_from(PIECES), st.binary(max_size=8))
    share = st.floats(0, 1)
    return draw(st.lists(st.tuples(share, st.one_of(st.just(0.0), st.floats(0, 0.2), share), piece), max_size=4))


def damaged(content: bytes, damage: list[tuple[float, float, bytes]]) -> bytes:
    for place, length, piece in damage:
        start = round(place * len(content))
        content = content[:start] + piece + content[start + round(length * len(content)) :]
    return content


def test_every_reader_is_fuzzed_and_reads_its_file(readers):
    assert tuple(readers) == NAMES
    assert all(reader.survives(reader.path.read_bytes()) for reader in readers.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_read_or_refused_by_our_own_error(readers, name):
    reader = readers[name]
    content = reader.path.read_bytes()
    refused = []

    @settings(
        max_examples=EXAMPLES // 5 if name in SLOW else EXAMPLES,
        deadline=None,
        derandomize="ANCE_FUZZ_EXAMPLES"
        not in os.environ,  # in the suite a mistake of today is not found on another day
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(damages())
    def fuzz(damage):
        refused.append(not reader.survives(damaged(content, damage)))

    fuzz()
    assert any(refused), "no damage was noticed: is the file read at all?"


def variants(value: object) -> Iterator[object]:
    """A JSON value with each value in it, itself first, in turn taken away or replaced by one of another kind."""
    yield from VALUES
    if isinstance(value, dict):
        for key, inner in value.items():
            yield {name: kept for name, kept in value.items() if name != key}
            yield from ({**value, key: variant} for variant in variants(inner))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield value[:index] + value[index + 1 :]
            yield from ([*value[:index], variant, *value[index + 1 :]] for variant in variants(inner))


@pytest.mark.parametrize("name", JSON_NAMES)
def test_a_json_value_of_another_kind_is_read_or_refused_by_our_own_error(readers, name):
    reader = readers[name]
    survived = [reader.survives(json.dumps(v).encode()) for v in variants(json.loads(reader.path.read_bytes()))]
    assert len(survived) > len(VALUES)
    assert not all(survived), "no value was noticed"


@pytest.mark.parametrize("name", JSON_LINES)
def test_a_value_of_another_kind_in_a_line_is_read_or_refused_by_our_own_error(readers, name):
    reader = readers[name]
    first, *others = reader.path.read_text().splitlines(keepends=True)
    survived = [reader.survives(f"{json.dumps(v)}\n{''.join(others)}".encode()) for v in variants(json.loads(first))]
    assert len(survived) > len(VALUES)
    assert not all(survived), "no value was noticed"
