"""Replays the CLIP-FSAR fixtures through the public classes; sizes, cases and names come from the files."""

import json
from functools import cache, partial

import pytest
import torch
from replay import PARITY, assert_known, names_of, part
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPVisionConfig

from hf_clipplus.data.few_shot_videos import published_class_names
from hf_clipplus.models.clip_fsar.configuration_clip_fsar import CLIPFSARConfig
from hf_clipplus.models.clip_fsar.convert_clip_fsar import (
    _our_key,
    clip_fsar_from_official,
    clip_fsar_to_official,
)
from hf_clipplus.models.clip_fsar.modeling_clip_fsar import CLIPFSARForFewShotVideoClassification
from hf_clipplus.models.video_frames import kinetics_clip, random_in_segments, segment_centres
from hf_clipplus.models.video_processing import VideoFrameProcessor
from hf_clipplus.ops.alignment import bi_mhm, frame_distances, otam
from hf_clipplus.ops.few_shot_video import combined_log_scores, video_text_logits
from hf_clipplus.training import EpisodicTrainer, EpisodicTrainingArguments
from hf_clipplus.training.schedules import EpisodeSteps

FOLDER = PARITY / "clip_fsar"
files = partial(names_of, FOLDER)
KINDS = ("alignment", "class_names", "episode_features", "episode_pixels_", "pipeline")
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
TOLERANCES = {  # of the fixtures' README: outputs, gradients
    "vit": (CLOSE, {"rtol": 1e-3, "atol": 1e-6}),
    "resnet": ({"rtol": 1e-3, "atol": 1e-5}, {"rtol": 1e-3, "atol": 1e-5}),
}


@cache
def read(name):
    return json.loads((FOLDER / f"{name}.json").read_text()), load_file(FOLDER / f"{name}.safetensors")


def assert_close(actual, expected, name="", **tolerance):
    torch.testing.assert_close(
        actual, expected, check_dtype=False, msg=lambda text: f"{name}: {text}", **(tolerance or CLOSE)
    )


def test_every_file_is_known():
    assert_known(FOLDER, KINDS)


# alignment


@pytest.mark.parametrize("name", files("alignment"))
def test_alignment(name):
    info, t = read(name)
    for case in info["cases"]:
        c = part(t, f"case{case['case']}.")
        lam, weight = case["lbda"], c["w"]
        distances = c["dists"].clone().requires_grad_()
        both = otam(distances, lam=lam)
        (grad,) = torch.autograd.grad((both * weight).sum(), distances)
        if case["official_float32_finite"]:
            assert_close(both, c["otam_both"], f"{case} both")
            assert_close(grad, c["grad_otam_both"], f"{case} gradient")
            one = [otam(d, lam=lam, both_directions=False) for d in (c["dists"], c["dists"].transpose(-1, -2))]
            assert_close(one[0], c["otam_q2s"], f"{case} query to support")
            assert_close(one[1], c["otam_s2q"], f"{case} support to query")
        loose = {"rtol": 1e-3, "atol": 1e-5}
        assert_close(both.double(), c["otam_both_f64"], f"{case} float64", **loose)
        assert_close(grad.double(), c["grad_otam_both_f64"], f"{case} float64 gradient", **loose)
        distances = c["dists"].clone().requires_grad_()
        hausdorff = bi_mhm(distances)
        (grad,) = torch.autograd.grad((hausdorff * weight).sum(), distances)
        assert_close(hausdorff, c["bimhm"], f"{case} Bi-MHM")
        assert_close(grad, c["grad_bimhm"], f"{case} Bi-MHM gradient")
    cosines = 1 - frame_distances(t["cos.x"][None], t["cos.y"][None], eps=0.01)[0, 0]
    assert_close(cosines, t["cos.sim"], "epsilon cosine")
    assert_hyrsm(part(t, "hyrsm."))


def assert_hyrsm(t):
    """Bi-MHM of plain cosines on supports that depend on the query, averaged over the videos of a label."""
    distances = frame_distances(t["query"][:, None], t["support"], eps=0.0)[:, 0]  # [Q, S, T, T]
    found, labels = -bi_mhm(distances), t["labels"]
    logits = torch.stack([found[:, labels == label].mean(1) for label in labels.unique()], dim=1)
    assert_close(logits, t["logits"], "hyrsm")


# the head on given features


