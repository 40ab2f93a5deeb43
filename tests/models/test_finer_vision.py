"""Finer vision: one scale changes nothing, tiles and crops are in their places, settings travel and are checked."""

import logging

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoModel, AutoProcessor, CLIPImageProcessorPil, SiglipImageProcessorPil, pipeline

from hf_clipplus import (
    APEConfig,
    CLIPFSARConfig,
    DIVAModel,
    DreamLIPModel,
    DreamLIPProcessor,
    FFFConfig,
    FFFModel,
    FFFProcessor,
    GroupViTPlusConfig,
    LongCLIPModel,
    MACLIPConfig,
)
from hf_clipplus.catalogue import VARIANTS
from hf_clipplus.evaluation.heat_map import text_heat_map
from hf_clipplus.models.configuration_finer_vision import FinerVision, picture_side
from hf_clipplus.models.configuration_zoo import WITHOUT_FINER_VISION
from hf_clipplus.models.diva.feedback_diva import DIVAForDiffusionFeedback
from hf_clipplus.models.finer_vision import fit_pictures
from hf_clipplus.ops.tilings import cut_tiles, resize_pictures
from hf_clipplus.training.gradient_cache import cached_backward

SIDE, PATCH = 16, 4
GRID = SIDE // PATCH
VARIANTS_WITH_IT = [
    (FFFModel, "clip"),
    (FFFModel, "siglip"),
    (DreamLIPModel, "clip"),
    (LongCLIPModel, "clip"),
    (DIVAModel, "clip"),
    (DIVAModel, "siglip"),
]
IDS = [f"{model.__name__}-{kind}" for model, kind in VARIANTS_WITH_IT]
EVERYTHING = {"scales": [1, 2, 3], "crops": 2}


def make(model_class=FFFModel, kind="clip", *, layers=2, **options):
    tower = {"num_hidden_layers": layers, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 20}
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    text = {"vocab_size": 50, "max_position_embeddings": 12, **tower, **ids}
    torch.manual_seed(0)
    config = model_class.config_class(
        text_config={"model_type": f"{kind}_text_model", **text},
        vision_config={"model_type": f"{kind}_vision_model", "image_size": SIDE, "patch_size": PATCH, **tower},
        projection_dim=12,
        **options,
    )
    return model_class(config).eval()


def pictures(factor, count=3):
    return torch.randn(count, 3, factor * SIDE, factor * SIDE, generator=torch.Generator().manual_seed(1))


def batch(factor, captions=1):
    ids = torch.randint(2, 50, (3 * captions, 6), generator=torch.Generator().manual_seed(2))
    ids[:, -1] = 1
    return {"pixel_values": pictures(factor), "input_ids": ids, "attention_mask": torch.ones_like(ids)}


def losses_and_gradients(model, inputs):
    model.train()
    model.zero_grad()
    output = model(**inputs, return_loss=True)
    output.loss.backward()
    model.eval()
    return output.loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("model_class", "kind"), VARIANTS_WITH_IT, ids=IDS)
@pytest.mark.parametrize("settings", [{}, {"scales": [1], "patch_grid": "fine"}])
def test_one_scale_is_the_plain_model_bit_for_bit(model_class, kind, settings):
    plain, finer = make(model_class, kind), make(model_class, kind, finer_vision=settings)
    assert plain.state_dict().keys() == finer.state_dict().keys()
    inputs = batch(1)
    with torch.no_grad():
        expected, found = plain(**inputs), finer(**inputs)
        assert torch.equal(finer.encode_image(inputs["pixel_values"]), plain.encode_image(inputs["pixel_values"]))
    for name in ("image_embeds", "logits_per_image", "patch_embeds"):
        assert (name in found) == (name in expected)
        assert name not in expected or torch.equal(found[name], expected[name])
    assert torch.equal(found.vision_model_output.last_hidden_state, expected.vision_model_output.last_hidden_state)
    if model_class is not DIVAModel:  # it has no contrastive loss
        (loss, gradients), (own, own_gradients) = (losses_and_gradients(model, inputs) for model in (plain, finer))
        assert torch.equal(loss, own)
        assert gradients.keys() == own_gradients.keys()
        assert all(torch.equal(gradients[name], own_gradients[name]) for name in gradients)


