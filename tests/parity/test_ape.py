"""Replays the APE fixtures through the functions and heads of users; sizes, settings and cases come from the files."""

import json
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from hf_clipplus.ops import cache_classifier as ops
from hf_clipplus.ops.cache_search import correct_on_grid, correct_on_lines, first_maximum, published_axis

FOLDER = Path(os.environ.get("CLIPPLUS_PARITY_DIR", Path(__file__).parents[1] / "fixtures" / "parity")) / "ape"
KINDS = (
    "ape_criterion",
    "ape_training_free",
    "ape_t_forward_grad",
    "ape_t_training",
    "tip_adapter",
    "cache_construction",
    "gda_baseline",
    "proker_baseline",
)


def files(kind):
    found = sorted(path.stem for path in FOLDER.glob(f"{kind}*.json"))
    assert found, f"no fixture of kind {kind} in {FOLDER}"
    return found


class Fixture(dict):
    """The tensors of a file with what its json says, in our orientation and with labels for one-hot values."""

    def __init__(self, name):
        super().__init__(load_file(FOLDER / f"{name}.safetensors"))
        self.info = json.loads((FOLDER / f"{name}.json").read_text())
        self.config = self.info.get("config")

    @property
    def text(self):
        return self["clip_weights"].T.contiguous()

    @property
    def keys(self):
        """The cache keys [N, D]; some fixtures store them transposed."""
        stored = self["cache_keys"]
        return (stored if stored.shape[1] == self.text.shape[1] else stored.T).contiguous()

    @property
    def labels(self):
        return self["cache_values"].argmax(1)

    def shuffled_cache(self):
        """The same cache with its keys in another order, which must change nothing."""
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(0))
        return self.keys[order], self.labels[order], order


def assert_close(actual, expected, *, rtol, atol=0.0):
    """Error relative to the largest expected element."""
    expected = expected.to(actual.dtype).reshape(actual.shape)
    limit = rtol * expected.abs().max() + atol
    error = (actual - expected).abs().max()
    assert error <= limit, f"error {error:.3e} > {limit:.3e}"  # not so when anything is NaN


def assert_same_counts(counts, percent, queries):
    """Counts of right answers against the fixture's accuracies in percent."""
    assert torch.equal(counts, (percent * queries / 100).round().long().reshape(counts.shape))


def test_every_fixture_is_of_a_known_kind():
    unknown = [path.name for path in FOLDER.glob("*.safetensors") if not path.name.startswith(KINDS)]
    assert not unknown, f"no test knows these fixtures: {unknown}"


@pytest.mark.parametrize("name", files("ape_criterion"))
def test_criterion_and_channels(name):
    data = Fixture(name)
    for case in data.info["cases"]:
        key, kind = case["case"].split(".")
        text, keys = data[f"{key}.clip_weights"].T, data[f"{key}.cache_keys"]
        assert keys.shape == (case["C"] * case["shots"], case["D"])
        labels = torch.arange(case["C"]).repeat_interleave(case["shots"])
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        for cache in ((keys, labels), (keys[order], labels[order])):
            cache = {"all": cache, "text": ()}[kind]
            assert_close(ops.channel_similarity(text, *cache), data[f"{case['case']}.sim"], rtol=1e-4)
            criterion = ops.channel_criterion(text, *cache, weights=tuple(case["w"]))
            assert_close(criterion, data[f"{case['case']}.criterion"], rtol=1e-4)
            chosen = ops.select_channels(criterion, case["Q"])
            expected = data[f"{case['case']}.indices"]
            assert set(chosen.tolist()) == set(expected.tolist())
            if case["min_gap"] > 1e-6:
                assert torch.equal(chosen, expected)


