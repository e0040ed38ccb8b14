"""Packed sequences give what transformers gives for padded ones."""

from collections import Counter

import numpy as np
import pytest
import torch

from model import attention
from model.attention import Window, biased_scores, packed_attention, ready_for_attention
from tests.model.test_placing import Called
from tests.tiny_models import padded_vectors, random_store, tiny_bert, tiny_roberta
from utils.batching import AttentionBlocks, PackedTokens, Sequences, pack

CPU = torch.device("cpu")


def packed_and_padded(tmp_path, pad_token_id, rows=17):
    """The same random texts twice: a pack sorted by length, and padded ids with their mask."""
    store = random_store(tmp_path / "s", rows, seed=4, pad_token_id=pad_token_id)
    order = np.argsort(store.lengths, kind="stable")
    texts = [torch.from_numpy(store[row].astype(np.int64)) for row in order]
    padded = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=pad_token_id)
    mask = torch.arange(padded.shape[1]) < torch.tensor([[len(text)] for text in texts])
    return pack([(Sequences(store), order)]), padded, mask.long()


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("make_encoder", [tiny_bert, tiny_roberta])
def test_a_pack_gives_the_vectors_and_gradients_of_padded_texts(tmp_path, make_encoder, blocks):
    encoder = make_encoder(layers=3).double()
    tokens, padded, mask = packed_and_padded(tmp_path, encoder.config.pad_token_id)
    assert len(tokens.runs) < len(tokens)
    if blocks:
        tokens.blocks = AttentionBlocks.of(tokens.lengths, CPU)
    packed, expected = encoder(tokens), padded_vectors(encoder, padded, mask)
    torch.testing.assert_close(packed, expected, rtol=1e-10, atol=1e-10)

    weights = torch.randn_like(expected)
    gradients = torch.autograd.grad((packed * weights).sum(), encoder.parameters())
    wanted = torch.autograd.grad((expected * weights).sum(), encoder.parameters())
    for got, want in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("mixed", [False, True])
