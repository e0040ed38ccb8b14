"""Every encoder family, over the table: values and gradients are those of transformers' own padded forward pass."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, PreTrainedModel

from model import attention
from model.dropout import Dropout, replace_dropout
from model.encoders import Encoder
from model.families import FAMILIES, find_family
from model.forward import last_hidden, pooled_vectors
from model.group_gradients import GroupGradients
from model.optimizers import OPTIMIZERS, make_optimizer
from model.reading import HeadLayer, Reading
from model.watched_layers import watched_layers
from tests.model.test_group_gradients import one_backward_pass_a_group
from tests.model.test_placing import Called
from tests.tiny_models import VOCABULARY, random_store, tiny_config, tiny_model
from tests.varlen import stand_in
from utils.batching import AttentionBlocks, PackedTokens, Sequences, pack
from utils.runtime.errors import InputError
from utils.stores.pretrained import longest_sequence

CPU = torch.device("cpu")
LENGTHS = [1, 2, 2, 5, 6, 7, 7, 12, 24, 24, 3]  # about ModernBERT's window of 4 tokens either way; runs and lone ones

every_family = pytest.mark.parametrize("name", FAMILIES)


def packed(lengths: list[int], blocks: bool = False, vocabulary: int = VOCABULARY) -> PackedTokens:
    """Random texts; `blocks` as on a GPU."""
    texts = np.random.default_rng(0).integers(5, vocabulary, size=sum(lengths))
    ends = np.cumsum(lengths)
    positions = np.arange(sum(lengths)) - np.repeat(ends - lengths, lengths)
    tokens = PackedTokens(*map(torch.from_numpy, (texts, positions, ends - lengths)), lengths)
    if blocks:
        tokens.blocks = AttentionBlocks.of(lengths, CPU)
        tokens.bounds = torch.tensor([0, *ends], dtype=torch.int32)
    return tokens


def padded_forward(model: PreTrainedModel, tokens: PackedTokens) -> list[Tensor]:
    """The last hidden states of each text, (length, H), by transformers' own forward pass of all, padded."""
    texts = tokens.input_ids.split(tokens.lengths)
    padding = model.config.pad_token_id
    padded = nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=padding)
    mask = (torch.arange(padded.shape[1]) < torch.tensor(tokens.lengths)[:, None]).long()
    hidden = model(padded, attention_mask=mask).last_hidden_state
    return [row[:length] for row, length in zip(hidden, tokens.lengths, strict=True)]


def assert_equal_with_gradients(got: Tensor, expected: Tensor, model: PreTrainedModel) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    weights = torch.randn_like(expected)
    ours, theirs = (
        torch.autograd.grad((output * weights).sum(), model.parameters(), retain_graph=True)
        for output in (got, expected)
    )
    for (name, _), one, other in zip(model.named_parameters(), ours, theirs, strict=True):
        scale = max(1.0, float(other.abs().max()))
        torch.testing.assert_close(
            one, other, rtol=1e-10, atol=1e-10 * scale, msg=lambda text, name=name: name + text
        )


@every_family
def test_a_copy_with_cheaper_weights_hands_on_their_type_from_layer_to_layer(name):
    reading = Reading("mean", normalized=True, head=(HeadLayer("Dense", 16, 8),))
    encoder, tokens = Encoder(tiny_model(tiny_config(name)), reading).eval(), packed(LENGTHS)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    cheaper = encoder.with_weights(torch.bfloat16)
    assert encoder.with_weights(torch.float32) is encoder
    assert {weight.dtype for weight in cheaper.model.parameters()} == {torch.bfloat16}
    assert torch.float32 == cheaper.head[0].weight.dtype
    assert all(buffer.dtype != torch.bfloat16 for buffer in cheaper.buffers()), "rotations' frequencies"
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert last_hidden(cheaper.model, cheaper.family, tokens).dtype == torch.bfloat16
        vectors, cheap = encoder(tokens), cheaper(tokens)
    assert cheap.dtype == torch.float32
    assert (vectors * cheap).sum(1).min() > 0.999
    torch.testing.assert_close(encoder.state_dict(), before, rtol=0, atol=0)
    assert encoder.double().with_weights(torch.bfloat16) is encoder.with_weights(torch.float32) is encoder


