"""The command line of GroupViT's converter, and what it refuses."""

import pytest
import torch
from transformers import GroupViTModel

from hf_clipplus import GroupViTPlusModel
from hf_clipplus.models.groupvit.convert_groupvit import groupvit_from_official, groupvit_to_transformers, main
from hf_clipplus.training.groupvit_build import build_groupvit

TINY = {"hidden_size": 32, "image_size": 16, "num_attention_heads": 4, "drop_path_rate": 0.1}
HEADS = ["--vision-heads", "4", "--text-heads", "4"]


@pytest.fixture(scope="module")
def saved(tokenizer, tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("groupvit")
    stages = {"depths": [1, 1, 1], "num_group_tokens": [6, 3, 0], "num_output_groups": [6, 3]}
    model, processor = build_groupvit("tiny", tokenizer, vision=TINY | stages)
    model.save_pretrained(folder / "ours")
    processor.save_pretrained(folder / "ours")
    return model.eval(), folder


def same_weights(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_official_there_and_back(saved, capsys, suffix):
    model, folder = saved
    main(["to-official", str(folder / "ours"), str(folder / f"official{suffix}")])
    main(["from-official", str(folder / f"official{suffix}"), str(folder / f"back{suffix}"), *HEADS])
    text = capsys.readouterr().out
    assert "used         img_encoder.layers.0.blocks.0.attn.qkv.weight [96, 32] -> " in text
    assert "0 unused, 0 missing, 0 dropped, 0 initialised" in text
    assert "no processor was saved" in text
    assert same_weights(GroupViTPlusModel.from_pretrained(folder / f"back{suffix}"), model)


def test_transformers_there_and_back(saved, capsys):
    model, folder = saved
    main(["to-transformers", str(folder / "ours"), str(folder / "theirs")])
    assert "dropped      multi_label_logit_scale: transformers' GroupViTModel has no" in capsys.readouterr().out
    main(["from-transformers", str(folder / "theirs"), str(folder / "again"), "--tokenizer", str(folder / "ours")])
    assert "initialised  multi_label_logit_scale" in capsys.readouterr().out
    again = GroupViTPlusModel.from_pretrained(folder / "again")
    assert same_weights(again, model)  # both scales still have their first value
    pixels = torch.randn(2, 3, 16, 16)
    theirs = GroupViTModel.from_pretrained(folder / "theirs").eval()
    with torch.no_grad():
        expected = theirs.get_image_features(pixels).pooler_output
        torch.testing.assert_close(again.eval().encode_image(pixels, normalize=False), expected, rtol=0, atol=1e-5)


def test_nothing_is_missing_or_left_over_in_silence(saved):
    _, folder = saved
    main(["to-official", str(folder / "ours"), str(folder / "whole.pth")])
    state = torch.load(folder / "whole.pth", weights_only=True)["model"]
    heads = {"vision": {"num_attention_heads": 4}, "text": {"num_attention_heads": 4}}
    for change, message in (
        (lambda s: s.pop("img_encoder.norm.bias"), r"Missing keys: \['vision_model.layernorm.bias'\]"),
        (lambda s: s.update({"extra.weight": torch.zeros(1)}), r"Unused keys: \['extra.weight'\]"),
        (lambda s: s.update({"img_encoder.norm.bias": torch.zeros(5)}), "found \\[5\\], expected \\[32\\]"),
        (lambda s: s.pop("img_encoder.pos_embed"), "not an official GroupViT checkpoint"),
    ):
        broken = dict(state)
        change(broken)
        torch.save({"model": broken, "epoch": 3}, folder / "broken.pth")
        with pytest.raises(ValueError, match=message):
            groupvit_from_official(folder / "broken.pth", **heads)
    with pytest.raises(ValueError, match="width 32 is no multiple of 64"):
        groupvit_from_official(folder / "whole.pth")


@pytest.mark.parametrize(
    ("vision", "message"),
    [
        ({"hard_assignment": False}, "soft assignment"),
        ({"embed_factors": [1, 2]}, "different widths"),
        ({"depths": [1, 1, 1], "num_group_tokens": [5, 3, 0], "num_output_groups": [6, 3]}, "wrong one of them"),
    ],
)
def test_what_transformers_cannot_hold(tokenizer, vision, message):
    model, _ = build_groupvit("tiny", tokenizer, vision=TINY | vision)
    with pytest.raises(ValueError, match=message):
        groupvit_to_transformers(model)