def test_checkpointing_changes_no_gradient_with_dropout_on(tmp_path, mixed):
    gradients = []
    for checkpointed in (False, True):
        encoder = tiny_bert(layers=3, dropout=0.2).train()
        tokens, _, _ = packed_and_padded(tmp_path, 0)
        encoder.model.gradient_checkpointing = checkpointed
        first, *_, last = (layer.intermediate.dense for layer in encoder.model.encoder.layer)
        calls = {first: [], last: []}
        for module in calls:
            module.register_forward_pre_hook(lambda module, inputs, calls=calls: calls[module].append(inputs))
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            vectors = encoder(tokens)
        vectors.square().sum().backward()
        assert (len(calls[first]), len(calls[last])) == (2 if checkpointed else 1, 1)
        gradients.append([parameter.grad for parameter in encoder.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


@pytest.mark.parametrize("one_query", [False, True])
def test_blocks_give_what_runs_give(one_query):
    torch.manual_seed(0)
    lengths = torch.randint(1, 30, (23,)).tolist()
    tokens = PackedTokens(*[torch.zeros(0)] * 3, lengths)
    query, key, value = torch.randn(3, sum(lengths), 2, 4)
    query = query[: len(lengths)] if one_query else query
    runs = packed_attention(query, key, value, tokens)
    assert runs.shape == query.shape
    for blocks in (AttentionBlocks.of(lengths, CPU), AttentionBlocks.by_length(lengths, 8)):
        tokens.blocks = blocks
        torch.testing.assert_close(packed_attention(query, key, value, tokens), runs)


def test_blocks_take_few_launches_and_none_that_adds_up():
    lengths = torch.randint(1, 30, (23,)).tolist()
    tokens = PackedTokens(*[torch.zeros(0)] * 3, lengths, AttentionBlocks.of(lengths, CPU))
    parts = [torch.randn(sum(lengths), 2, 4, requires_grad=True) for _ in range(3)]
    packed_attention(*parts, tokens)  # makes the masks, which all layers share
    with Called() as forward:
        output = packed_attention(*parts, tokens)
    with Called() as backward:
        torch.autograd.grad(output, parts, torch.ones_like(output))
    moved = {"index_select": 1, "index_copy_": 3, "new_zeros": 3, "cat": 1}
    kernel = "_scaled_dot_product_flash_attention_for_cpu"
    assert Counter(forward.names) == moved | {kernel: 4}
    moved = {"index_select": 3, "index_copy_": 1, "new_zeros": 1, "cat": 3, "ones_like": 1}
    assert Counter(backward.names) == moved | {f"{kernel}_backward": 4}


@pytest.mark.parametrize("one_query", [False, True])
def test_the_installed_torchs_kernel_for_any_lengths_takes_what_it_is_given(one_query, monkeypatch):
    """By shapes alone, on the device meta: values are those of a GPU."""
    monkeypatch.setattr(attention, "has_varlen", lambda device: True)
    lengths = [3, 5, 5]
    tokens = PackedTokens(*[torch.zeros(0)] * 3, lengths)
    tokens.bounds = torch.empty(4, dtype=torch.int32, device="meta")
    parts = [torch.empty(13, 2, 8, dtype=torch.bfloat16, device="meta", requires_grad=True) for _ in range(3)]
    query = torch.empty(3, 2, 8, dtype=torch.bfloat16, device="meta", requires_grad=True) if one_query else parts[0]
    with Called() as called:
        output = packed_attention(query, *parts[1:], tokens, masks=None if one_query else Window(tokens, 4))
        gradients = torch.autograd.grad(output, [query, *parts[1:]], torch.ones_like(output))
    assert output.shape == query.shape
    assert [gradient.shape for gradient in gradients] == [query.shape, (13, 2, 8), (13, 2, 8)]
    assert {"torch_attn::_varlen_attn", "torch_attn::_varlen_attn_backward"} < set(called.names)


def test_dropout_falls_on_the_attention_and_keeps_its_mean():
    torch.manual_seed(0)
    lengths = [50] * 4
    query, key = torch.randn(2, 200, 2, 4)
    value = torch.ones(200, 2, 4)
    for blocks in (None, AttentionBlocks.of(lengths, CPU)):
        tokens = PackedTokens(*[torch.zeros(0)] * 3, lengths, blocks)
        dropped = packed_attention(query, key, value, tokens, p=0.3)
        assert dropped.std() > 0.05
        assert abs(dropped.mean() - 1) < 0.05


def test_long_texts_in_16_bits_have_no_matrix_of_scores(monkeypatch):
    monkeypatch.setattr(attention, "LONG", 32)
    torch.manual_seed(0)
    lengths = [3, 32, 33, 70]
    tokens = PackedTokens(*[torch.zeros(0)] * 3, lengths)
    parts = torch.randn(3, sum(lengths), 2, 4)
    for masks in (None, 5):
        expected = packed_attention(*parts, tokens, masks=masks and Window(tokens, masks))
        cheap = parts.bfloat16()
        blocks = ready_for_attention(tokens, cheap)
        with Called() as called:
            got = packed_attention(*cheap, blocks, masks=masks and Window(blocks, masks))
        assert Counter(called.names)["_scaled_dot_product_flash_attention_for_cpu"] == 2
        assert Counter(called.names)["_softmax"] == 1
        torch.testing.assert_close(got.float(), expected, atol=0.03, rtol=0)


def test_attention_with_dropout_that_drops_nothing_is_plain_attention(monkeypatch):
    torch.manual_seed(0)
    tokens = PackedTokens(*[torch.zeros(0)] * 3, [3, 5, 5])
    query, key, value = torch.randn(3, 13, 2, 4)
    plain = packed_attention(query, key, value, tokens)
    monkeypatch.setattr(attention, "dropout", lambda weights, p: weights)
    torch.testing.assert_close(packed_attention(query, key, value, tokens, p=0.3), plain)


def one_text_at_a_time(query, key, value, lengths, added):
    """Attention of each text by its definition, with `added` (…, longest, longest) to the scores."""
    outputs = []
    for q, k, v in zip(*(part.split(lengths) for part in (query, key, value)), strict=True):
        scores = torch.einsum("ihd,jhd->hij", q, k) / q.shape[-1] ** 0.5 + added[..., : len(q), : len(q)]
        outputs.append(torch.einsum("hij,jhd->ihd", scores.softmax(-1), v))
    return torch.cat(outputs)


@pytest.mark.parametrize("one_query", [False, True])
@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("kind", ["biased", "windowed"])
def test_masks_give_what_attention_by_its_definition_gives(kind, blocks, one_query, monkeypatch):
    torch.manual_seed(0)
    lengths = [1, 3, 3, 4, 5, 9, 9, 17]
    tokens = PackedTokens(*[torch.zeros(0)] * 3, lengths, AttentionBlocks.of(lengths, CPU) if blocks else None)
    query, key, value = torch.randn(3, sum(lengths), 2, 4, dtype=torch.float64).requires_grad_()
    added = torch.randn(2, 24, 24, dtype=torch.float64, requires_grad=True)
    if kind == "windowed":
        place = torch.arange(24)
        added = torch.zeros(24, 24).masked_fill((place[:, None] - place).abs() > 3, -torch.inf).requires_grad_()
    expected = one_text_at_a_time(query, key, value, lengths, added)
    first = torch.tensor(lengths).cumsum(0) - torch.tensor(lengths)
    given, expected = (query[first], expected[first]) if one_query else (query, expected)

    size = 24 if blocks else 17
    masks = Window(tokens, 3) if kind == "windowed" else biased_scores(tokens, added[:, :size, :size])
    wanted = [query, key, value] + [added] * (kind == "biased")
    weights = torch.randn_like(expected)
    monkeypatch.setattr(attention, "dropout", lambda weights, p: weights)
    for p in (0.0, 0.3):
        got = packed_attention(given, key, value, tokens, p, masks)
        torch.testing.assert_close(got, expected)
        ours, theirs = (
            torch.autograd.grad((output * weights).sum(), wanted, retain_graph=True) for output in (got, expected)
        )
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other)


def test_texts_within_the_window_have_no_mask_and_the_others_share_one():
    lengths = [3, 4, 5, 7]
    tokens = PackedTokens(*[torch.zeros(0)] * 3, lengths)
    *none, five, seven = Window(tokens, 3).masks
    assert none == [None, None]
    assert five.untyped_storage().data_ptr() == seven.untyped_storage().data_ptr()
    corners = biased_scores(tokens, bias := torch.randn(2, 7, 7))
    assert all(own.untyped_storage().data_ptr() == bias.untyped_storage().data_ptr() for own in corners)
    tokens.blocks = AttentionBlocks.of([3, 4, 5, 20], CPU)
    masks = Window(tokens, 8).masks
    assert [mask is present for mask, present in zip(masks, tokens.blocks.present, strict=True)] == [True] * 3 + [
        False
    ]
    assert all(mask.any(-1).all() for mask in Window(tokens, 2).masks), "padding sees something"