@every_family
@pytest.mark.parametrize("first_only", [False, True])
def test_in_mixed_precision_on_a_cpu_layers_hand_on_what_products_give_and_pad_texts(name, first_only, monkeypatch):
    model, family, tokens = tiny_model(tiny_config(name)), FAMILIES[name], packed(LENGTHS)
    expected, rows, attend = last_hidden(model, family, tokens, first_only), [], attention._attend_on_cpu
    monkeypatch.setattr(
        attention, "_attend_on_cpu", lambda q, k, *rest: rows.append(k.shape[2]) or attend(q, k, *rest)
    )
    with torch.autocast("cpu", torch.bfloat16):
        got = last_hidden(model, family, tokens, first_only)
    assert got.dtype == torch.bfloat16
    assert rows == [attention.ROW] * len(family.layers(model))
    assert (got - expected).norm() < 0.05 * expected.norm()
    with torch.autocast("cpu", torch.bfloat16):
        assert last_hidden(model.double(), family, tokens, first_only).dtype == torch.float64


@every_family
@pytest.mark.parametrize("blocks", [False, True], ids=["runs", "blocks"])
@pytest.mark.parametrize(
    ("lengths", "window"), [(LENGTHS, 8), ([3, 64, 65, 66, 67, 131, 150], 128)], ids=["short", "long"]
)
def test_values_and_gradients_are_those_of_padded_texts(name, blocks, lengths, window):
    model, tokens = tiny_model(tiny_config(name, window=window)).double(), packed(lengths, blocks)
    family, texts = FAMILIES[name], padded_forward(model, tokens)
    firsts, means = torch.stack([text[0] for text in texts]), torch.stack([text.mean(0) for text in texts])
    assert_equal_with_gradients(last_hidden(model, family, tokens), torch.cat(texts), model)
    assert_equal_with_gradients(last_hidden(model, family, tokens, first_only=True), firsts, model)
    assert_equal_with_gradients(pooled_vectors(model, family, tokens, "cls"), firsts, model)
    assert_equal_with_gradients(pooled_vectors(model, family, tokens, "mean"), means, model)


@every_family
@pytest.mark.parametrize("first_only", [False, True])
@pytest.mark.parametrize("lengths", [LENGTHS, [1] * 5], ids=["texts", "tokens"])
def test_torchs_kernel_for_any_lengths_gives_what_blocks_give(name, first_only, lengths, monkeypatch):
    model, tokens = tiny_model(tiny_config(name)).double(), packed(lengths, blocks=True)
    expected = last_hidden(model, FAMILIES[name], tokens, first_only)
    calls = stand_in(monkeypatch, torch.float64)
    assert_equal_with_gradients(last_hidden(model, FAMILIES[name], tokens, first_only), expected, model)
    queries = [len(tokens.input_ids)] * 2 + [len(tokens) if first_only else len(tokens.input_ids)]
    if name == "modernbert" and first_only and lengths == LENGTHS:
        queries.pop()  # its last layer has a window, which the kernel would lay about the last token
    assert calls == ([] if name == "mpnet" else queries), "MPNet has a bias"


