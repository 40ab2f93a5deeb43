"""Makes the variants known to transformers' Auto classes as soon as those are loaded, and loads nothing itself.

`AutoModel.register` and its sisters want classes, and importing them costs seconds of transformers' modelling code.
So each registry is filled when somebody imports it: configurations as they are, models and processors as stand-ins
that load the class at its first use. Whoever only wants `hf_clipplus.ops` or `hf_clipplus.data` pays nothing.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder

from .catalogue import VARIANTS

AUTO = "transformers.models.auto"
TUNERS = ("ape_t", "ma_clip")
# configurations of towers that transformers does not have; variants take them as `vision_config`
TOWER_CONFIGS = {"CLIPResNetConfig": "hf_clipplus.models.configuration_clip_resnet"}
# variants whose image processor is one of ours, for videos
VIDEO_VARIANTS = ("clip_fsar", "ma_clip")
# task -> module and class of its pipeline, and the Auto class that loads its model
PIPELINES = {
    "clipplus-zero-shot-segmentation": (
        "hf_clipplus.pipelines.zero_shot_segmentation",
        "ZeroShotSegmentationPipeline",
        "AutoModel",
    ),
    "clipplus-few-shot-video-classification": (
        "hf_clipplus.pipelines.few_shot_video_classification",
        "FewShotVideoClassificationPipeline",
        "AutoModelForVideoClassification",
    ),
}


class LazyClass:
    """Stands for a class in a registry; everything asked of it but its names comes from the class, loaded then.

    Args:
        module, name: where the class is.
        config_class: its configuration class, which registering compares.
    """

    def __init__(self, module: str, name: str, config_class: type):
        self.__module__, self.__name__, self.config_class = module, name, config_class

    def __getattr__(self, name: str):
        return getattr(getattr(import_module(self.__module__), self.__name__), name)

    def __repr__(self) -> str:
        return f"<lazy class {self.__module__}.{self.__name__}>"


class _AfterImport(MetaPathFinder):
    """Runs an action right after a module has been imported, once."""

    def __init__(self):
        self.actions: dict[str, Callable[[], None]] = {}

    def find_spec(self, name, path=None, target=None):
        if name not in self.actions or (spec := PathFinder.find_spec(name, path)) is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_act(module) -> None:
            execute(module)
            self.actions.pop(name)()

        spec.loader.exec_module = execute_and_act
        return spec


_after_import = _AfterImport()


def when_imported(module: str, action: Callable[[], None]) -> None:
    """Run `action` now if `module` is loaded, or else as soon as it is."""
    if module in sys.modules:
        action()
    else:
        _after_import.actions[module] = action


def register_variants() -> None:
    """Fill the Auto registries with every variant of the catalogue, now or when they are loaded."""
    if _after_import not in sys.meta_path:
        sys.meta_path.insert(0, _after_import)
    when_imported(f"{AUTO}.configuration_auto", _register_configs)
    when_imported(f"{AUTO}.modeling_auto", _register_models)
    when_imported(f"{AUTO}.processing_auto", _register_processors)
    when_imported(f"{AUTO}.image_processing_auto", _register_video_frames)
    when_imported("transformers.pipelines", _register_pipelines)
    when_imported("peft", _register_tuners)


def _register_configs() -> None:
    auto = sys.modules[f"{AUTO}.configuration_auto"]
    for name, module in TOWER_CONFIGS.items():
        config = getattr(import_module(module), name)
        auto.AutoConfig.register(config.model_type, config, exist_ok=True)
    for variant in VARIANTS:
        config = variant.load(variant.config)
        auto.AutoConfig.register(config.model_type, config, exist_ok=True)


def _register_models() -> None:
    auto = sys.modules[f"{AUTO}.modeling_auto"]
    for variant in VARIANTS:
        config = variant.load(variant.config)
        model = LazyClass(variant.module_of(variant.model), variant.model, config)
        for auto_class in variant.auto_classes:
            getattr(auto, auto_class).register(config, model, exist_ok=True)


def _register_processors() -> None:
    auto = sys.modules[f"{AUTO}.processing_auto"]
    for variant in VARIANTS:
        config = variant.load(variant.config)
        processor = LazyClass(variant.module_of(variant.processor), variant.processor, config)
        auto.AutoProcessor.register(config, processor, exist_ok=True)


def _register_video_frames() -> None:
    auto = sys.modules[f"{AUTO}.image_processing_auto"]
    frames = import_module("hf_clipplus.models.video_processing").VideoFrameProcessor
    for variant in (each for each in VARIANTS if each.id in VIDEO_VARIANTS):
        config, backends = variant.load(variant.config), {"pil": frames, "torchvision": frames}
        auto.AutoImageProcessor.register(config, image_processor_classes=backends, exist_ok=True)


def _register_pipelines() -> None:
    registry = sys.modules["transformers.pipelines"].PIPELINE_REGISTRY
    for task, (module, name, auto_class) in PIPELINES.items():
        model = getattr(import_module("transformers"), auto_class)
        pipeline = getattr(import_module(module), name)
        registry.register_pipeline(task, pipeline_class=pipeline, pt_model=(model,), type="multimodal")


def _register_tuners() -> None:
    for tuner in TUNERS:
        import_module(f"hf_clipplus.tuners.{tuner}")
