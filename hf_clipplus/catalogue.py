"""One table of the variants; registration, lists, tables and cards are made from it."""

from dataclasses import dataclass
from fnmatch import fnmatch
from importlib import import_module


@dataclass(frozen=True)
class Variant:
    """Facts about one variant.

    Args:
        id: folder under `models/`, and stem of the Hub repository (`<org>/<id>-plus`).
        config, model, processor: class names in `hf_clipplus.models.<id>`.
        paper: arXiv number.
        title: the paper's name of the method and what it adds, in one line.
        auto_classes: transformers' Auto classes under which the model is registered.
        tasks: pipelines that the model serves.
        recipe: the example that trains it.
        licence: licence of the method's published code and weights, as far as known.
    """

    id: str
    config: str
    model: str
    processor: str
    paper: str
    title: str
    auto_classes: tuple[str, ...]
    tasks: tuple[str, ...]
    recipe: str
    licence: str

    def module_of(self, class_name: str) -> str:
        """Name of the module that holds the variant's configuration, model or processor class."""
        kinds = {self.config: "configuration", self.model: "modeling", self.processor: "processing"}
        return f"hf_clipplus.models.{self.id}.{kinds[class_name]}_{self.id}"

    def load(self, class_name: str) -> type:
        """The variant's configuration, model or processor class, imported now."""
        return getattr(import_module(self.module_of(class_name)), class_name)


VARIANTS = (
    Variant(
        id="fff",
        config="FFFConfig",
        model="FFFModel",
        processor="FFFProcessor",
        paper="2405.10286",
        title="FFF: mined positives, several captions per image, sigmoid loss",
        auto_classes=("AutoModel", "AutoModelForZeroShotImageClassification"),
        tasks=("zero-shot-image-classification", "image-feature-extraction"),
        recipe="examples/train_fff.py",
        licence="no code and no weights were published",
    ),
    Variant(
        id="groupvit",
        config="GroupViTPlusConfig",
        model="GroupViTPlusModel",
        processor="GroupViTPlusProcessor",
        paper="2202.11094",
        title="GroupViT: groups patches into segments; segmentation from text",
        auto_classes=("AutoModel", "AutoModelForZeroShotImageClassification"),
        tasks=("clipplus-zero-shot-segmentation", "zero-shot-image-classification", "image-feature-extraction"),
        recipe="examples/train_groupvit.py",
        licence="NVIDIA Source Code License, non-commercial (published code and weights; nothing of it is used here)",
    ),
    Variant(
        id="dreamlip",
        config="DreamLIPConfig",
        model="DreamLIPModel",
        processor="DreamLIPProcessor",
        paper="2403.17007",
        title="DreamLIP: long captions in parts, each tied to its patches",
        auto_classes=("AutoModel", "AutoModelForZeroShotImageClassification"),
        tasks=("zero-shot-image-classification", "image-feature-extraction"),
        recipe="examples/train_dreamlip.py",
        licence="CC-BY-4.0 (published code); weights and captions name none",
    ),
    Variant(
        id="longclip",
        config="LongCLIPConfig",
        model="LongCLIPModel",
        processor="LongCLIPProcessor",
        paper="2403.15378",
        title="Long-CLIP: texts of 248 tokens, or of any length in segments",
        auto_classes=("AutoModel", "AutoModelForZeroShotImageClassification"),
        tasks=("zero-shot-image-classification", "image-feature-extraction"),
        recipe="examples/train_longclip.py",
        licence="Apache-2.0 (published code); the weights name none",
    ),
    Variant(
        id="diva",
        config="DIVAConfig",
        model="DIVAModel",
        processor="DIVAProcessor",
        paper="2407.20171",
        title="DIVA: a diffusion model's feedback trains the visual tower",
        auto_classes=("AutoModel", "AutoModelForZeroShotImageClassification"),
        tasks=("zero-shot-image-classification",),
        recipe="examples/train_diva.py",
        licence="MIT (published code), Apache-2.0 (published weights); Stable Diffusion's own for the generator",
    ),
    Variant(
        id="ape",
        config="APEConfig",
        model="APEForImageClassification",
        processor="APEProcessor",
        paper="2304.01195",
        title="APE, APE-T: few-shot classification with refined cache channels (PEFT)",
        auto_classes=("AutoModel", "AutoModelForImageClassification"),
        tasks=("image-classification",),
        recipe="examples/train_ape.py",
        licence="the published code names no licence; nothing of it is used here",
    ),
    Variant(
        id="clip_fsar",
        config="CLIPFSARConfig",
        model="CLIPFSARForFewShotVideoClassification",
        processor="CLIPFSARProcessor",
        paper="2303.02982",
        title="CLIP-FSAR: few-shot video recognition, prototypes modulated by text",
        auto_classes=("AutoModel", "AutoModelForVideoClassification"),
        tasks=("clipplus-few-shot-video-classification", "video-classification"),
        recipe="examples/train_clip_fsar.py",
        licence="Apache-2.0 (published code; no weights were published)",
    ),
    Variant(
        id="ma_clip",
        config="MACLIPConfig",
        model="MACLIPForFewShotVideoClassification",
        processor="MACLIPProcessor",
        paper="2308.01532",
        title="MA-CLIP: few-shot video recognition by adapters inside frozen CLIP (PEFT)",
        auto_classes=("AutoModel", "AutoModelForVideoClassification"),
        tasks=("clipplus-few-shot-video-classification", "video-classification"),
        recipe="examples/train_ma_clip.py",
        licence="no code and no weights were published",
    ),
)


def list_models(pattern: str = "*") -> list[str]:
    """Ids of the variants that match a shell pattern, e.g. `list_models("f*")`."""
    return [variant.id for variant in VARIANTS if fnmatch(variant.id, pattern)]


def get_variant(variant_id: str) -> Variant:
    """The entry of one variant; raises KeyError that lists the known ids."""
    for variant in VARIANTS:
        if variant.id == variant_id:
            return variant
    raise KeyError(f"unknown variant {variant_id!r}; known: {', '.join(list_models())}")
