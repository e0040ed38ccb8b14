"""The pairwise loss, and that sharing encoded texts changes nothing."""

import math

import numpy as np
import pytest
import torch

from model.encoders import Encoder
from model.reading import Reading
from model.triplets import TripletModel, pairwise_nll
from tests.tiny_models import random_episode, random_store, tiny_bert, tiny_roberta
from utils.batching import Sequences, make_triplet_batch, pack


def test_pairwise_nll_is_the_negative_log_of_the_softmax_of_two_scores():
    generator = np.random.default_rng(0)
    positive, negative = generator.normal(scale=5, size=(2, 50))
    expected = [-math.log(math.exp(p) / (math.exp(p) + math.exp(n))) for p, n in zip(positive, negative, strict=True)]
    got = pairwise_nll(torch.tensor(positive), torch.tensor(negative))
    assert got.numpy() == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_pairwise_nll_is_finite_for_scores_far_apart_and_in_half_precision():
    losses = pairwise_nll(torch.tensor([900.0, -900.0], dtype=torch.bfloat16), torch.tensor([0.0, 0.0]))
    assert losses.dtype == torch.float32
    assert losses[0] == 0
    assert losses[1] == pytest.approx(900, rel=0.01)


def plain_losses(encoder, store_queries, store_passages, episode, triplets, chunk_length=None, scale=1.0):
    """Each triplet alone: its query, positive and negative encoded one at a time; scores times `scale`."""

    def vectors(store, row, chunk_length=None):
        sequences = Sequences(store, chunk_length)
        pieces = range(sequences.row_starts[row], sequences.row_starts[row + 1])
        return torch.cat([encoder(pack([(sequences, np.array([piece]))])) for piece in pieces])

    losses = []
    for triplet in triplets:
        line = np.searchsorted(episode.starts, triplet, side="right") - 1
        query = vectors(store_queries, episode.query_rows[line])[0]
        positive = (vectors(store_passages, episode.positive_rows[line], chunk_length) @ query).max()
        negative = (vectors(store_passages, episode.negative_rows[triplet], chunk_length) @ query).max()
        losses.append(torch.log1p(torch.exp(scale * (negative - positive))))
    return torch.stack(losses)


def assert_equal_with_gradients(shared, alone, encoder):
    torch.testing.assert_close(shared, alone, rtol=1e-12, atol=1e-12)
    gradients = torch.autograd.grad(shared.sum(), encoder.parameters())
    expected = torch.autograd.grad(alone.sum(), encoder.parameters())
    for got, want in zip(gradients, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("chunk_length", [None, 10])
def test_sharing_encoded_texts_equals_encoding_every_triplet_alone(tmp_path, chunk_length):
    encoder = tiny_bert() if chunk_length is None else tiny_roberta()
    encoder.double()
    queries = random_store(tmp_path / "queries", 6, seed=1, pad_token_id=encoder.config.pad_token_id)
    passages = random_store(tmp_path / "passages", 9, seed=2, pad_token_id=encoder.config.pad_token_id)
    episode = random_episode(6, 9, n_groups=3)
    triplets = np.arange(5, 37)
    batch = make_triplet_batch(episode, triplets, Sequences(queries), Sequences(passages, chunk_length))

    shared = TripletModel(encoder)(batch)
    alone = plain_losses(encoder, queries, passages, episode, triplets, chunk_length)
    assert len(batch.tokens) < 2 * len(triplets)
    assert_equal_with_gradients(shared, alone, encoder)


def test_weights_of_the_mined_lines_scale_the_losses(tmp_path):
    encoder = tiny_bert()
    queries, passages = random_store(tmp_path / "q", 6, seed=1), random_store(tmp_path / "p", 9, seed=2)
    episode = random_episode(6, 9)
    batch = make_triplet_batch(episode, np.arange(10), Sequences(queries), Sequences(passages))
    model = TripletModel(encoder)
    plain = model(batch)
    batch.weights = torch.linspace(0.1, 1, 10)
    torch.testing.assert_close(model(batch), plain * batch.weights)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize(("normalized", "given", "scale"), [(False, None, 1), (True, None, 20), (True, 7.5, 7.5)])
def test_the_loss_multiplies_scores_with_the_scale_and_its_gradient_is_that_of_the_plain_formula(
    tmp_path, pooling, normalized, given, scale
):
    queries, passages = random_store(tmp_path / "q", 6, seed=1), random_store(tmp_path / "p", 9, seed=2)
    episode, triplets = random_episode(6, 9), np.arange(10)
    encoder = Encoder(tiny_bert().model, Reading(pooling, normalized, scale=given)).double()
    shared = TripletModel(encoder)(make_triplet_batch(episode, triplets, Sequences(queries), Sequences(passages)))
    alone = plain_losses(encoder, queries, passages, episode, triplets, scale=scale)
    assert_equal_with_gradients(shared, alone, encoder)


def test_vectors_and_what_is_kept_of_them_know_no_scale(tmp_path):
    tokens = pack([(Sequences(random_store(tmp_path / "q", 6)), np.arange(6))])
    one, twenty = (Encoder(tiny_bert().model, Reading("mean", True, scale=scale)) for scale in (1.0, 20.0))
    assert torch.equal(one(tokens), twenty(tokens))
    assert one.reading.vectors == twenty.reading.vectors
