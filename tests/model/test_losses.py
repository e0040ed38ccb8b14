"""The losses: each is its plain formula, of texts encoded one at a time."""

import math

import numpy as np
import pytest
import torch

from model.encoders import Encoder
from model.losses import CONTRASTIVE, LOSSES, PAIRWISE, contrastive, pairwise_nll
from model.reading import Reading
from model.retriever import Retriever
from tests.tiny_models import (
    VOCABULARY,
    random_episode,
    random_qrels,
    random_store,
    samples_of,
    tiny_bert,
    tiny_roberta,
)
from utils.batching import Sequences, pack
from utils.samples import make_batch
from utils.stores.episode import Episode
from utils.stores.qrels import Qrels
from utils.stores.token_store import TokenizerInfo, TokenStore, create_token_store


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


@pytest.mark.parametrize("allowed", [1, 2, 5])
def test_the_contrastive_loss_is_the_negative_log_of_the_softmax_over_what_is_allowed(allowed):
    generator = np.random.default_rng(0)
    scores = generator.normal(scale=5, size=(50, 7))
    order = np.argsort(generator.random((50, 6)), axis=1) + 1
    counts = np.zeros((50, 7), dtype=bool)
    counts[:, 0] = True
    np.put_along_axis(counts, order[:, : allowed - 1], True, axis=1)
    expected = [
        -math.log(math.exp(line[0]) / sum(math.exp(score) for score, yes in zip(line, own, strict=True) if yes))
        for line, own in zip(scores, counts, strict=True)
    ]
    leaf = torch.tensor(scores, requires_grad=True)
    losses = contrastive(leaf, torch.from_numpy(counts))
    assert losses.detach().numpy() == pytest.approx(expected, rel=1e-12, abs=1e-12)
    losses.sum().backward()
    assert leaf.grad.isfinite().all()
    assert (leaf.grad[~torch.from_numpy(counts)] == 0).all()


def test_of_one_negative_the_contrastive_loss_is_the_pairwise_one_next_to_zero_too():
    scores = torch.tensor([[900.0, 0.0], [-900.0, 0.0], [30.0, 0.0], [0.3, 0.1]])
    both = torch.ones(4, 2, dtype=torch.bool)
    assert torch.equal(contrastive(scores, both), pairwise_nll(scores[:, 0], scores[:, 1]))
    assert contrastive(scores, both)[2] > 0
    assert contrastive(scores.bfloat16(), both).dtype == torch.float32


def plain_losses(encoder, queries, passages, episode, qrels, loss, samples, chunk_length=None, scale=1.0):
    """Each sample alone, from texts encoded one at a time; scores times `scale`."""

    def vectors(store, row, chunk_length=None):
        sequences = Sequences(store, chunk_length)
        pieces = range(sequences.row_starts[row], sequences.row_starts[row + 1])
        return torch.cat([encoder(pack([(sequences, np.array([piece]))])) for piece in pieces])

    def score(query_row, passage_row):
        query = vectors(queries, query_row)[0]
        return scale * (vectors(passages, passage_row, chunk_length) @ query).max()

    def negatives_of(line):
        return episode.negative_rows[episode.starts[line] : episode.starts[line + 1]].tolist()

    def text(store, row):
        return tuple(store[row].tolist())

    losses = []
    for sample in samples:
        line = sample if loss is CONTRASTIVE else np.searchsorted(episode.starts, sample, side="right") - 1
        query, positive = episode.query_rows[line], episode.positive_rows[line]
        if loss is PAIRWISE:
            others = [episode.negative_rows[sample]]
        else:
            block = np.searchsorted(episode.block_starts, line, side="right") - 1
            lines = range(episode.block_starts[block], episode.block_starts[block + 1])
            found = {row for own in lines for row in (int(episode.positive_rows[own]), *negatives_of(own))}
            found = {text(passages, row): row for row in found}.values()
            relevant = [p for q, p, grade in qrels if text(queries, q) == text(queries, query) and grade > 0]
            known = {text(passages, row) for row in (positive, *relevant)} | {text(queries, query)}
            others = [row for row in found if text(passages, row) not in known]
        own = score(query, positive)
        losses.append(torch.log1p(sum(torch.exp(score(query, row) - own) for row in others)) if others else own * 0)
    return torch.stack(losses)


def assert_equal_with_gradients(shared, alone, encoder):
    torch.testing.assert_close(shared, alone, rtol=1e-9, atol=1e-11)
    gradients = torch.autograd.grad(shared.sum(), encoder.parameters())
    expected = torch.autograd.grad(alone.sum(), encoder.parameters())
    largest = max(float(gradient.abs().max()) for gradient in expected)
    for got, want in zip(gradients, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-9 * largest)


