"""Cards: every variant and tuner has a text with all that a card needs (test_push_zoo runs its sample)."""

import re
from pathlib import Path

import pytest
import yaml
from tiny_zoo import tiny

from hf_clipplus import get_variant, list_models
from hf_clipplus.registration import TUNERS
from hf_clipplus.training.card import TEXTS, model_card, pipeline_tag, read_card_text

ROOT = Path(__file__).parents[2]
HUB_TASKS = {"zero-shot-image-classification", "image-classification", "image-segmentation", "video-classification"}


def sample_of(card: str) -> str:
    (sample,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    return sample


@pytest.mark.parametrize("name", [*list_models(), *TUNERS])
def test_every_text_says_what_a_card_needs(name):
    text = read_card_text(name, "me/mine")
    assert {"Limits", "Licence", "Citation"} <= text.sections.keys()
    assert all(text.sections.values())
    assert '"me/mine"' in sample_of(text.about)
    assert not re.search(r"org/[\w-]+-plus", text.about + "".join(text.sections.values()))


@pytest.mark.parametrize("name", list_models())
def test_card_of_every_variant(name):
    card = model_card(tiny(name)[0], "me/mine", facts={"Training": {"steps": 3}, "Nothing": {}}, license="mit")
    facts, text = card.data.to_dict(), str(card)
    variant = get_variant(name)
    assert facts["pipeline_tag"] == pipeline_tag(variant)
    assert facts["pipeline_tag"] in HUB_TASKS
    assert facts["library_name"] == "hf_clipplus"
    assert {"transformers", f"clipplus_{name}", f"arxiv:{variant.paper}"} <= set(facts["tags"])
    assert facts["license"] == "mit"
    assert "base_model" not in facts
    assert "model-index" not in facts
    assert yaml.safe_load(text.split("---\n")[1])
    headings = re.findall(r"^## (.*)", text, flags=re.MULTILINE)
    assert headings[:2] == ["Training", "Results"]
    assert headings[-1] == "Versions"
    assert "\n- steps: 3\n" in text
    assert "Not evaluated." in text
    assert not re.search(r"{{ |{%", text)


def test_a_card_names_what_the_weights_were_started_from():
    model, _ = tiny("fff")
    model.config.name_or_path = "openai/clip-vit-base-patch32"
    facts = model_card(model, "me/mine").data.to_dict()
    assert (facts["base_model"], facts["base_model_relation"]) == ("openai/clip-vit-base-patch32", "finetune")
    model.config.name_or_path = "outputs/fff/checkpoint-3"
    assert "base_model" not in model_card(model, "me/mine").data.to_dict()


def test_the_template_is_where_the_package_looks():
    assert (TEXTS / "template.md").is_file()
    assert TEXTS.resolve() == ROOT / "model_cards"
