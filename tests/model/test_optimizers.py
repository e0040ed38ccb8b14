"""Learning rates by the rule, and which parameters decay."""

import pytest
import torch

from model.optimizers import LearningRate, make_optimizer
from utils.runtime.errors import InputError


def test_an_episode_warms_up_to_its_peak_and_decays_to_zero():
    rate = LearningRate(1.0, episode_start=0, warmup_steps=10, num_training_steps=110, total_training_steps=1)
    assert [rate.at(step) for step in (0, 5, 10, 60, 110, 200)] == pytest.approx([0, 0.5, 1, 0.5, 0, 0])


def test_the_peaks_of_later_episodes_sink_to_a_fifth():
    peaks = [
        LearningRate(2.0, start, warmup_steps=0, num_training_steps=100, total_training_steps=1000).at(start)
        for start in (0, 100, 500, 900)
    ]
    assert peaks == pytest.approx([2.0, 1.8, 1.0, 0.4])


def test_each_of_the_published_episodes_warms_up_and_decays_from_its_own_first_step():
    shapes = []
    for start, peak in ((0, 1.0), (45_000, 0.85), (90_000, 0.70)):
        rate = LearningRate(5e-6, start, 3_000, num_training_steps=60_000, total_training_steps=300_000)
        assert rate.at(start + 3_000) == pytest.approx(5e-6 * peak)
        shapes.append([rate.at(start + step) / (5e-6 * peak) for step in range(0, 45_001, 1_500)])
    assert shapes[0][:3] == pytest.approx([0, 0.5, 1])
    assert shapes[0][-1] == pytest.approx(15 / 57)  # what is left where the episode ends: 26%
    assert shapes[1] == pytest.approx(shapes[0])
    assert shapes[2] == pytest.approx(shapes[0])


@pytest.mark.parametrize("name", ["lamb", "adamW"])
def test_biases_and_layer_norms_do_not_decay(name):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    optimizer = make_optimizer(name, model, 0.1, 0.5, 1e-6)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert [decay[id(p)] for p in model.parameters()] == [0.5, 0, 0, 0]


def test_lamb_follows_its_definition():
    weight = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
    module = torch.nn.Module()
    module.weight = weight
    optimizer = make_optimizer("lamb", module, 0.1, 0.01, 1e-6)
    w, m, v = weight.detach().double(), torch.zeros(1, 2).double(), torch.zeros(1, 2).double()
    for gradient in ([[1.0, -2.0]], [[0.5, 0.25]]):
        g = torch.tensor(gradient).double()
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        update = m / (v.sqrt() + 1e-6) + 0.01 * w
        w = w - 0.1 * (w.norm() / update.norm()) * update
        weight.grad = g.float()
        optimizer.step()
    torch.testing.assert_close(weight.detach().double(), w, rtol=1e-5, atol=1e-6)


def test_adam_w_follows_its_definition():
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
    optimizer = make_optimizer("adamW", module, 0.1, 0.01, 1e-6)
    w, m, v = module.weight.detach().double(), torch.zeros(1, 2).double(), torch.zeros(1, 2).double()
    for step, gradient in enumerate(([[1.0, -2.0]], [[0.5, 0.25]]), start=1):
        g = torch.tensor(gradient).double()
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        w = w - 0.1 * (0.01 * w + m / (1 - 0.9**step) / ((v / (1 - 0.999**step)).sqrt() + 1e-6))
        module.weight.grad = g.float()
        optimizer.step()
    torch.testing.assert_close(module.weight.detach().double(), w, rtol=1e-5, atol=1e-6)


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(InputError, match="lamb, adamW"):
        make_optimizer("sgd", torch.nn.Linear(1, 1), 0.1, 0, 1e-6)
