"""What is saved gives our vectors in sentence-transformers, for every family and reading, and is read as it was."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import PreTrainedTokenizerFast

from data.tokenizing import write_token_store
from model import encoders
from model.encoders import Encoder
from model.families import FAMILIES
from model.reading import AUTO, HeadLayer, Reading, find_reading
from tests.tiny_run import PASSAGE_LENGTH, QUERY_LENGTH, save_random_checkpoint
from utils.batching import Sequences, pack
from utils.stores.checkpoint import fingerprint_of_weights
from utils.stores.token_store import TokenStore

TEXTS = ["The Cat is how BLUE?", "a", "", "Dog and Cat " * 40, " ".join(["sky"] * QUERY_LENGTH), "a dog"]
DENSE, NORM = HeadLayer("Dense", 16, 8, bias=False, activation="Tanh"), HeadLayer("LayerNorm", 8, 8)
PLAIN = HeadLayer("Dense", 16, 8)
READINGS = {
    "first token": Reading(),
    "mean, length 1, prompts": Reading("mean", True, "how: ", "blue dog ", scale=7.5),
    "mean, dense, length 1": Reading("mean", True, passage_prompt="a\nb ", head=(DENSE,)),
    "dense, norm, lowercased": Reading("cls", False, "HOW ", "", True, (PLAIN, NORM)),
}

every_family = pytest.mark.parametrize("name", FAMILIES)
every_reading = pytest.mark.parametrize("reading", READINGS.values(), ids=READINGS)


def encode(encoder: Encoder, tokenizer: PreTrainedTokenizerFast, folder: Path, kind: str, texts: list[str]):
    """The vectors of texts by way of a token store of queries or passages, as mining and evaluation make them."""
    reading, length = encoder.reading, PASSAGE_LENGTH if kind == "passage" else QUERY_LENGTH
    prepared = reading.passages if kind == "passage" else reading.queries
    rows = ((row, str(row), prepared(text)) for row, text in enumerate(texts))
    source = folder / kind
    source.write_text("of the texts")
    store = folder / f"{kind}-store"
    write_token_store(store, rows, tokenizer, length, source, prepared=prepared, label="texts")
    assert TokenStore(store).expect(tokenizer, length, prepared).meta.prompt == prepared.prompt
    with torch.inference_mode():
        return encoder.eval()(pack([(Sequences(TokenStore(store)), np.arange(len(texts)))])).numpy()


@every_family
@every_reading
def test_sentence_transformers_gives_our_vectors_and_we_those_of_what_it_saved_again(tmp_path, name, reading):
    checkpoint = save_random_checkpoint(tmp_path, name, reading)
    prints, vectors = [], []
    for folder in (checkpoint, tmp_path / "again"):
        own = find_reading(str(folder), AUTO)
        encoder, tokenizer = encoders.load_encoder(str(folder), own)
        (tmp_path / folder.name).mkdir(exist_ok=True)
        texts = tokenizer, tmp_path / folder.name
        vectors.append([encode(encoder, *texts, kind, TEXTS) for kind in ("query", "passage")])
        prints.append(fingerprint_of_weights(tmp_path / "none", encoder))
        model = SentenceTransformer(str(folder), device="cpu")
        assert model.similarity_fn_name == ("cosine" if reading.normalized else "dot")
        assert model.max_seq_length == PASSAGE_LENGTH
        queries, passages = model.encode_query(TEXTS), model.encode_document(TEXTS)
        np.testing.assert_allclose(queries, vectors[-1][0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(passages, vectors[-1][1], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(
            model.similarity(queries, passages), vectors[-1][0] @ vectors[-1][1].T, rtol=1e-5, atol=1e-4
        )
        if folder == checkpoint:
            assert str(own) == str(reading)
            model.save_pretrained(str(tmp_path / "again"))
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)
    assert prints[0] == prints[1]