def head_model(info, t, **fields):
    """A model with the fixture's temporal transformer and towers that are not used."""
    c = info["config"]
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPFSARConfig(
        text_config=CLIPTextConfig(**tower, vocab_size=16, bos_token_id=0, eos_token_id=1).to_dict(),
        vision_config=CLIPVisionConfig(**tower, image_size=16, patch_size=8).to_dict(),
        projection_dim=c["dim"],
        temporal_depth=c["depth"],
        temporal_heads=c["heads"],
        temporal_ffn_dim=c["mlp"],
        attention_dropout=0.0,
        ffn_dropout=0.0,
        video_text_weight=c["w"],
        **fields,
    )
    model = CLIPFSARForFewShotVideoClassification(config)
    state = {_our_key(key): value for key, value in part(t, "weights.").items()}
    state["video_text_scale"] = state["video_text_scale"].reshape(())
    left = model.load_state_dict(state, strict=False)
    assert not left.unexpected_keys
    assert all(key.startswith(("text_", "vis")) for key in left.missing_keys)
    return model


def episode(t, prefix, frames, kind):
    """Inputs of `forward` from an episode of the fixture; kind is "features" or "pixel_values"."""
    e = part(t, f"{prefix}.")
    inputs = {}
    for side, stored in (("support", "support"), ("query", "target")):
        inputs[f"{side}_{kind}"] = e[f"{stored}_set"].unflatten(0, (-1, frames))
        inputs[f"{side}_labels"] = e[f"{stored}_labels"].long()
        inputs[f"{side}_class_ids"] = e[f"real_{stored}_labels"].long()
    return inputs, e


@pytest.mark.parametrize("name", files("episode_features"))
def test_training_episode_on_features(name):
    info, t = read(name)
    model = head_model(info, t).train()
    x = t["mod.x"].clone().requires_grad_()
    y = model.temporal_transformer(x)
    assert_close(y, t["mod.y"], "temporal transformer")
    assert_close(torch.autograd.grad((t["mod.w"] * y).sum(), x)[0], t["mod.grad_x"], "its gradient")
    inputs, e = episode(t, "train1", info["config"]["frames"], "features")
    for side in ("support", "query"):
        inputs[f"{side}_features"].requires_grad_()
    out = model(**inputs, class_embeds=t["text_features_train"])
    assert_close(out.query_features, e["query_modulated"], "query features")
    frames, rows = info["config"]["frames"], inputs["support_labels"]
    modulated = e["support_modulated_with_text_token"][:, :frames]
    assert_close(out.prototypes[rows], modulated, "prototypes")
    for ours, theirs in (("logits", "logits"), ("class_logits", "class_logits"), ("loss_few_shot", "loss_few_shot")):
        assert_close(out[ours], e[theirs], ours)
    assert_close(out.loss_video_text, e["loss_video_text"], "video-text loss")
    total = out.loss / 4
    assert_close(total, e["loss_total_div_batch"], "loss")
    total.backward()
    for side, stored in (("support", "support"), ("query", "target")):
        assert_close(inputs[f"{side}_features"].grad.flatten(0, 1), e[f"grad.{stored}_set"], f"{side} gradient")
    assert_gradients(model, part(e, "grad."), CLOSE, skip=("support_set", "target_set"))


def assert_gradients(model, expected, tolerance, skip=()):
    own = {name: parameter.grad for name, parameter in model.named_parameters()}
    compared = 0
    for key, value in expected.items():
        if key in skip:
            continue
        grad = own[_our_key(key)]
        assert_close(grad.reshape(value.shape), value, f"gradient of {key}", **tolerance)
        compared += 1
    assert compared


@pytest.mark.parametrize("merge", ["before", "after"])
@pytest.mark.parametrize("name", files("episode_features"))
def test_several_shots_in_training(name, merge):
    info, t = read(name)
    model = head_model(info, t, merge=merge).train()
    inputs, e = episode(t, "trainK", info["config"]["frames"], "features")
    out, e = model(**inputs, class_embeds=t["text_features_train"]), part(e, f"merge_{merge}.")
    for ours in ("logits", "class_logits"):
        assert_close(out[ours], e[ours], ours)
    assert_close(out.loss / 4, e["loss_total_div_batch"], "loss")
    modulated = e["support_modulated_with_text_token"][:, : info["config"]["frames"]]
    if merge == "after":
        labels = inputs["support_labels"]
        modulated = torch.stack([modulated[labels == label].mean(0) for label in labels.unique()])
    assert_close(out.prototypes, modulated, "prototypes")


def published_scores(model, inputs, out, text, mode, beta):
    """The published outputs of a mode that uses text: probabilities, or their product before it is renormalised."""
    means = next(value for key, value in inputs.items() if key.startswith("query_features")).mean(-2)
    text_logits = video_text_logits(means, text, model.video_text_scale, eps=0.0)
    if mode == "text":
        return text_logits.softmax(-1)
    distances = model.distances(out.query_features, out.prototypes, torch.arange(out.prototypes.shape[-3]))
    return combined_log_scores(text_logits, distances, beta=beta).exp()


