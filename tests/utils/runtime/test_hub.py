"""utils/runtime/hub.py: a model's name without a network to ask for it."""

import io
import logging

import pytest
from huggingface_hub.utils import _http

from data.tokenizing import load_tokenizer
from tests.tiny_models import load_encoder
from utils.runtime.errors import InputError


@pytest.mark.parametrize("load", [load_tokenizer, lambda name: load_encoder("rdot_nll_condenser", name)])
def test_a_name_without_a_network_ends_in_one_line(load, monkeypatch):
    attempts = []
    client = getattr(_http, "httpx2", None) or _http.httpx  # by the library's version

    def fail(self, *args: object, **kwargs: object) -> None:
        attempts.append(args)
        raise client.ConnectError("[Errno -2] Name or service not known")

    monkeypatch.setattr(client.Client, "send", fail)
    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)
    library, said = logging.getLogger("huggingface_hub"), io.StringIO()
    verbosity, handler = library.level, logging.StreamHandler(said)
    monkeypatch.setattr(library, "handlers", [handler])
    with pytest.raises(InputError, match="the hub that this machine can reach") as caught:
        load("nobody/no-such-model")
    assert len(attempts) > 1
    assert "\n" not in str(caught.value)
    assert (said.getvalue(), library.level) == ("", verbosity)