@pytest.mark.parametrize(("model_class", "kind"), VARIANTS_WITH_IT, ids=IDS)
def test_a_batch_of_tiles_gives_what_tile_by_tile_gives(model_class, kind):
    plain, finer = make(model_class, kind), make(model_class, kind, finer_vision=EVERYTHING)
    images = pictures(3)
    with torch.no_grad():
        found = finer.get_image_features(images)
        corners = found.crop_corners

        def view(picture):
            return F.normalize(plain.get_image_features(picture[None]).pooler_output[0], dim=-1)

        for number, image in enumerate(images):
            entries = [
                F.normalize(torch.stack([view(tile) for tile in cut_tiles(resized, scale, scale)]).mean(0), dim=-1)
                for scale in (1, 2, 3)
                for resized in [resize_pictures(image[None], (scale * SIDE, scale * SIDE))]
            ]
            zoomed = resize_pictures(image[None], (2 * SIDE, 2 * SIDE))[0]
            crops = [view(zoomed[:, y : y + SIDE, x : x + SIDE]) for y, x in corners[number].tolist()]
            entries.append(F.normalize(torch.stack(crops).mean(0), dim=-1))
            torch.testing.assert_close(found.pooler_output[number], torch.stack(entries).mean(0), rtol=0, atol=1e-6)
        alone = torch.cat([finer.encode_image(image[None]) for image in images])
        torch.testing.assert_close(finer.encode_image(images), alone, rtol=0, atol=1e-6)
        torch.testing.assert_close(alone, F.normalize(found.pooler_output, dim=-1), rtol=0, atol=1e-6)
        assert not torch.allclose(alone, plain.encode_image(resize_pictures(images, (SIDE, SIDE))), atol=1e-3)


def local_model(**options):
    """A DreamLIP whose patches see nothing but themselves, so that they are the same in a tile and in the whole."""
    model = make(DreamLIPModel, layers=0, **options)
    model.load_state_dict(make(DreamLIPModel, layers=0).state_dict(), strict=False)
    torch.nn.init.zeros_(model.vision_model.embeddings.position_embedding.weight)
    return model


def show_entry(model, entry):
    """Make the patch features of a model with a projection those of one scale."""
    weight = model.view_fusion.patches.weight
    width = weight.shape[0]
    torch.nn.init.zeros_(weight)[:, entry * width : (entry + 1) * width] = torch.eye(width)


@pytest.mark.parametrize(("entry", "scale"), [(0, 1), (1, 2), (2, 4)])
@torch.no_grad()
def test_patches_of_tiles_are_stitched_where_they_belong(entry, scale):
    """Those of every scale equal the patches of the whole picture at that size."""
    settings = {"scales": [1, 2, 4], "fusion": "projection", "patch_grid": "fine"}
    model, images = local_model(finer_vision=settings), pictures(4)
    show_entry(model, entry)
    whole = resize_pictures(images, (scale * SIDE, scale * SIDE))
    expected = local_model().get_patch_features(whole, interpolate_pos_encoding=True)
    expected = expected.transpose(1, 2).unflatten(2, (scale * GRID, scale * GRID))
    if scale < 4:
        expected = F.interpolate(expected, size=(4 * GRID, 4 * GRID), mode="bilinear")
    found = model.get_patch_features(images, normalize=False).transpose(1, 2).unflatten(2, model.patch_grid(64, 64))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    coarse = local_model(finer_vision=settings | {"patch_grid": "coarse"})
    show_entry(coarse, entry)
    assert coarse.patch_grid(64, 64) == (GRID, GRID)
    if scale == 2:
        halves = local_model().get_patch_features(whole, interpolate_pos_encoding=True)
        means = F.avg_pool2d(halves.transpose(1, 2).unflatten(2, (2 * GRID, 2 * GRID)), 2).flatten(2).transpose(1, 2)
        torch.testing.assert_close(coarse.get_patch_features(images, normalize=False), means, rtol=0, atol=1e-5)


