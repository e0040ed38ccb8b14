"""Group gradients from one backward pass against one backward pass a group."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from model import group_gradients
from model.encoders import Encoder
from model.group_gradients import GroupGradients
from model.losses import LOSSES
from model.reading import HeadLayer, Reading
from model.retriever import Retriever
from tests.processes import run_processes
from tests.tiny_models import random_episode, random_store, samples_of, tiny_bert, tiny_config, tiny_model
from utils.batching import Sequences
from utils.samples import Blocks, Triplets, make_batch


def one_backward_pass_a_group(losses, groups, n_groups, parameters):
    """<∇L_g, ∇L_h> of L_g = the sum of the losses of group g, by K calls of autograd."""
    rows = []
    for group in range(n_groups):
        if (groups == group).any():
            gradients = torch.autograd.grad(losses[groups == group].sum(), parameters, retain_graph=True)
            rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
        else:
            rows.append(torch.zeros(sum(p.numel() for p in parameters), dtype=losses.dtype))
    return torch.stack(rows) @ torch.stack(rows).T


class SharedEncoder(nn.Module):
    """A BERT that encodes both sides of every sample: queries, and passages that several samples may share."""

    def __init__(self, seed, layers=2, hidden=16):
        super().__init__()
        self.bert = tiny_bert(layers=layers, hidden=hidden, seed=seed).model

    def encode(self, tokens, mask):
        return self.bert(tokens, attention_mask=mask).last_hidden_state[:, 0]

    def losses(self, batch, watch=None):
        queries, passages, pair, _ = batch
        vectors = []
        for tokens, mask, own in (queries, passages):
            if watch is None:
                vectors.append(self.encode(tokens, mask))
            else:
                with watch.rows(own):
                    vectors.append(self.encode(tokens, mask))
        query, passage = vectors
        return nn.functional.softplus(-(query[pair[:, 0]] * passage[pair[:, 1]]).sum(1) / 4)


def random_batch(generator, n_groups, samples):
    """Samples of random groups: padded queries and passages, each of one group, some serving several samples."""

    def side(groups_of_rows):
        lengths = generator.integers(1, 9, size=len(groups_of_rows))
        mask = torch.from_numpy((np.arange(9) < lengths[:, None]).astype(np.int64))
        tokens = torch.from_numpy(generator.integers(5, 120, size=mask.shape)) * mask
        return tokens, mask, torch.from_numpy(groups_of_rows)

    groups = generator.integers(0, n_groups, size=samples)
    query_of, passage_of, query_groups, passage_groups = [], [], [], []
    for sample, group in enumerate(groups):
        same = [s for s in range(sample) if groups[s] == group]
        if same and generator.random() < 0.5:
            query_of.append(query_of[same[0]])
        else:
            query_of.append(len(query_groups))
            query_groups.append(group)
        passage_of.append(len(passage_groups))
        passage_groups.append(group)
    pair = torch.tensor([query_of, passage_of]).T
    return side(np.array(query_groups)), side(np.array(passage_groups)), pair, torch.from_numpy(groups)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.integers(1, 8), st.integers(1, 14), st.sampled_from([300, 10**9]))
def test_products_and_gradients_equal_one_backward_pass_a_group_in_float64(seed, n_groups, samples, block_bytes):
    generator = np.random.default_rng(seed)
    model = SharedEncoder(seed % 7).double()
    batch = random_batch(generator, n_groups, samples)
    layers = model.bert.encoder.layer[-1:]
    watched = list(layers.parameters())
    losses = model.losses(batch)
    expected = one_backward_pass_a_group(losses, batch[3], n_groups, watched)
    losses.sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)

    watch = GroupGradients(layers, n_groups)
    before, group_gradients.BLOCK_BYTES = group_gradients.BLOCK_BYTES, block_bytes
    try:
        model.losses(batch, watch).sum().backward()
        products = watch.collect()
    finally:
        group_gradients.BLOCK_BYTES = before
    scale = expected.abs().max()
    torch.testing.assert_close(products, expected, rtol=1e-9, atol=1e-11 * float(scale))
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-9, atol=1e-12, msg=name)


def test_embeddings_are_watched_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(11, 6, padding_idx=3), nn.LayerNorm(6), nn.Linear(6, 4)).double()
    tokens, groups = torch.randint(0, 11, (7, 5)), torch.tensor([2, 0, 2, 3, 3, 0, 2])
    losses = model(tokens).square().sum((1, 2))
    expected = one_backward_pass_a_group(losses, groups, 5, list(model.parameters()))
    losses.sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    watch = GroupGradients(model, 5)
    with watch.rows(groups):
        model(tokens).square().sum().backward()
    torch.testing.assert_close(watch.collect(), expected, rtol=1e-10, atol=1e-10)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_a_row_may_be_a_single_token():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(11, 6), nn.Linear(6, 4)).double()
    tokens, groups = torch.randint(0, 11, (9,)), torch.tensor([2, 0, 2, 3, 3, 0, 2, 0, 0])
    losses = model(tokens).square().sum(1)
    expected = one_backward_pass_a_group(losses, groups, 5, list(model.parameters()))
    watch = GroupGradients(model, 5)
    with watch.rows(groups):
        model(tokens).square().sum().backward()
    torch.testing.assert_close(watch.collect(), expected, rtol=1e-10, atol=1e-10)


def test_modules_without_biases_may_be_called_twice_with_other_rows():
    torch.manual_seed(0)
    norm, linear = nn.LayerNorm(6, bias=False), nn.Linear(6, 4, bias=False)
    model = nn.Sequential(norm, linear).double()
    torch.nn.init.normal_(norm.weight)
    rows, firsts, groups = torch.randn(9, 6).double(), torch.tensor([0, 3, 4]), torch.tensor([2, 0, 2])

    def losses():
        sums = model(rows).sin().split([3, 1, 5])
        return torch.stack([part.sum() for part in sums]) * model(rows[firsts]).exp().sum(1)

    expected = one_backward_pass_a_group(losses(), groups, 4, list(model.parameters()))
    losses().sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    watch = GroupGradients(model, 4)
    with watch.rows(groups.repeat_interleave(torch.tensor([3, 1, 5])), groups):
        losses().sum().backward()
    torch.testing.assert_close(watch.collect(), expected, rtol=1e-10, atol=1e-10)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


READINGS = {
    "cls": Reading(),
    "cls, head, length 1": Reading(normalized=True, head=(HeadLayer("Dense", 16, 8), HeadLayer("LayerNorm", 8, 8))),
    "mean": Reading("mean"),
    "mean, length 1": Reading("mean", True),
    "mean, head, length 1": Reading("mean", True, head=(HeadLayer("Dense", 16, 8, False, "Tanh"),), scale=5.0),
}


@pytest.mark.parametrize("reading", READINGS.values(), ids=READINGS)
@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**31),
    n_groups=st.integers(1, 5),
    longest=st.sampled_from([1, 2, 12]),
    chunk_length=st.sampled_from([None, 1, 5]),
    cut=st.integers(1, 24),
    family=st.sampled_from(["bert", "modernbert"]),
    loss=st.sampled_from(list(LOSSES.values())),
)
def test_packed_samples_equal_one_backward_pass_a_cluster_in_float64(
    tmp_path_factory, reading, seed, n_groups, longest, chunk_length, cut, family, loss
):
    tmp_path = tmp_path_factory.mktemp("packed")
    queries = random_store(tmp_path / "q", 9, max(longest, 2), seed=seed % 97)  # random rows have at least 2 tokens
    passages = random_store(tmp_path / "p", 20, max(longest, 2), seed=seed % 89)
    episode = random_episode(9, 20, n_groups=n_groups, seed=seed, together=4)
    sequences = Sequences(queries, 1 if longest == 1 else None), Sequences(passages, chunk_length)
    samples = samples_of(loss, episode, queries, passages)
    if loss.samples is Blocks:
        cut = int(episode.block_starts[np.searchsorted(episode.block_starts, cut)])  # between two
    end = max(25, cut + 1) if loss.samples is Triplets else len(samples)
    batches = [make_batch(samples, part, *sequences) for part in (np.arange(cut), np.arange(cut, end)) if len(part)]

    torch.manual_seed(seed % 83)
    model = Retriever(Encoder(tiny_model(tiny_config(family)).eval(), reading).double(), loss=loss)
    layers = model.encoder.family.layers(model.encoder.model)[-2:]
    watched = [parameter for layer in layers for parameter in layer.parameters()]
    losses, clusters = torch.cat([model(batch) for batch in batches]), torch.cat([b.clusters for b in batches])
    expected = one_backward_pass_a_group(losses, clusters, n_groups, watched)
    losses.sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad(set_to_none=True)

    model.watch = GroupGradients(layers, n_groups)
    for batch in batches:
        model(batch).sum().backward()
    scale = float(expected.abs().max())
    torch.testing.assert_close(model.watch.collect(), expected, rtol=1e-9, atol=1e-11 * scale)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-11 * max(1.0, scale**0.5))


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.integers(1, 9), st.booleans(), st.booleans())
def test_groups_multiplied_together_give_what_one_product_a_group_gives(seed, n_groups, ascending, tokens):
    torch.manual_seed(seed)
    groups = torch.cat([torch.randint(-1, n_groups, (40,)), torch.full((seed % 90,), seed % n_groups)])
    groups = groups.sort().values if ascending else groups[torch.randperm(len(groups))]
    here = groups[groups >= 0].unique()
    if not len(here):
        return
    inner = (3,) if tokens else ()
    inputs, deltas = torch.randn(len(groups), *inner, 16).double(), torch.randn(len(groups), *inner, 24).double()
    layout = group_gradients._Layout(groups, here, inputs)
    expected = torch.stack(
        [deltas[groups == g, ..., 8:].flatten(0, -2).T @ inputs[groups == g].flatten(0, -2) for g in here]
    )

    a_group, grouped = torch.empty_like(expected), torch.empty_like(expected)
    sorted_rows = layout.sort(deltas)[..., 8:], layout.sort(inputs)
    group_gradients._add_a_product_a_group(a_group, *sorted_rows, layout, fresh=True)
    torch.testing.assert_close(a_group, expected)
    padded = group_gradients._padded_products(deltas[..., 8:], inputs, layout.padded)
    torch.testing.assert_close(torch.empty_like(expected).index_copy_(0, layout.padded.places, padded), expected)
    flat_deltas, flat_inputs = (values.flatten(0, -2).float() for values in sorted_rows)
    stops = layout.stops * (len(flat_inputs) // sum(layout.counts))
    grouped = nn.functional.grouped_mm(flat_deltas.T, flat_inputs, offs=stops)
    torch.testing.assert_close(grouped.double(), expected, rtol=1e-4, atol=1e-4)


def test_padding_less_than_doubles_groups_but_the_smallest():
    sizes = [1000, 700, 501, 499, 250, 249, 120, 3]
    given = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    padded = group_gradients._Layout(given, torch.arange(len(sizes)), torch.empty(0)).padded
    assert padded.classes == [(3, 1000), (2, 499), (1, 249), (2, 120)]
    assert padded.places.tolist() == [*range(len(sizes))]
    assert int(padded.real.sum()) == sum(sizes)


def test_rows_of_no_group_have_no_part():
    torch.manual_seed(0)
    model, inputs = nn.Linear(3, 2), torch.randn(4, 3)
    watch = GroupGradients([model], 2)
    with watch.rows(torch.tensor([1, -1, 0, -1])):
        model(inputs)[[0, 2]].square().sum().backward()
    products = watch.collect()
    watch.release()
    alone = GroupGradients([model], 2)
    with alone.rows(torch.tensor([1, 0])):
        alone_loss = model(inputs[[0, 2]]).square().sum()
    alone_loss.backward()
    torch.testing.assert_close(products, alone.collect())


def small_step(seed=0, layers=1, **options):
    """A model, its watch over the last layers, and a batch of 12 samples in 5 groups."""
    model = SharedEncoder(seed, layers=3)
    watch = GroupGradients(model.bert.encoder.layer[-layers:], 5, **options)
    return model, watch, random_batch(np.random.default_rng(seed), 5, 12)


def plain_step(seed=0, layers=1):
    model, watch, batch = small_step(seed, layers)
    model.losses(batch, watch).sum().backward()
    return watch.collect(), model


def test_accumulated_backward_passes_count_together():
    products, model = plain_step()
    gradients = [p.grad.clone() for p in model.parameters()]
    model, watch, batch = small_step()
    losses = model.losses(batch, watch)
    losses[:5].sum().backward(retain_graph=True)
    losses[5:].sum().backward()
    torch.testing.assert_close(watch.collect(), products)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-5)


def test_a_second_collect_starts_from_nothing():
    model, watch, batch = small_step()
    for _ in range(2):
        model.zero_grad(set_to_none=True)
        model.losses(batch, watch).sum().backward()
        products = watch.collect()
    assert torch.equal(products, plain_step()[0])
    assert not watch.collect().any()


def test_checkpointed_layers_give_the_same():
    products, plain = plain_step(layers=2)
    model, watch, batch = small_step(layers=2)
    model.bert.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    model.losses(batch, watch).sum().backward()
    torch.testing.assert_close(watch.collect(), products)
    for parameter, expected in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad)


def test_reentrant_checkpointing_is_refused():
    model = nn.Linear(3, 3)
    watch = GroupGradients([model], 1)
    inputs = torch.randn(2, 3, requires_grad=True)
    with watch.rows(torch.tensor([0, 0])), pytest.raises(RuntimeError, match="use_reentrant=False"):
        checkpoint(model, inputs, use_reentrant=True)


def test_a_compiled_model_gives_the_same():
    products, _ = plain_step()
    model, watch, batch = small_step()
    model.bert.forward = torch.compile(model.bert.forward, backend="eager")
    model.losses(batch, watch).sum().backward()
    torch.testing.assert_close(watch.collect(), products)


def test_bfloat16_autocast_gives_autograds_gradients():
    model, _, batch = small_step()
    plain = SharedEncoder(0, layers=3)
    with torch.autocast("cpu", torch.bfloat16):
        losses = plain.losses(batch)
    exact = one_backward_pass_a_group(losses, batch[3], 5, list(plain.bert.encoder.layer[-1:].parameters()))
    losses.sum().backward()
    model, watch, batch = small_step()
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.losses(batch, watch)
    losses.sum().backward()
    products = watch.collect()
    scale = exact.diagonal().sqrt().clamp(min=1e-9)
    torch.testing.assert_close(products / scale / scale[:, None], exact / scale / scale[:, None], rtol=0, atol=0.02)
    for parameter, expected in zip(model.parameters(), plain.parameters(), strict=True):
        difference = (parameter.grad - expected.grad).norm() / expected.grad.norm().clamp(min=1e-6)
        assert difference < 0.02


def test_gradients_differ_from_autograds_by_the_order_of_sums_only():
    model, watch, batch = small_step()
    model.losses(batch, watch).sum().backward()
    watch.collect()
    plain = SharedEncoder(0, layers=3)
    plain.losses(batch).sum().backward()
    names = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert all("layer.2" in name for name in names)
    assert len(names) == 16
    for (name, parameter), expected in zip(model.named_parameters(), plain.parameters(), strict=True):
        if name in names:
            torch.testing.assert_close(parameter.grad, expected.grad, rtol=1e-4, atol=1e-6)
        else:
            assert torch.equal(parameter.grad, expected.grad), name


def distributed_step(sketch_dim, known=False):
    """Each rank takes its part of the samples; the loss is scaled as DistributedDataParallel averages.

    `known`: nobody needs to ask which groups the others have.
    """
    model, watch, batch = small_step(layers=2, sketch_dim=sketch_dim)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    queries, passages, pair, _ = batch
    size, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    mine = np.array_split(np.arange(len(pair)), size)[rank]
    wrapped = DistributedDataParallel(Losses(model, watch))
    own = pair[mine]
    query_rows, query = own[:, 0].unique(return_inverse=True)
    passage_rows, passage = own[:, 1].unique(return_inverse=True)
    part = (
        tuple(value[query_rows] for value in queries),
        tuple(value[passage_rows] for value in passages),
        torch.stack([query, passage], dim=1),
        None,
    )
    (wrapped(part).sum() * size).backward()
    groups = [batch[3][part].unique() for part in np.array_split(np.arange(len(pair)), size)]
    return watch.collect(groups if known else None), [p.grad for p in model.parameters()]


class Losses(nn.Module):
    def __init__(self, model, watch):
        super().__init__()
        self.model, self.watch = model, watch

    def forward(self, batch):
        return self.model.losses(batch, self.watch)


@pytest.mark.parametrize(("processes", "known"), [(2, True), (3, False)])
def test_several_processes_give_what_one_gives_with_all_samples(processes, known):
    products, model = plain_step(layers=2)
    for got, gradients in run_processes(distributed_step, processes, None, known):
        torch.testing.assert_close(got, products, rtol=1e-4, atol=1e-5 * float(products.abs().max()))
        for gradient, parameter in zip(gradients, model.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-3, atol=1e-5)


def test_sketches_do_not_depend_on_the_number_of_processes_and_leave_gradients_exact():
    model, watch, batch = small_step(layers=2, sketch_dim=64)
    model.losses(batch, watch).sum().backward()
    products = watch.collect()
    for got, gradients in run_processes(distributed_step, 2, 64):
        torch.testing.assert_close(got, products, rtol=1e-4, atol=1e-5 * float(products.abs().max()))
        for gradient, parameter in zip(gradients, model.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-3, atol=1e-5)


def test_sketches_estimate_the_products_without_bias_and_with_the_error_that_is_told():
    exact, _ = plain_step(layers=2)
    norms = exact.diagonal().sqrt()
    cosines = exact / norms / norms[:, None]
    dimension, estimates = 128, []
    for seed in range(40):
        model, watch, batch = small_step(layers=2, sketch_dim=dimension)
        watch.release()
        watch = GroupGradients(model.bert.encoder.layer[-2:], 5, sketch_dim=dimension, seed=seed)
        model.losses(batch, watch).sum().backward()
        estimates.append(watch.collect() / norms / norms[:, None])
    errors = torch.stack(estimates) - cosines
    one = 1 / dimension**0.5
    assert errors.mean(0).abs().max() < 4 * 1.5 * one / 40**0.5
    assert 0.3 * one < errors.std(0).mean() < 1.6 * one


def test_what_cannot_be_watched_is_refused_by_name():
    for module, name in (
        (nn.Conv1d(2, 2, 1), "Conv1d"),
        (nn.MultiheadAttention(4, 2), "MultiheadAttention"),
        (nn.LayerNorm((2, 3)), "several dimensions"),
        (nn.Embedding(4, 2, sparse=True), "sparse"),
        (nn.ReLU(), "no trainable parameter"),
    ):
        with pytest.raises(TypeError, match=name):
            GroupGradients([nn.Sequential(module)], 2)
    shared = nn.Linear(3, 3)
    other = nn.Linear(3, 3)
    other.weight = shared.weight
    with pytest.raises(TypeError, match="shares a parameter with 0"):
        GroupGradients([shared, other], 2)


def test_wrong_use_is_refused_with_the_cure():
    model = nn.Linear(3, 2)
    watch = GroupGradients([model], 2)
    with pytest.raises(RuntimeError, match="outside rows"):
        model(torch.randn(4, 3))
    with torch.no_grad():
        model(torch.randn(4, 3))
    with watch.rows(torch.tensor([0, 1])), pytest.raises(RuntimeError, match="4 rows"):
        model(torch.randn(4, 3))
    with pytest.raises(ValueError, match="from -1 to 1"), watch.rows(torch.tensor([2])):
        pass
    two = torch.tensor([0, 1]), torch.tensor([1, 1])
    with pytest.raises(ValueError, match="two different groups of 2 rows"), watch.rows(*two):
        pass
    with pytest.raises(TypeError, match="wants the groups"), watch.rows():
        pass
    with watch.rows(torch.tensor([0, 1])):
        model(torch.randn(2, 3)).sum().backward()
    with pytest.raises(
        ValueError, match="rows of group 1 were recorded, and process 0 is not said to have any of it"
    ):
        watch.collect([torch.tensor([0])])
    with pytest.raises(ValueError, match="groups of 2 processes were given, and there are 1"):
        watch.collect([torch.tensor([0]), torch.tensor([1])])
    for other in (-1, 2):
        with pytest.raises(ValueError, match=f"process 0 is said to have rows of group {other}; there are 0 to 1"):
            watch.collect([torch.tensor([0, other])])
    inputs = torch.randn(2, 3)
    with watch.rows(torch.tensor([0, 1])):  # the refusals have left nothing behind
        output = model(inputs).sum()
    inputs += 1
    output.backward()
    with pytest.raises(RuntimeError, match="changed in place"):
        watch.collect()


def test_frozen_parameters_stay_frozen():
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    watch = GroupGradients([model], 2)
    with watch.rows(torch.tensor([0, 1])):
        model(torch.randn(2, 3)).sum().backward()
    watch.collect()
    assert model.bias.grad is None
    assert model.weight.grad is not None
    watch.release()
    assert model.weight.requires_grad
    assert not model.bias.requires_grad