@torch.no_grad()
@pytest.mark.parametrize("name", files("episode_features"))
def test_inference_modes_on_features(name):
    info, t = read(name)
    inputs, e = episode(t, "evalK", info["config"]["frames"], "features")
    inputs["class_embeds"] = t["text_features_test"]
    seen = set()
    for case in sorted({key.split(".")[0] for key in e if key.endswith(".logits")}):
        assert case in (
            "merge_before",
            "merge_after",
            "single_direction",
            "text_only",
            "combine_default",
            "combine_coff",
        )
        fields = {"merge": "after"} if case == "merge_after" else {}
        fields |= {"both_directions": False} if case == "single_direction" else {}
        beta = info["config"]["coff"] if case == "combine_coff" else 0.9
        model = head_model(info, t, combine_beta=beta, **fields).eval()
        mode = {"text_only": "text", "combine_default": "combined", "combine_coff": "combined"}.get(case, "visual")
        out, expected = model(**inputs, mode=mode), e[f"{case}.logits"]
        if mode == "visual":
            assert_close(out.logits, expected, case)
        else:
            text = class_texts(inputs)
            assert_close(published_scores(model, inputs, out, text, mode, beta), expected, case)
            assert_close(out.logits.exp(), expected / expected.sum(-1, keepdim=True), f"{case}, ours")
        seen.add(case)
    assert seen == {key.removesuffix(".logits") for key in e if key.endswith(".logits")}


def class_texts(inputs):
    """Text features of the episode's classes by label."""
    labels, ids = inputs["support_labels"], inputs["support_class_ids"]
    return inputs["class_embeds"][torch.stack([ids[labels == label][0] for label in labels.unique()])]


# from pixels


def kind_of(name):
    kind = name.removeprefix("episode_pixels_")
    known = [each for each in TOLERANCES if kind.startswith(each)]
    assert known, f"unknown tower {kind!r}"
    return known[0]


def pixel_model(name, **fields):
    info, t = read(name)
    c = info["config"]
    model, _ = clip_fsar_from_official(
        part(t, "weights."),
        part(t, "clip_text."),
        temporal_heads=c["heads"],
        attention_dropout=0.0,
        ffn_dropout=0.0,
        video_text_weight=c["w"],
        num_frames=c["frames"],
        **fields,
    )
    return info, t, model


@torch.no_grad()
@pytest.mark.parametrize("name", files("episode_pixels_"))
def test_inference_from_pixels_and_token_ids(name):
    close, _ = TOLERANCES[kind_of(name)]
    info, t, model = pixel_model(name)
    for split in ("train", "test"):
        found = model.encode_classes(t[f"token_ids_{split}"].long())
        assert_close(found, t[f"text_features_{split}"], f"texts of {split}", **close)
    inputs, e = episode(t, "eval", info["config"]["frames"], "pixel_values")
    features = model.frame_features(inputs["support_pixel_values"])
    assert_close(features.flatten(0, 1), e["frame_features_support"], "frame features", **close)
    inputs["class_input_ids"] = t["token_ids_test"].long()
    out = model(**inputs)
    assert_close(out.logits, e["logits"], "logits", **close)
    everything = torch.cat([features.mean(1), model.frame_features(inputs["query_pixel_values"]).mean(1)])
    against_train = video_text_logits(everything, t["text_features_train"], model.video_text_scale)
    assert_close(against_train, e["class_logits_vs_train_classes"], "class logits", **close)
    for case, mode in (("combine", "combined"), ("text_only", "text")):
        expected = e[f"{case}.logits"]
        found = model(**inputs, mode=mode).logits.exp()
        assert_close(found, expected / expected.sum(-1, keepdim=True), case, **close)


@pytest.mark.parametrize("name", files("episode_pixels_"))
def test_training_step_from_pixels(name):
    close, grad_close = TOLERANCES[kind_of(name)]
    info, t, model = pixel_model(name)
    model.train()
    inputs, e = episode(t, "train", info["config"]["frames"], "pixel_values")
    out = model(**inputs, class_input_ids=t["token_ids_train"].long())
    for key in ("logits", "class_logits", "loss_few_shot", "loss_video_text"):
        assert_close(out[key], e[key], key, **close)
    total = out.loss / 4
    assert_close(total, e["loss_total_div_batch"], "loss", **close)
    after, _ = clip_fsar_to_official(model)
    for key, value in part(e, "after_forward.").items():
        assert_close(after[f"head.{key}"], value, f"after the forward pass, {key}", **close)
    total.backward()
    own = {key: parameter.grad for key, parameter in model.named_parameters() if parameter.grad is not None}
    for key in own:
        assert not key.startswith("text_"), "the text tower is frozen"
    grads = gradients_by_official_name(model)
    assert grads.keys() == info["grad_norms"].keys()
    for key, norm in info["grad_norms"].items():
        assert grads[key].norm().item() == pytest.approx(norm, rel=2e-3, abs=1e-6), key
    for key, value in part(e, "grad.").items():
        assert_close(grads[key], value, f"gradient of {key}", **grad_close)


