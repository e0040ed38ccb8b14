"""iDRO watches the last layers of the encoder."""

import pytest

from model.watched_layers import watched_layers
from tests.tiny_models import tiny_bert
from utils.runtime.errors import InputError


@pytest.mark.parametrize(
    ("size", "layers", "asked", "watched"),
    [
        ("base", 12, 0, 3),
        ("large", 24, 0, 2),
        ("base", 6, 0, 3),
        ("base", 4, 0, 2),
        ("base", 1, 0, 1),
        ("base", 6, 5, 5),
    ],
)
def test_watched_layers_are_the_last_ones_by_the_model(size, layers, asked, watched):
    encoder = tiny_bert(layers=layers)
    assert list(watched_layers(encoder, size, asked)) == list(encoder.model.encoder.layer)[layers - watched :]


def test_more_watched_layers_than_there_are_is_an_error():
    with pytest.raises(InputError, match="has 2 layers"):
        watched_layers(tiny_bert(layers=2), "base", 3)
    with pytest.raises(InputError, match="base and large"):
        watched_layers(tiny_bert(layers=2), "huge")