@pytest.mark.parametrize("name", files("ape_training_free"))
@pytest.mark.parametrize("shuffled", [False, True])
def test_training_free(name, shuffled):
    data = Fixture(name)
    config, classes = data.config, data.config["C"]
    text, keys, labels, order = data.text, data.keys, data.labels, torch.arange(len(data.labels))
    if shuffled:
        keys, labels, order = data.shuffled_cache()
    criterion = ops.channel_criterion(text, keys, labels, weights=tuple(config["w_training_free"]))
    indices = ops.select_channels(criterion, config["training_free_feat_num"])
    assert torch.equal(indices, data["indices"])

    refined_text, refined_keys = ops.refine(text, indices), ops.refine(keys, indices)
    difficulty = ops.key_difficulty(refined_keys, labels, refined_text)
    assert_close(difficulty, data["cache_div"][order], rtol=1e-4)
    assert_close(torch.exp(config["init_gamma"] * difficulty), data["R_FW_init"][order], rtol=1e-4)

    test = data["test_features"]
    refined = ops.refine(test, indices)
    assert_close(refined @ refined_keys.T, data["R_fF_test"][:, order], rtol=1e-4)
    base = 100 * test @ text.T
    assert_close(base, data["zeroshot_logits_test"], rtol=1e-4)

    def logits(alpha, beta, gamma, chunk=ops.CHUNK_ELEMENTS):
        values = torch.exp(gamma * difficulty)
        options = {"beta": beta, "values": values, "chunk_elements": chunk}
        return base + alpha * ops.cache_term(refined, refined_keys, labels, classes, **options)

    best = data.info["best"]
    initial = logits(config["init_alpha"], config["init_beta"], config["init_gamma"])
    assert_close(initial, data["ape_logits_test_init"], rtol=1e-4)
    for chunk in (1, 5 * len(keys), ops.CHUNK_ELEMENTS):
        found = logits(best["alpha"], best["beta"], best["gamma"], chunk)
        assert_close(found, data["ape_logits_test_best"], rtol=1e-4)

    axes = [
        published_axis(scale, steps, start)
        for scale, steps, start in zip(config["search_scale"], config["search_step"], (0.1, 0.1, 0.0), strict=True)
    ]
    for axis, kind in zip(axes, ("beta", "alpha", "gamma"), strict=True):
        assert_close(torch.tensor(axis, dtype=torch.float64), data[f"{kind}_list"], rtol=1e-12)
    counts = correct_on_grid(
        ops.refine(data["val_features"], indices),
        refined_keys,
        labels,
        100 * data["val_features"] @ text.T,
        data["val_labels"],
        betas=axes[0],
        alphas=axes[1],
        gammas=axes[2],
        difficulty=difficulty,
    )
    assert_same_counts(counts, data["grid_val_accuracy"], len(data["val_labels"]))
    found = [axis[i] for axis, i in zip(axes, first_maximum(counts), strict=True)]
    assert found == pytest.approx([best["beta"], best["alpha"], best["gamma"]], abs=1e-12)
    right = logits(found[1], found[0], found[2]).argmax(1) == data["test_labels"]
    assert 100 * right.double().mean().item() == pytest.approx(data.info["test_accuracy"]["best"])


@pytest.mark.parametrize("name", files("ape_t_forward_grad"))
def test_residual_forward_and_gradients(name):
    data = Fixture(name)
    config = data.config
    text, keys = data.text.requires_grad_(), data.keys.requires_grad_()
    values = data["state.value_weights"].clone().requires_grad_()
    residuals = data["state.res"].clone().requires_grad_()
    features = data["features"].clone().requires_grad_()
    labels = data.labels

    criterion = ops.channel_criterion(data.text, weights=tuple(config["w"]))
    assert torch.equal(ops.select_channels(criterion, config["Q"]), data["indices"])
    new_text, new_keys = ops.add_residuals(text, keys, labels, residuals, data["indices"])
    assert_close(new_text.detach(), data["new_clip_weights"].T, rtol=1e-4)
    assert_close(new_keys.detach(), data["new_cache_keys"], rtol=1e-4)
    options = {"beta": config["beta"], "values": values.squeeze(1), "chunk_elements": 3 * len(keys)}
    term = ops.cache_term(features, new_keys, labels, config["C"], **options)
    assert_close(term.detach(), data["cache_logits"], rtol=1e-4)
    logits = 100 * features @ new_text.T + config["alpha"] * term
    assert_close(logits.detach(), data["logits"], rtol=1e-4)
    smooth = F.cross_entropy(logits, data["labels"], label_smoothing=0.1)
    assert_close(smooth.detach(), data["loss_smoothing_0.1"], rtol=1e-4)
    loss = F.cross_entropy(logits, data["labels"])
    loss.backward()
    assert_close(loss.detach(), data["loss"], rtol=1e-4)
    assert_close(values.grad, data["grad.value_weights"], rtol=1e-3)
    assert_close(residuals.grad, data["grad.res"], rtol=1e-3)
    assert_close(features.grad, data["grad.features"], rtol=1e-3)
    assert_close(text.grad.T, data["grad.clip_weights"], rtol=1e-3)
    assert_close(keys.grad, data["grad.cache_keys"], rtol=1e-3)