@torch.no_grad()
def test_patches_of_crops_are_placed_where_they_belong():
    settings = {"scales": [1, 2], "crops": 1, "crop_zoom": 2, "fusion": "projection", "patch_grid": "fine"}
    model, images = local_model(finer_vision=settings), pictures(2)
    plain = local_model().get_patch_features(images, interpolate_pos_encoding=True)
    plain = plain.transpose(1, 2).unflatten(2, (2 * GRID, 2 * GRID))
    show_entry(model, 2)
    found = model.get_patch_features(images, normalize=False).transpose(1, 2).unflatten(2, (2 * GRID, 2 * GRID))
    mean = torch.zeros_like(found)
    for entry in (0, 1):
        show_entry(model, entry)
        mean += model.get_patch_features(images, normalize=False).transpose(1, 2).unflatten(2, (2 * GRID, -1)) / 2
    corners = model.get_image_features(images).crop_corners[:, 0] // PATCH
    for picture, (y, x) in enumerate(corners.tolist()):
        inside = torch.zeros(2 * GRID, 2 * GRID, dtype=torch.bool)
        inside[y : y + GRID, x : x + GRID] = True
        torch.testing.assert_close(found[picture][:, inside], plain[picture][:, inside], rtol=0, atol=1e-5)
        torch.testing.assert_close(found[picture][:, ~inside], mean[picture][:, ~inside], rtol=0, atol=1e-5)


@torch.no_grad()
def test_crops_go_where_the_guide_is():
    """A patch of another colour, whose own feature is the guide, lies in the crop, wherever it is."""
    model = local_model(finer_vision={"crops": 1, "crop_zoom": 2})
    plain = local_model()
    for row, column in ((0, 0), (0, 3), (3, 1), (2, 3)):
        image = torch.full((1, 3, 2 * SIDE, 2 * SIDE), -1.0)
        image[..., 2 * PATCH * row : 2 * PATCH * (row + 1), 2 * PATCH * column : 2 * PATCH * (column + 1)] = 1.0
        small = resize_pictures(image, (SIDE, SIDE))
        guide = plain.get_patch_features(small)[:, row * GRID + column]
        (y, x) = model.get_image_features(image, guide_embeds=guide).crop_corners[0, 0].tolist()
        assert y <= 2 * PATCH * row <= y + SIDE - 2 * PATCH
        assert x <= 2 * PATCH * column <= x + SIDE - 2 * PATCH
    repeated = model.encode_image(image.expand(2, -1, -1, -1), guide_embeds=guide)
    torch.testing.assert_close(repeated[1:], model.encode_image(image, guide_embeds=guide))


class KnownText(DreamLIPModel):
    """Every text is `shown`; remembers what guided the crops."""

    def encode_text(self, input_ids, attention_mask=None, normalize=True):
        return self.shown

    def get_patch_features(self, *args, **kwargs):
        self.guide = kwargs.get("guide_embeds")
        return super().get_patch_features(*args, **kwargs)


@torch.no_grad()
def test_heat_maps_are_finer(tokenizer):
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    processor = DreamLIPProcessor(image_processor, tokenizer)
    yellow = processor(images=Image.new("RGB", (SIDE, SIDE), "yellow"), return_tensors="pt")["pixel_values"]
    picture = Image.new("RGB", (4 * SIDE, 4 * SIDE), "navy")
    picture.paste("yellow", (5 * PATCH, 9 * PATCH, 7 * PATCH, 11 * PATCH))  # half of a coarse patch's side
    place = torch.zeros(4 * SIDE, 4 * SIDE)
    place[9 * PATCH : 11 * PATCH, 5 * PATCH : 7 * PATCH] = 1
    errors = []
    for settings in (None, {"scales": [1, 2], "patch_grid": "fine"}, {"crops": 1, "patch_grid": "fine"}):
        model = local_model(finer_vision=settings)
        model.__class__, model.shown = KnownText, local_model().get_patch_features(yellow)[:, 0]
        heat = text_heat_map(model, processor, picture, "yellow")
        assert heat.shape == place.shape
        assert (model.guide is not None) == ("crops" in (settings or {}))
        share = (heat - heat.min()) / (heat.max() - heat.min())
        errors.append(float((share - place).abs().mean()))
    assert max(errors[1:]) < 0.8 * errors[0]


