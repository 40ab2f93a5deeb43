"""Replays the APE fixtures through the functions and heads of users; sizes, settings and cases come from the files."""

import json
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from replay import PARITY, assert_known, names_of
from safetensors.torch import load_file
from torch.utils.data import Dataset
from transformers import CLIPConfig, TrainerCallback

from hf_clipplus.models.ape import APEForImageClassification, APEHead, SearchGrid
from hf_clipplus.ops import cache_classifier as ops
from hf_clipplus.ops.cache_search import correct_on_grid, correct_on_lines, first_maximum, published_axis
from hf_clipplus.training.few_shot import ape_t_arguments, tip_f_arguments, train_few_shot
from hf_clipplus.tuners.ape_t import attach_ape_t

FOLDER = PARITY / "ape"
files = partial(names_of, FOLDER)
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
    assert_known(FOLDER, KINDS)


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


class Batches(Dataset):
    """The fixture's batches of every epoch, in its order."""

    def __init__(self, data):
        names = sorted(name for name in data if name.startswith("batch.") and name.endswith(".labels"))
        epochs = sorted({int(name.split(".")[1]) for name in names})
        self.epochs = [
            {
                key: torch.cat(
                    [data[name.replace("labels", source)] for name in names if name.startswith(f"batch.{e}.")]
                )
                for key, source in (("image_embeds", "raw_features"), ("labels", "labels"))
            }
            for e in epochs
        ]
        self.batch = len(data[names[0]])
        self.steps = len(names)
        self.epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return len(self.epochs[0]["labels"])

    def __getitem__(self, index):
        return {key: rows[index] for key, rows in self.epochs[self.epoch].items()}

    def arguments(self, make, optimizer):
        assert optimizer["name"] == "AdamW"
        assert optimizer["betas"] == [0.9, 0.999]
        return make(
            learning_rate=optimizer["lr"],
            adam_epsilon=optimizer["eps"],
            weight_decay=optimizer["weight_decay"],
            num_train_epochs=len(self.epochs),
            per_device_train_batch_size=self.batch,
            train_sampling_strategy="sequential",
            use_cpu=True,
        )


class Recorder(TrainerCallback):
    """Gradient of the first step, and the watched tensors and learning rate of every step."""

    def __init__(self, watched):
        self.watched, self.first_gradients, self.after, self.rates = watched, {}, [], []

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.rates.append(optimizer.param_groups[0]["lr"])
        if not self.first_gradients:
            self.first_gradients = {name: each.grad.clone() for name, each in self.watched.items()}

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.after.append({name: each.detach().clone() for name, each in self.watched.items()})


def train_recorded(model, watched, rows, args, data, grid, monkeypatch):
    """`train_few_shot` as users call it, and what happened at every step."""
    recorder, losses = Recorder(watched), []
    forward = type(model).forward

    def remember(self, *positional, labels=None, **kwargs):
        output = forward(self, *positional, labels=labels, **kwargs)
        if labels is not None:
            losses.append(output.loss.item())
        return output

    monkeypatch.setattr(type(model), "forward", remember)
    monkeypatch.setattr("hf_clipplus.training.few_shot.Trainer", traced_trainer(recorder))
    validation = (data["val_features"], data["val_labels"])
    report = train_few_shot(model, rows, validation=validation, args=args, grid=grid, protocol="paper")
    return report, recorder, losses


def traced_trainer(recorder):
    from transformers import Trainer

    def make(*args, callbacks, **kwargs):
        return Trainer(*args, callbacks=[*callbacks, recorder], **kwargs)

    return make


def tiny_clip(dim, scale=100.0):
    """A model whose joint space has the fixture's width; its towers are never used."""
    tower = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = CLIPConfig(
        text_config={**tower, "vocab_size": 10},
        vision_config={**tower, "image_size": 8, "patch_size": 8},
        projection_dim=dim,
        logit_scale_init_value=float(torch.tensor(scale).log()),
    )
    from transformers import CLIPModel

    model = APEForImageClassification.from_clip(CLIPModel(config))
    model.config.text_scale = scale
    return model


