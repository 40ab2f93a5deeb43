"""Attacks: they stay in their ball and in the range of pixels, raise the loss, and leave parameters alone."""

import pytest
import torch
from torch import nn

from hf_clipplus.ops.attack import attack_embeddings, attack_pixels, row_norms


@pytest.fixture
def problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 36, 5))
    pixels = torch.rand(6, 3, 8, 8)
    pixels[0], pixels[1] = 0.0, 1.0  # at the ends of the range
    labels = torch.arange(6) % 5
    return model, pixels, lambda found: nn.functional.cross_entropy(model(found), labels)


@pytest.mark.parametrize("steps", [1, 4])
def test_pixels(problem, steps):
    model, pixels, loss_of = problem
    noise = 2 * torch.rand_like(pixels) - 1
    found = attack_pixels(loss_of, pixels, noise, radius=0.05, steps=steps)
    change = (found - pixels).abs()
    assert 0.045 < change.max() <= 0.05 + 1e-6
    assert found.min() >= 0
    assert found.max() <= 1
    random = loss_of((pixels + 0.05 * noise).clamp(0, 1))
    assert loss_of(found) > max(random, loss_of(pixels)) + 0.03
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not found.requires_grad


def test_more_steps_find_more(problem):
    _, pixels, loss_of = problem
    losses = [loss_of(attack_pixels(loss_of, pixels, torch.zeros_like(pixels), radius=0.1, steps=n)) for n in (1, 8)]
    assert losses[1] > losses[0]


def test_embeddings():
    torch.manual_seed(0)
    layers = [nn.Linear(5, 3), nn.Linear(7, 3)]
    places = [torch.randn(4, 2, 5), torch.randn(6, 3, 7)]
    noise = [torch.randn_like(part) for part in places]
    noise = [part / row_norms(part) for part in noise]
    radii = [torch.tensor([0.1, 0.2, 0.3, 0.0]), torch.full((6,), 0.5)]

    def loss_of(changes):
        first, second = (
            layer(part + change).tanh() for layer, part, change in zip(layers, places, changes, strict=True)
        )
        return first.square().mean() + second.square().mean()

    found = attack_embeddings(loss_of, noise, radii, steps=5)
    for part, radius in zip(found, radii, strict=True):
        assert (row_norms(part).flatten() <= radius + 1e-6).all()
    assert (row_norms(found[0]).flatten()[:3] > 0.9 * radii[0][:3]).all()
    nothing = [torch.zeros_like(part) for part in places]
    start = [radius.view(-1, 1, 1) * part for radius, part in zip(radii, noise, strict=True)]
    assert loss_of(found) > max(loss_of(nothing), loss_of(start)) + 0.02
    assert all(parameter.grad is None for layer in layers for parameter in layer.parameters())