def test_gradients_reach_tower_projection_and_pixels():
    model = make(DreamLIPModel, finer_vision=EVERYTHING | {"fusion": "projection"}, captions_per_image=2)
    inputs = batch(3, captions=2)
    inputs["pixel_values"].requires_grad_()
    _, gradients = losses_and_gradients(model, inputs)
    for name in ("view_fusion.pooled.weight", "view_fusion.patches.weight", "vision_model.embeddings.class_embedding"):
        assert gradients[name].abs().max() > 0
    assert (inputs["pixel_values"].grad.abs().amax((1, 2, 3)) > 0).all()


def test_training_and_evaluation_embed_alike():
    """In training the last layer computes the class token alone, of every view."""
    for settings in (EVERYTHING, {"scales": [1, 2]}):
        model = make(finer_vision=settings)
        expected = model.embed(pictures(FinerVision.read(settings).factor)).image_embeds
        found = model.train().embed(pictures(FinerVision.read(settings).factor))
        assert found.vision_model_output is None
        torch.testing.assert_close(found.image_embeds, expected, rtol=0, atol=1e-6)


def test_the_gradient_cache_cuts_pictures_not_views():
    model, inputs = make(finer_vision=EVERYTHING), batch(3)
    loss, expected = losses_and_gradients(model, inputs)
    model.train()
    model.zero_grad()
    found = cached_backward(model, inputs, chunk_size=2, backward=lambda loss: loss.backward())
    torch.testing.assert_close(found["loss"], loss)
    for name, gradient in expected.items():
        torch.testing.assert_close(dict(model.named_parameters())[name].grad, gradient, rtol=1e-4, atol=1e-6)


def test_asked_for_states_are_those_of_the_whole_picture():
    images = pictures(2)
    found = make(finer_vision={"scales": [1, 2]}).get_image_features(images, output_hidden_states=True)
    whole = resize_pictures(images, (SIDE, SIDE))
    expected = make().get_image_features(whole, output_hidden_states=True)
    assert len(found.hidden_states) == len(expected.hidden_states)
    for own, other in zip(found.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(own, other)
    torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state)


@pytest.mark.parametrize("fusion", ["mean", "projection"])
def test_settings_travel_with_model_and_processor(fusion, tower_configs, image_processor, tokenizer, tmp_path):
    settings = {"scales": [1, 2], "crops": 1, "fusion": fusion}
    model = FFFModel(FFFConfig(**tower_configs, contrastive_loss="softmax")).eval()
    processor = FFFProcessor(CLIPImageProcessorPil(**_sizes(image_processor)), tokenizer)
    model.set_finer_vision(settings, processor)
    if fusion == "projection":
        torch.nn.init.normal_(model.view_fusion.pooled.weight)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, its_processor = AutoModel.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    assert FinerVision.of(again.config) == FinerVision.read(settings)
    picture = _noise()
    inputs = its_processor(images=picture, text=["a red cat", "a tiger"], return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 48, 48)
    with torch.no_grad():
        expected = model(**inputs)
        torch.testing.assert_close(again(**inputs).logits_per_image, expected.logits_per_image)
        plain = FFFModel.from_pretrained(tmp_path, finer_vision=None)
        assert plain.view_fusion is None
        assert not torch.allclose(plain.encode_image(inputs["pixel_values"][..., :24, :24]), expected.image_embeds)
    classify = pipeline("zero-shot-image-classification", model=str(tmp_path))
    found = {
        each["label"]: each["score"]
        for each in classify(picture, candidate_labels=["a red cat", "a tiger"], hypothesis_template="{}")
    }
    shares = expected.logits_per_image.softmax(-1)[0].tolist()
    assert [found["a red cat"], found["a tiger"]] == pytest.approx(shares, abs=1e-4)