@every_family
def test_in_16_bits_and_without_dropout_gpus_take_that_kernel(name, monkeypatch):
    model, tokens, calls = tiny_model(tiny_config(name, dropout=0.2)), packed(LENGTHS, True), stand_in(monkeypatch)
    assert tokens.bounds is not None
    expected = pooled_vectors(model.eval().double(), FAMILIES[name], tokens, "mean").detach()
    model.float()
    for dtype, training, own_dropout, taken in (
        (torch.bfloat16, False, True, True),
        (torch.float16, False, True, True),
        (torch.float32, False, True, False),
        (torch.bfloat16, True, True, False),
        (torch.bfloat16, True, False, True),
    ):
        calls.clear()
        if not own_dropout:
            for layer in FAMILIES[name].layers(model):
                FAMILIES[name].set_attention_dropout(layer, 0.0)
        with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            vectors = pooled_vectors(model.train(training), FAMILIES[name], tokens, "mean")
        assert len(calls) == 3 * (taken and name != "mpnet")
        if not training:
            assert float((vectors - expected).norm() / expected.norm()) < 0.05


@every_family
def test_no_gradient_is_added_up_by_index_on_a_gpu(name):
    model, tokens = tiny_model(tiny_config(name)), packed(LENGTHS, blocks=True)
    loss = last_hidden(model, FAMILIES[name], tokens, first_only=True).square().sum()
    with Called() as called:
        loss.backward()
    by_index = [n for n in called.names if "index_put" in n or "index_add" in n or "scatter_add" in n]
    assert by_index == []


@every_family
def test_a_text_may_fill_all_positions_and_no_more(name):
    config = tiny_config(name, layers=1, positions=40)
    model, family, longest = tiny_model(config).double(), FAMILIES[name], longest_sequence(config)
    tokens = packed([longest])
    torch.testing.assert_close(last_hidden(model, family, tokens), padded_forward(model, tokens)[0])
    if name != "modernbert":  # which has rotations for any place, but was not trained on longer texts
        with pytest.raises((IndexError, RuntimeError), match=r"out of (range|bounds)"):
            last_hidden(model, family, packed([longest + 1]))


@every_family
def test_tokens_beyond_65536_come_from_the_store_as_they_are(name, tmp_path):
    vocabulary = 70_000
    model = tiny_model(tiny_config(name, layers=1, vocabulary=vocabulary))
    tokens = pack([(Sequences(random_store(tmp_path / "s", 9, vocabulary=vocabulary)), np.arange(9))])
    assert tokens.input_ids.max() > 2**16
    expected = torch.cat(padded_forward(model, tokens))
    torch.testing.assert_close(last_hidden(model, FAMILIES[name], tokens), expected, rtol=1e-4, atol=1e-4)


@every_family
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_mixed_precision_is_near_double_precision(name, precision):
    model, family = tiny_model(tiny_config(name)).eval(), FAMILIES[name]
    for blocks in (False, True):
        tokens = packed(LENGTHS, blocks)
        with torch.no_grad(), torch.autocast("cpu", precision, enabled=precision != torch.float32):
            vectors = pooled_vectors(model.float(), family, tokens, "mean")
            exact = pooled_vectors(model.double(), family, tokens, "mean")
        assert vectors.dtype == torch.float32
        difference = float((vectors - exact).norm() / exact.norm())
        assert difference < (1e-5 if precision == torch.float32 else 0.05)


@every_family
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_recomputed_layers_change_no_gradient_with_dropout_on(name, pooling):
    gradients = []
    for checkpointed in (False, True):
        model, family = tiny_model(tiny_config(name, dropout=0.2)), FAMILIES[name]
        replace_dropout(model)
        model.gradient_checkpointing = checkpointed
        first, *_, last = (
            next(module for module in layer.modules() if isinstance(module, nn.Linear))
            for layer in family.layers(model)
        )
        calls = {first: 0, last: 0}
        for module in calls:
            module.register_forward_pre_hook(
                lambda module, inputs, calls=calls: calls.update({module: calls[module] + 1})
            )
        torch.manual_seed(0)
        pooled_vectors(model, family, packed(LENGTHS), pooling).square().sum().backward()
        assert (calls[first], calls[last]) == (2 if checkpointed else 1, 1)
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def dropouts_called(model: PreTrainedModel, run) -> list[str]:
    """The dropout modules that `run` calls, in order."""
    called = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: called.append(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Dropout)
    ]
    run()
    for hook in hooks:
        hook.remove()
    return called