def stores_with_equal_texts(folder, pad_token_id=0):
    """Six queries and nine passages; the last of each has the text of the first, and one passage that of a query."""
    queries, passages = (
        [store[row].tolist() for row in range(len(store))]
        for store in (random_store(folder / "q", 6, seed=1), random_store(folder / "p", 9, seed=2))
    )
    queries[5], passages[8], passages[4] = queries[0], passages[0], queries[2]
    tokenizer = TokenizerInfo("random", "0" * 64, VOCABULARY, pad_token_id)
    for name, rows in (("queries", queries), ("passages", passages)):
        with create_token_store(folder / name, tokenizer, 24, folder / "q.txt") as writer:
            writer.append([str(row) for row in range(len(rows))], rows)
    return TokenStore(folder / "queries"), TokenStore(folder / "passages")


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("chunk_length", [None, 10])
def test_sharing_encoded_texts_equals_encoding_every_sample_alone(tmp_path, chunk_length, loss):
    encoder = tiny_bert() if chunk_length is None else tiny_roberta()
    encoder.double()
    queries, passages = stores_with_equal_texts(tmp_path, encoder.config.pad_token_id)
    episode = random_episode(6, 9, n_groups=2, lines=20, together=3)
    qrels = random_qrels(episode, 9)
    samples = samples_of(loss, episode, queries, passages, qrels)
    taken = np.arange(5, 37) if loss is PAIRWISE else np.arange(episode.block_starts[2], len(samples))
    batch = make_batch(samples, taken, Sequences(queries), Sequences(passages, chunk_length))

    shared = Retriever(encoder, loss=loss)(batch)
    alone = plain_losses(encoder, queries, passages, episode, qrels, loss, taken, chunk_length)
    assert len(batch.tokens) < 2 * len(taken) or loss is CONTRASTIVE
    assert_equal_with_gradients(shared, alone, encoder)


def test_equal_texts_count_once_and_what_is_relevant_or_equals_it_or_the_query_does_not(tmp_path):
    queries, passages = stores_with_equal_texts(tmp_path)
    none = np.zeros(3, dtype=np.int64)
    episode = Episode(  # passages 0 and 8 have one text, and passage 4 that of query 2
        query_rows=np.array([0, 1, 2]),
        positive_rows=np.array([0, 1, 2]),
        negative_rows=np.array([4, 8, 5]),
        starts=np.arange(4),
        weights=np.ones(3, np.float32),
        clusters=none,
        n_groups=1,
        block_starts=np.array([0, 3]),
    )

    def taken(*judgments: tuple[int, int, int]) -> list[list[int]]:
        samples = samples_of(CONTRASTIVE, episode, queries, passages, Qrels.of(judgments))
        lines, rows, allowed = samples.candidates(np.arange(3))
        assert lines.tolist() == [0, 1, 2]
        assert rows[:, 0].tolist() == [0, 1, 2]
        return [row[own].tolist() for row, own in zip(rows, allowed, strict=True)]

    judgments = (0, 0, 1), (1, 1, 2), (1, 5, 1), (1, 2, 0), (2, 2, 1)
    assert taken(*judgments) == [[0, 1, 2, 4, 5], [1, 0, 2, 4], [2, 0, 1, 5]]
    # What is relevant to query 5, which has the text of query 0, is so to that.
    assert taken(*judgments, (5, 5, 1))[0] == [0, 1, 2, 4]
    # A mined file from elsewhere may have positives that nobody judged: they count once, by their texts.
    assert taken((1, 5, 1)) == [[0, 1, 2, 4, 5], [1, 0, 2, 4], [2, 0, 1, 5]]


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_weights_of_the_mined_lines_scale_the_losses(tmp_path, loss):
    queries, passages = random_store(tmp_path / "q", 6, seed=1), random_store(tmp_path / "p", 9, seed=2)
    episode = random_episode(6, 9, lines=10, together=3)
    samples = samples_of(loss, episode, queries, passages)
    batch = make_batch(samples, np.arange(10), Sequences(queries), Sequences(passages))
    model = Retriever(tiny_bert(), loss=loss)
    plain = model(batch)
    batch.weights = torch.linspace(0.1, 1, 10)
    torch.testing.assert_close(model(batch), plain * batch.weights)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize(("normalized", "given", "scale"), [(False, None, 1), (True, None, 20), (True, 7.5, 7.5)])
def test_the_loss_multiplies_scores_with_the_scale_and_its_gradient_is_that_of_the_plain_formula(
    tmp_path, pooling, normalized, given, scale, loss
):
    queries, passages = random_store(tmp_path / "q", 6, seed=1), random_store(tmp_path / "p", 9, seed=2)
    episode = random_episode(6, 9, lines=10, together=3)
    qrels = random_qrels(episode, 9)
    samples, taken = samples_of(loss, episode, queries, passages, qrels), np.arange(10)
    encoder = Encoder(tiny_bert().model, Reading(pooling, normalized, scale=given)).double()
    shared = Retriever(encoder, loss=loss)(make_batch(samples, taken, Sequences(queries), Sequences(passages)))
    alone = plain_losses(encoder, queries, passages, episode, qrels, loss, taken, scale=scale)
    assert_equal_with_gradients(shared, alone, encoder)


def test_vectors_and_what_is_kept_of_them_know_no_scale(tmp_path):
    tokens = pack([(Sequences(random_store(tmp_path / "q", 6)), np.arange(6))])
    one, twenty = (Encoder(tiny_bert().model, Reading("mean", True, scale=scale)) for scale in (1.0, 20.0))
    assert torch.equal(one(tokens), twenty(tokens))
    assert one.reading.vectors == twenty.reading.vectors