def test_a_checkpoint_without_a_projection_says_so_and_starts_as_the_mean(tmp_path, caplog, monkeypatch):
    make(DreamLIPModel).save_pretrained(tmp_path)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with caplog.at_level(logging.WARNING, logger="transformers"):
        model, info = DreamLIPModel.from_pretrained(
            tmp_path, finer_vision=EVERYTHING | {"fusion": "projection"}, output_loading_info=True
        )
    assert set(info["missing_keys"]) == {"view_fusion.pooled.weight", "view_fusion.patches.weight"}
    assert "view_fusion" in caplog.text
    assert "MISSING" in caplog.text
    mean, images = DreamLIPModel.from_pretrained(tmp_path, finer_vision=EVERYTHING), pictures(3)
    with torch.no_grad():
        torch.testing.assert_close(model.encode_image(images), mean.encode_image(images), rtol=0, atol=1e-6)
        torch.testing.assert_close(
            model.get_patch_features(images), mean.get_patch_features(images), rtol=0, atol=1e-6
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scales": [1, 3, 2]}, r"scales=\[1, 3, 2\].*ascending"),
        ({"scales": [1, 2, 2]}, "ascending"),
        ({"scales": [2, 3]}, "begin with 1"),
        ({"scales": [0, 1]}, r"scales=\[0, 1\]: expected numbers above 0"),
        ({"scales": [1, -2]}, "numbers above 0"),
        ({"scales": []}, "numbers above 0"),
        ({"scales": [1, "2"]}, "numbers above 0"),
        ({"scales": [1, 1.5]}, "do not divide a picture 1.5 times as large"),
        ({"scales": [1, 2], "fusion": "max"}, "fusion='max' is unknown: choose one of"),
        ({"scales": [1, 2], "patch_grid": "finest"}, "patch_grid='finest' is unknown"),
        ({"fusion": "projection"}, "nothing to join"),
        ({"crops": -1}, "crops=-1: expected a whole number of at least 0"),
        ({"crops": 1, "crop_zoom": 1}, "crop_zoom=1: expected a whole number of at least 2"),
        ({"crops": 26}, "crops=26 is more than the 25 places"),
        ({"zoom": 2}, r"unknown \['zoom'\]; expected a dict with scales, fusion, patch_grid, crops, crop_zoom"),
    ],
)
def test_bad_settings_are_named(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        make(finer_vision=settings)
    model = make()
    with pytest.raises(ValueError, match=message):
        model.set_finer_vision(settings)
    if settings == {"zoom": 2}:
        model.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=message):
            FFFModel.from_pretrained(tmp_path, finer_vision=settings)


def test_settings_are_read_from_json():
    assert FinerVision.read('{"scales": [1, 2.0]}') == FinerVision(scales=(1, 2))
    assert FinerVision.read(EVERYTHING).views() == 1 + 4 + 9 + 2
    with pytest.raises(ValueError, match="is no JSON"):
        FinerVision.read("{scales}")
    with pytest.raises(ValueError, match="expected a dict"):
        FinerVision.read("[1, 2]")