def gradients_by_official_name(model):
    """Gradients under the published names: the model with its gradients as weights, converted."""
    mirror = CLIPFSARForFewShotVideoClassification(model.config)
    mirror.load_state_dict(model.state_dict())
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    own = dict(mirror.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            own[name].copy_(parameter.grad if name in trained else torch.zeros_like(parameter))
    found, _ = clip_fsar_to_official(mirror)
    return {
        key.removeprefix("head."): value
        for key, value in found.items()
        if not key.endswith(("running_mean", "running_var", "num_batches_tracked"))
    }


@pytest.mark.parametrize("name", files("episode_pixels_"))
def test_converter_round_trip_and_weight_decay_groups(name, tmp_path):
    info, t, model = pixel_model(name)
    back, _ = clip_fsar_to_official(model)
    for key, value in part(t, "weights.").items():
        assert torch.equal(back[f"head.{key}"], value), key
    args = EpisodicTrainingArguments(str(tmp_path), published_optimizer=True, weight_decay=1e-3, report_to=[])
    trainer = EpisodicTrainer(model, args)
    optimizer = trainer.create_optimizer()
    assert type(optimizer) is torch.optim.Adam, "decay must be coupled"
    decays = {parameter: group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]}
    marked = CLIPFSARForFewShotVideoClassification(model.config)
    marks = dict(marked.named_parameters())
    for key, parameter in model.named_parameters():
        marks[key].data.fill_(decays.get(parameter, -1.0))
    found, _ = clip_fsar_to_official(marked)
    for key, decay in info["optimizer_weight_decay_by_parameter"].items():
        values = found[f"head.{key}"].unique()
        assert values.tolist() == pytest.approx([decay]), key
    text = [parameter for key, parameter in model.named_parameters() if key.startswith("text_")]
    assert not any(parameter in decays for parameter in text)


# the sampling pipeline


@pytest.mark.parametrize("name", files("pipeline"))
def test_learning_rates(name):
    info, t = read(name)
    for dataset, c in info["lr_configs"].items():
        steps = EpisodeSteps(
            c["BASE_LR"], c["WARMUP_START_LR"], c["STEPS_ITER"], c["STEPS"], c["LRS"], c["WARMUP_EPOCHS"]
        )
        rates = [steps.rate(i) for i in t[f"lr.{dataset}.iteration"].tolist()]
        assert rates == pytest.approx(t[f"lr.{dataset}.lr"].tolist(), rel=1e-9, abs=1e-12), dataset


@pytest.mark.parametrize("name", files("pipeline"))
def test_frame_indices(name):
    _, t = read(name)
    backwards = 0
    for (total, fps, wanted), expected in zip(
        t["frames.kinetics_test.meta"].tolist(), t["frames.kinetics_test.index"].tolist(), strict=True
    ):
        found = kinetics_clip(int(total), fps, int(wanted))
        expected = [index for index in expected if index >= 0]
        if expected[-1] < expected[0]:  # a published bug, which runs backwards; here the fall-back
            expected, backwards = segment_centres(int(total), int(wanted)), backwards + 1
        assert found == expected, (total, fps, wanted)
    assert backwards, "the fixture shows no short video"
    for total, *drawn in t["frames.segment_random"].tolist():
        length = total // len(drawn)
        assert all(i * length <= index < (i + 1) * length for i, index in enumerate(drawn))
        found = random_in_segments(total, len(drawn), Draws([index - i * length for i, index in enumerate(drawn)]))
        assert found == drawn


class Draws:
    """A generator that gives the places which the published code drew, if they are asked for in their range."""

    def __init__(self, places):
        self.places = iter(places)

    def integers(self, high):
        place = next(self.places)
        assert 0 <= place < high
        return place


@pytest.mark.parametrize("name", files("pipeline"))
def test_pixels(name):
    _, t = read(name)
    cases = sorted(key.removesuffix(".video_uint8") for key in t if key.endswith(".video_uint8"))
    assert cases
    for case in cases:
        resize, crop = t[f"{case}.resize_crop"].tolist()
        processor = VideoFrameProcessor(resize=resize, crop=crop)
        found = processor.pixel_values(t[f"{case}.video_uint8"].numpy())
        assert_close(found, t[f"{case}.pixel_values"], case, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", files("class_names"))
def test_class_names(name):
    splits = json.loads((FOLDER / f"{name}.json").read_text())["splits"]
    for dataset, table in splits.items():
        for split in ("train", "val", "test"):
            if None in table[split]:
                with pytest.raises(ValueError, match="not published"):
                    published_class_names(dataset, split)
            else:
                assert published_class_names(dataset, split) == table[split]