@every_family
def test_the_fast_dropout_is_everywhere_where_transformers_has_its_own(name):
    model, tokens = tiny_model(tiny_config(name, dropout=0.2)), packed([5, 5])
    expected = dropouts_called(model, lambda: padded_forward(model, tokens))
    replace_dropout(model)
    assert all(type(module) is Dropout for module in model.modules() if isinstance(module, nn.Dropout))
    called = dropouts_called(model, lambda: last_hidden(model, FAMILIES[name], tokens))
    # MPNet's attention calls its dropout module; all others read its share, as packed_attention is told.
    assert called == [place for place in expected if not place.endswith("attention.attn.dropout")]
    assert len(called) > len(FAMILIES[name].layers(model))


@every_family
@pytest.mark.parametrize("first_only", [False, True])
@pytest.mark.parametrize("other", [None, 0.0, 0.4])
@pytest.mark.parametrize("blocks", [False, True], ids=["runs", "blocks"])
def test_attention_has_the_configurations_dropout_or_another_in_training_only(
    name, first_only, other, blocks, monkeypatch
):
    model, family, tokens = tiny_model(tiny_config(name, dropout=0.3)), FAMILIES[name], packed([5, 5, 24], blocks)
    config, expected, shares = model.config.to_dict(), last_hidden(model.eval(), family, tokens, first_only), []
    for layer in family.layers(model) if other is not None else ():
        family.set_attention_dropout(layer, other)
    assert model.config.to_dict() == config
    monkeypatch.setattr(nn.Dropout, "forward", lambda module, values: values)  # only attention's is left
    monkeypatch.setattr(attention, "dropout", lambda weights, p: shares.append(p) or weights)
    torch.testing.assert_close(last_hidden(model.train(), family, tokens, first_only), expected)
    share = 0.3 if other is None else other
    calls = len(tokens.blocks.present if blocks else tokens.runs) * len(family.layers(model))
    assert shares == [share] * calls * (share > 0)


@every_family
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_group_gradients_of_the_watched_layers_equal_one_backward_pass_a_group(name, pooling):
    model, tokens = tiny_model(tiny_config(name)).double(), packed(LENGTHS)
    groups = torch.tensor([0, 2, 1, 1, 1, 4, 4, 0, 2, 2, 4])
    layers = watched_layers(Encoder(model, Reading(pooling)), "base", 2)
    assert list(layers) == list(FAMILIES[name].layers(model))[-2:]
    losses = pooled_vectors(model, FAMILIES[name], tokens, pooling).sin().sum(1)
    expected = one_backward_pass_a_group(losses, groups, 5, list(layers.parameters()))
    losses.sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()

    watch = GroupGradients(layers, 5)
    with watch.rows(groups.repeat_interleave(torch.tensor(tokens.lengths)), groups):
        pooled_vectors(model, FAMILIES[name], tokens, pooling).sin().sum().backward()
    torch.testing.assert_close(watch.collect(), expected, rtol=1e-9, atol=1e-11 * float(expected.abs().max()))
    for place, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[place], rtol=1e-9, atol=1e-10)


@every_family
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_matrices_decay_and_biases_and_norms_do_not(name, optimizer):
    model = tiny_model(tiny_config(name))
    groups = make_optimizer(optimizer, model, 0.1, 0.5, 1e-6).param_groups
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    owners = {place: module for place, module in model.named_modules() if list(module.parameters(recurse=False))}
    for place, module in owners.items():
        for part, parameter in module.named_parameters(recurse=False):
            is_matrix = isinstance(module, nn.Linear | nn.Embedding) and part == "weight"
            assert decay[id(parameter)] == (0.5 if is_matrix else 0), f"{place}.{part}"


def test_another_architecture_is_refused_with_the_names_that_there_are():
    with pytest.raises(InputError, match=r"is a gpt2 model, .* bert, camembert, distilbert, modernbert, mpnet"):
        find_family(GPT2Config())
