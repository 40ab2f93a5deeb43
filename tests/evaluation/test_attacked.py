"""Zero-shot accuracy under attack: lower, never above the clean one, within the ball, equal for every batch size."""

import pytest
import torch

from hf_clipplus.evaluation.attacked import PixelAttack, encode_attacked_images
from hf_clipplus.evaluation.encode import encode_images
from hf_clipplus.evaluation.zero_shot import ZeroShotClassification, zero_shot_classifier

COLOURS = ("red", "green", "blue", "yellow", "black", "white", "purple", "orange")  # of the `pictures` fixture
TEMPLATES = ["a photo of a {}"]


def sure_rows(model, processor, pictures):
    """The pictures with the classes that the model finds, so that its clean accuracy is 1."""
    classifier = zero_shot_classifier(model, processor, COLOURS, TEMPLATES)
    found = (encode_images(model, processor, pictures) @ classifier).argmax(1)
    return [
        {"image": picture, "label": int(label)} for picture, label in zip(pictures, found, strict=True)
    ], classifier


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_accuracy_falls_with_the_radius_and_clean_numbers_stay(kind, pictures, request):
    model, processor = request.getfixturevalue(kind)
    rows, _ = sure_rows(model, processor, pictures)
    plain = ZeroShotClassification(rows, COLOURS, TEMPLATES)(model, processor)
    assert plain["top1"] == 1.0
    attacked = []
    for radius in (0.01, 100.0):
        attack = PixelAttack(radius, steps=5)
        result = ZeroShotClassification(rows, COLOURS, TEMPLATES, attack=attack)(model, processor)
        assert {name: result[name] for name in plain} == plain
        assert set(result) - set(plain) == {
            "attacked_top1",
            "attacked_top5",
            "attacked_mean_per_class",
            "attack_radius",
        }
        assert result["attack_radius"] == radius
        attacked.append(result["attacked_top1"])
    assert attacked[1] < 0.6
    assert attacked[1] < attacked[0] <= 1.0
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_images_stay_in_the_ball_and_do_not_depend_on_the_batch(clip, pictures):
    model, processor = clip
    rows, classifier = sure_rows(model, processor, pictures)
    labels = torch.tensor([row["label"] for row in rows])
    seen = []
    hook = model.vision_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["pixel_values"].detach()), with_kwargs=True
    )
    options = {"attack": PixelAttack(6.0, steps=3, seed=1)}
    together = encode_attacked_images(model, processor, pictures, labels, classifier, **options, batch_size=8)
    hook.remove()
    clean = torch.as_tensor(processor(images=pictures, return_tensors="pt")["pixel_values"])
    std = torch.tensor(processor.image_processor.image_std)[:, None, None]
    change = (seen[-1] - clean) * std * 255  # the last forward pass is that of the attacked images
    assert 5.5 < change.abs().max() < 6.01
    alone = encode_attacked_images(model, processor, pictures, labels, classifier, **options, batch_size=3)
    torch.testing.assert_close(alone, together, atol=1e-4, rtol=0)

    def margins(embeds):
        cosines = embeds @ classifier
        right = torch.nn.functional.one_hot(labels, len(COLOURS)).bool()
        return cosines.masked_fill(right, -2).amax(1) - cosines[right]

    assert (margins(together) >= margins(encode_images(model, processor, pictures)) - 1e-6).all()


def test_wrong_attacks(clip, pictures):
    for settings in ({"radius": 0.0}, {"radius": -1.0}, {"radius": 300.0}, {"steps": 0}):
        with pytest.raises(ValueError, match="expected a positive radius"):
            PixelAttack(**settings)
    with pytest.raises(ValueError, match="at least two classes"):
        encode_attacked_images(*clip, pictures, torch.zeros(8), torch.zeros(16, 1), PixelAttack())