@pytest.mark.parametrize("name", files("tip_adapter"))
def test_tip_adapter(name):
    data = Fixture(name)
    config, keys, labels = data.config, *data.shuffled_cache()[:2]
    classes, val = config["C"], data["val_features"]
    base = 100 * val @ data.text.T
    term = ops.cache_term(val, keys, labels, classes, beta=config["init_beta"])
    assert_close(base + config["init_alpha"] * term, data["val_logits_init"], rtol=1e-4)
    betas, alphas = map(published_axis, config["search_scale"], config["search_step"])
    counts = correct_on_grid(val, keys, labels, base, data["val_labels"], betas=betas, alphas=alphas)
    assert_same_counts(counts, data["grid_val_accuracy"], len(val))
    i, j, _ = first_maximum(counts)
    best = data.info["best"]
    assert (betas[i], alphas[j]) == pytest.approx((best["beta"], best["alpha"]), abs=1e-12)
    test = data["test_features"]
    logits = 100 * test @ data.text.T + alphas[j] * ops.cache_term(test, keys, labels, classes, beta=betas[i])
    assert_close(logits, data["test_logits_best"], rtol=1e-4)


@pytest.mark.parametrize("name", files("cache_construction"))
def test_cache_and_text_classifier(name):
    data = Fixture(name)
    classes = data.config["C"]
    assert_close(ops.cache_keys(data["raw_image_features"]), data["cache_keys"].T, rtol=1e-5)
    prompts = [data[f"text.{c}"] for c in range(classes)]
    owner = torch.tensor([c for c, rows in enumerate(prompts) for _ in rows])
    order = torch.randperm(len(owner), generator=torch.Generator().manual_seed(0))
    found = ops.text_classifier(torch.cat(prompts)[order], owner[order], classes)
    assert_close(found, data.text, rtol=1e-5)
    assert torch.equal(F.one_hot(data["labels"], classes).float(), data["cache_values"])


@pytest.mark.parametrize("name", files("gda_baseline"))
def test_gda(name):
    data = Fixture(name)
    config = data.config
    views = F.normalize(data["raw_image_features"], dim=-1)
    labels = data["labels"].repeat(len(views))
    weights, biases = ops.gda_classifier(views.flatten(0, 1), labels, config["C"])
    assert_close(ops.class_means(views.flatten(0, 1), labels, config["C"]), data["mus"], rtol=1e-4)
    assert_close(weights, data["W"].T, rtol=1e-3)
    assert_close(biases, data["b"], rtol=1e-3)
    alphas = [10.0**e for e in range(-4, 3)]
    val, test = data["val_features"], data["test_features"]
    slopes = (val @ weights.T + biases).T[:, :, None]
    counts = correct_on_lines(100 * val @ data.text.T, slopes, data["val_labels"], torch.tensor(alphas))
    assert_same_counts(counts, data["val_accuracy_per_alpha"], len(val))
    alpha = alphas[first_maximum(counts)[0]]
    assert alpha == pytest.approx(data.info["best"]["alpha"])
    assert_close(100 * test @ data.text.T + alpha * (test @ weights.T + biases), data["test_logits"], rtol=1e-3)


@pytest.mark.parametrize("name", files("proker_baseline"))
def test_proker(name):
    data = Fixture(name)
    config, support, labels, test = data.config, data["support"], data["labels"], data["test_features"]
    options = {"beta": config["beta"], "strength": config["lmbda"]}
    coefficients = ops.proker_coefficients(support, labels, data.text, **options)
    term = ops.cache_term(test, support, labels, config["C"], beta=config["beta"], values=coefficients)
    logits = test @ data.text.T + term
    assert_close(logits, data["test_logits"], rtol=1e-3)
    right = logits.argmax(1) == data["test_labels"]
    assert 100 * right.double().mean().item() == pytest.approx(data.info["test_accuracy"])
