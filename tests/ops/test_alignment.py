"""The alignment metrics against loops over cells and classes, and at the edges: length 1, half precision, zeros."""

import importlib.util
from pathlib import Path

import pytest
import torch

from hf_clipplus.ops.alignment import (
    average_by_class,
    bi_mhm,
    frame_distances,
    frame_tuples,
    mean_distances,
    otam,
    otam_path,
    project_tuples,
    sinusoidal_positions,
    trx_distances,
)

_SPEC = importlib.util.spec_from_file_location(
    "alignment_reference", Path(__file__).parents[2] / "benchmarks" / "alignment_reference.py"
)
reference = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(reference)


@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (5, 7), (7, 4), (1, 6), (6, 1), (1, 1), (2, 2), (16, 16)])
@pytest.mark.parametrize("lam", [0.1, 0.5])
@pytest.mark.parametrize("both", [True, False])
def test_otam_is_the_recurrence_cell_by_cell(rows, columns, lam, both, seeded):
    distances = torch.rand(2, 3, rows, columns, dtype=torch.float64).mul(1.5).requires_grad_()
    by_cells = reference.otam_both_by_cells if both else reference.otam_by_cells
    weight = torch.rand(2, 3, dtype=torch.float64)
    found, expected = otam(distances, lam=lam, both_directions=both), by_cells(distances, lam)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    grads = [torch.autograd.grad((each * weight).sum(), distances)[0] for each in (found, expected)]
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-12)


def test_otam_gradient_is_that_of_its_values(seeded):
    distances = torch.rand(2, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda d: otam(d, lam=0.3), distances)


@pytest.mark.parametrize("lam", [0.05, 0.1, 0.5])
@pytest.mark.parametrize("level", [0.0, 1.0, 2.0, -1.0, 1e4])
def test_otam_is_finite_where_the_exponential_form_is_not(lam, level, seeded):
    distances = (level + torch.rand(3, 64, 64)).requires_grad_()
    found = otam(distances, lam=lam)
    found.sum().backward()
    assert found.isfinite().all()
    assert distances.grad.isfinite().all()
    assert distances.grad.min() >= 0
    assert distances.grad.sum() > 0


def test_equal_frames_at_both_ends_cost_nothing_and_order_counts():
    frames = torch.eye(8)[None]
    forward, backward = (otam(frame_distances(frames, other, eps=0.0), lam=0.01) for other in (frames, frames.flip(1)))
    assert forward.item() == pytest.approx(0.0, abs=0.3)
    assert backward.item() > 5
    assert bi_mhm(frame_distances(frames, frames.flip(1), eps=0.0)).item() == pytest.approx(0.0, abs=1e-5)


def test_otam_takes_any_leading_dimensions_and_each_pair_alone(seeded):
    distances = torch.rand(2, 3, 4, 6, 5)
    found = otam(distances)
    assert found.shape == (2, 3, 4)
    torch.testing.assert_close(found[1, 2, 3], otam(distances[1, 2, 3]))
    assert otam(torch.rand(0, 4, 4)).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_are_computed_in_float32(dtype, seeded):
    queries, prototypes = torch.randn(2, 6, 16), torch.randn(3, 6, 16)
    expected = otam(frame_distances(queries.to(dtype).float(), prototypes.to(dtype).float()))
    found = otam(frame_distances(queries.to(dtype), prototypes.to(dtype)))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    outside = otam(frame_distances(queries, prototypes))
    with torch.autocast("cpu", dtype):
        torch.testing.assert_close(otam(frame_distances(queries, prototypes)), outside)


@pytest.mark.parametrize("eps", [0.0, 0.01])
def test_a_frame_of_zeros_has_finite_distances_and_gradients(eps):
    queries, prototypes = torch.zeros(1, 2, 4, requires_grad=True), torch.ones(1, 2, 4, requires_grad=True)
    distances = frame_distances(queries, prototypes, eps=eps)
    assert torch.equal(distances, torch.ones(1, 1, 2, 2))
    distances.sum().backward()
    assert queries.grad.isfinite().all()
    assert prototypes.grad.isfinite().all()


def test_the_path_of_equal_videos_is_the_diagonal(seeded):
    frames = torch.eye(6)[None]
    path = otam_path(frame_distances(frames, frames)[0, 0], lam=0.05)
    assert path.shape == (6, 6)
    assert torch.equal(path.argmax(1), torch.arange(6))
    assert path.diagonal().min() > 0.9


def test_mean_distance_does_not_see_the_order(seeded):
    queries, prototypes = torch.randn(3, 5, 8), torch.randn(2, 7, 8)
    shuffled = queries[:, torch.randperm(5)]
    torch.testing.assert_close(mean_distances(queries, prototypes), mean_distances(shuffled, prototypes))
    assert mean_distances(queries, prototypes).shape == (3, 2)


def test_average_by_class_takes_any_order_and_unequal_shots(seeded):
    values, labels = torch.randn(2, 5, 3, 4), torch.tensor([[1, 0, 1, 1, 2], [2, 1, 0, 0, 1]])
    found = average_by_class(values, labels, 3)
    expected = torch.stack(
        [
            torch.stack([row[own == label].mean(0) for label in range(3)])
            for row, own in zip(values, labels, strict=True)
        ]
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("cardinality", [1, 2, 3, 5])
@pytest.mark.parametrize("labels", [[1, 0, 2, 0, 1, 2], [2, 0, 1, 1, 1, 0]])
def test_trx_is_the_loop_over_classes(cardinality, labels, seeded):
    frames, dim, width, labels = 5, 6, 7, torch.tensor(labels)
    queries, supports = (
        torch.randn(3, frames, dim, dtype=torch.float64),
        torch.randn(6, frames, dim, dtype=torch.float64),
    )
    sizes = {"key_weight": (width, cardinality * dim), "key_bias": (width,), "value_bias": (width,)}
    sizes |= {"value_weight": sizes["key_weight"], "norm_weight": (width,), "norm_bias": (width,)}
    weights = {name: torch.randn(size, dtype=torch.float64) for name, size in sizes.items()}
    tuples = frame_tuples(frames, cardinality)

    def layers(features):
        keys = project_tuples(features, weights["key_weight"], weights["key_bias"], tuples)
        norms = (weights["norm_weight"], weights["norm_bias"])
        values = project_tuples(features, weights["value_weight"], weights["value_bias"], tuples)
        return torch.nn.functional.layer_norm(keys, (width,), *norms), values

    found = trx_distances(*layers(queries), *layers(supports), labels, 3)
    torch.testing.assert_close(found, reference.trx_by_class(queries, supports, labels, 3, cardinality, weights))


def test_positions_have_sines_on_even_channels():
    code = sinusoidal_positions(4, 5, scale=0.1)
    assert code.shape == (4, 5)
    torch.testing.assert_close(code[0], torch.tensor([0.0, 0.1, 0.0, 0.1, 0.0]))
    assert code[2, 0].item() == pytest.approx(0.1 * torch.tensor(2.0).sin().item())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: otam(torch.zeros(2, 0, 3)), "at least one frame"),
        (lambda: otam(torch.zeros(2, 3, 3), lam=0), "lam must be above 0"),
        (lambda: frame_distances(torch.zeros(2, 3, 4), torch.zeros(2, 3, 5)), "one width"),
        (lambda: frame_distances(torch.zeros(2, 0, 4), torch.zeros(2, 3, 4)), "no frames"),
        (lambda: frame_tuples(2, 3), "3 frames cannot be taken from 2"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