def test_patches_that_do_not_divide_the_picture_cannot_be_cropped():
    tower = {"image_size": 18, "patch_size": 4, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    tower |= {"model_type": "clip_vision_model", "intermediate_size": 8}
    assert FFFConfig(vision_config=tower, finer_vision={"scales": [1, 2]}).finer_vision["scales"] == [1, 2]
    with pytest.raises(ValueError, match="patches of 4 pixels do not divide pictures of 18"):
        FFFConfig(vision_config=tower, finer_vision={"crops": 1})


@pytest.mark.parametrize("size", [(SIDE, SIDE), (3 * SIDE, 2 * SIDE), (4 * SIDE, 4 * SIDE)])
def test_pictures_of_another_size_are_refused(size):
    model = make(finer_vision={"scales": [1, 3]})
    with pytest.raises(ValueError, match=rf"{size[0]}x{size[1]}.*scales \[1, 3\].*48x48.*fit_pictures"):
        model.encode_image(torch.zeros(1, 3, *size))


@torch.no_grad()
def test_larger_pictures_with_interpolated_positions():
    model = make(DreamLIPModel, finer_vision={"scales": [1, 2]})
    found = model.get_patch_features(torch.randn(1, 3, 48, 64), interpolate_pos_encoding=True)
    assert found.shape[1] == 6 * 8
    assert model.patch_grid(48, 64) == (6, 8)
    with pytest.raises(ValueError, match="or multiples of 8"):
        model.get_patch_features(torch.randn(1, 3, 44, 64), interpolate_pos_encoding=True)
    plain = make().get_image_features(torch.randn(1, 3, 48, 64), interpolate_pos_encoding=True)
    assert plain.last_hidden_state.shape[1] == 1 + 12 * 16  # today's way without finer vision


def test_what_cannot_take_it_refuses_with_the_reason(tmp_path):
    settings = {"scales": [1, 2]}
    for config, reason in (
        (GroupViTPlusConfig, "groups"),
        (APEConfig, "backbone"),
        (CLIPFSARConfig, "frames"),
        (MACLIPConfig, "frames"),
    ):
        with pytest.raises(ValueError, match=f"{config.__name__} has no finer_vision: .*{reason}"):
            config(finer_vision=settings)
        config().save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=f"{config.__name__} has no finer_vision"):
            config.from_pretrained(tmp_path, finer_vision=settings)
    with pytest.raises(ValueError, match="DIVAForDiffusionFeedback has no finer_vision"):
        make(DIVAForDiffusionFeedback, finer_vision=settings)
    with pytest.raises(ValueError, match="embedding='official'"):
        make(DIVAModel, finer_vision=settings).get_image_features(pictures(2), embedding="official")
    with pytest.raises(ValueError, match="guide_embeds choose crops"):
        make(finer_vision=settings).get_image_features(pictures(2), guide_embeds=torch.ones(1, 12))


def test_every_variant_has_it_or_says_why_not():
    for variant in VARIANTS:
        config = variant.load(variant.config)
        assert hasattr(config, "finer_vision") != (config.model_type in WITHOUT_FINER_VISION), variant.id


def test_an_ape_backbone_may_have_it():
    settings = {"scales": [1, 2]}
    config = APEConfig(backbone_config=make(finer_vision=settings).config.to_dict())
    assert FinerVision.of(config.backbone_config) == FinerVision.read(settings)


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        (CLIPImageProcessorPil(size={"shortest_edge": 18}, crop_size={"height": 16, "width": 16}), (54, 48)),
        (SiglipImageProcessorPil(size={"height": 16, "width": 16}), (48, None)),
    ],
)
def test_the_processor_is_told_the_size(processor, expected):
    config = make(finer_vision=EVERYTHING).config
    assert picture_side(config) == 48
    for _ in range(2):
        fit_pictures(processor, config)
        assert set(dict(processor.size).values()) == {expected[0]}
        assert expected[1] is None or dict(processor.crop_size) == {"height": 48, "width": 48}
        assert processor(_noise(), return_tensors="pt")["pixel_values"].shape == (1, 3, 48, 48)
    fit_pictures(processor, make().config)
    assert processor(_noise(), return_tensors="pt")["pixel_values"].shape == (1, 3, SIDE, SIDE)
    processor = SiglipImageProcessorPil(size={"height": 16, "width": 20})
    with pytest.raises(ValueError, match="square"):
        fit_pictures(processor, config)


def test_local_means_of_diva_are_those_of_every_view():
    images = pictures(2)
    with torch.no_grad():
        one = make(DIVAModel, embedding="cls+local_mean", finer_vision={"scales": [1, 2]}).encode_image(images)
        other = make(DIVAModel, finer_vision={"scales": [1, 2]}).encode_image(images)
    assert not torch.allclose(one, other, atol=1e-3)


def _sizes(processor):
    return {"size": dict(processor.size), "crop_size": dict(processor.crop_size)}


def _noise():
    draw = torch.randint(0, 256, (40, 30, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Image.fromarray(draw.numpy())