@pytest.mark.parametrize("name", files("ape_t_training"))
def test_ape_t_training(name, monkeypatch):
    data = Fixture(name)
    config, best = data.config, data.info["best"]
    model = tiny_clip(config["D"])
    model.set_classes([f"class {c}" for c in range(config["C"])], text_weight=data.text)
    keys, labels, order = data.shuffled_cache()
    options = {"alpha": config["init_alpha"], "beta": config["init_beta"], "channel_weights": config["w_training"]}
    adapted = attach_ape_t(model, keys, labels, num_channels=config["training_feat_num"], **options)
    layer = adapted.get_base_model().classifier
    assert torch.equal(layer.ape_t_indices["default"], data["indices"])
    watched = {"res": layer.ape_t_res["default"], "value_weights": layer.ape_t_value_weights["default"]}

    def in_our_order(name, tensor):
        return tensor[order] if name.endswith("value_weights") else tensor

    rows = Batches(data)
    axes = [published_axis(*each) for each in zip(config["search_scale"][:2], config["search_step"][:2], strict=True)]
    args = rows.arguments(ape_t_arguments, data.info["optimizer"])
    grid = SearchGrid(betas=axes[0], alphas=axes[1])
    report, recorder, losses = train_recorded(adapted, watched, rows, args, data, grid, monkeypatch)

    assert len(losses) == rows.steps
    assert_close(torch.tensor(losses), data["losses"], rtol=1e-4)
    assert_close(torch.tensor(recorder.rates), data["lrs"], rtol=1e-6)
    for key, gradient in recorder.first_gradients.items():
        assert_close(gradient, in_our_order(key, data[f"grad0.{key}"]), rtol=1e-3)
    for stored in (key for key in data if key.startswith("after_step.")):
        _, step, key = stored.split(".")
        assert_close(recorder.after[int(step)][key], in_our_order(key, data[stored]), rtol=0, atol=1e-4)
    assert_close(100 * torch.tensor(report["validation_accuracies"]), data["val_accuracy"], rtol=1e-6)
    assert report["best_epoch"] == best["epoch"]
    for key, tensor in watched.items():
        assert_close(tensor.detach(), in_our_order(key, data[f"best.{key}"]), rtol=0, atol=1e-4)
    counts = layer.correct_on_grid("default", data["val_features"], data["val_labels"], *axes)
    assert_same_counts(counts, data["grid_val_accuracy"], len(data["val_labels"]))
    assert (report["alpha"], report["beta"]) == pytest.approx((best["alpha"], best["beta"]), abs=1e-12)
    assert 100 * report["validation_accuracy"] == pytest.approx(best["val_accuracy_search"])
    with torch.no_grad():
        logits = adapted(image_embeds=data["test_features"]).logits
    assert_close(logits, data["test_logits_best"], rtol=1e-4)
    assert 100 * (logits.argmax(1) == data["test_labels"]).double().mean().item() == pytest.approx(
        best["test_accuracy"]
    )
    assert report["trained_parameters"] == config["C"] * (config["training_feat_num"] + config["shots"])


@pytest.mark.parametrize("name", files("tip_adapter"))
def test_tip_adapter_f_training(name, monkeypatch):
    data = Fixture(name)
    config = data.config
    model = tiny_clip(config["D"])
    names = [f"class {c}" for c in range(config["C"])]
    settings = {"alpha": config["init_alpha"], "beta": config["init_beta"]}
    model.fit(data.keys, data.labels, names, text_weight=data.text, head="tip_f", **settings)
    watched = {"keys": model.classifier.cache_keys}
    rows = Batches(data)
    axes = [published_axis(*each) for each in zip(config["search_scale"], config["search_step"], strict=True)]
    args = rows.arguments(tip_f_arguments, data.info["optimizer"])
    grid = SearchGrid(betas=axes[0], alphas=axes[1])
    report, recorder, losses = train_recorded(model, watched, rows, args, data, grid, monkeypatch)
    assert len(losses) == rows.steps
    assert_close(torch.tensor(losses), data["F.losses"], rtol=1e-4)
    assert_close(torch.tensor(recorder.rates), data["F.lrs"], rtol=1e-6)
    assert_close(recorder.first_gradients["keys"], data["F.grad0"], rtol=1e-3)
    for stored in (key for key in data if key.startswith("F.after_step.")):
        assert_close(recorder.after[int(stored.split(".")[2])]["keys"], data[stored], rtol=0, atol=1e-4)
    assert_close(recorder.after[-1]["keys"], data["F.after_last_step"], rtol=0, atol=1e-4)
    # the published code keeps an epoch by test accuracy; its tensors as data, the epoch not as behaviour
    kept, best = data["F.kept_weight"], data.info["best_F"]
    test = data["test_features"]
    term = ops.cache_term(test, kept, data.labels, config["C"], beta=best["beta"])
    assert_close(100 * test @ data.text.T + best["alpha"] * term, data["F.test_logits_best"], rtol=1e-4)
    assert report["trained_parameters"] == kept.numel()


@pytest.mark.parametrize("name", files("ape_training_free"))
def test_ape_head_end_to_end(name):
    data = Fixture(name)
    config, best = data.config, data.info["best"]
    keys, labels, _ = data.shuffled_cache()
    head = APEHead(num_channels=config["training_free_feat_num"], channel_weights=config["w_training_free"])
    grid = SearchGrid.published(config["search_scale"], config["search_step"])
    validation = (data["val_features"], data["val_labels"])
    head.fit(keys, labels, data.text, validation=validation, protocol="paper", grid=grid)
    found = (head.beta, head.alpha, head.gamma)
    assert found == pytest.approx((best["beta"], best["alpha"], best["gamma"]), abs=1e-12)
    assert 100 * head.fit_report["validation_accuracy"] == pytest.approx(best["val_accuracy"])
    assert head.fit_report["protocol"] == "paper"
    logits = torch.from_numpy(head.decision_function(data["test_features"]))
    assert_close(logits, data["ape_logits_test_best"], rtol=1e-4)
    accuracy = 100 * head.score(data["test_features"], data["test_labels"])
    assert accuracy == pytest.approx(data.info["test_accuracy"]["best"])
