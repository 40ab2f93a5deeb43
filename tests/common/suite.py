"""transformers' own common test suite, made usable for the zoo's models.

A variant adds one file with a tester (its tiny configuration and batch) and two or three small classes; see
`test_fff_common.py`. The suite comes from the source distribution of the installed transformers; where that cannot be
had, the importing test module is skipped with the reason, and fails when CI=true.
"""

import importlib.util
import inspect
import os
import sys
import unittest
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec

import pytest
import torch
from fetch_sdist import SdistError, fetch
from transformers import CLIPImageProcessorPil, CLIPTokenizer

# Not `tests`, its name upstream: pytest gives that name to our own folder.
PACKAGE = "transformers_tests"
UTILITIES = ("fetch_hub_objects_for_ci",)


class _Stubs(MetaPathFinder, Loader):
    """Finds the upstream modules that the source distribution lacks; stands last in the line of finders."""

    def find_spec(self, name, path=None, target=None):
        missing = name.startswith(f"{PACKAGE}.") or name in UTILITIES
        return ModuleSpec(name, self, is_package=True) if missing else None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        module.__getattr__ = _attribute


def _attribute(name: str):
    """Any name of a stubbed module: an empty class, or a function that does nothing."""
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {}) if name[0].isupper() else (lambda *args, **kwargs: None)


def _load_upstream() -> None:
    folder = fetch()
    spec = importlib.util.spec_from_file_location(
        PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    sys.modules[PACKAGE] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[PACKAGE])
    sys.meta_path.append(_Stubs())


if PACKAGE not in sys.modules:
    try:
        _load_upstream()
    except SdistError as error:
        if os.environ.get("CI", "").lower() == "true":
            raise
        pytest.skip(f"transformers' common suite is not here: {error}", allow_module_level=True)

ConfigTester = import_module(f"{PACKAGE}.test_configuration_common").ConfigTester
ModelTesterMixin = import_module(f"{PACKAGE}.test_modeling_common").ModelTesterMixin
ProcessorTesterMixin = import_module(f"{PACKAGE}.test_processing_common").ProcessorTesterMixin

_TWO_TOWERS = (
    "looks for one hidden_states/attentions at the top; two towers keep theirs in text_model_output and "
    "vision_model_output, as CLIPOutput does, where test_get_{image,text}_features_{hidden_states,attentions} look"
)
# Upstream tests that do not apply to a dual encoder, and why; everything else runs as it is.
DUAL_ENCODER_SKIPPED = {
    "test_attention_outputs": _TWO_TOWERS,
    "test_hidden_states_output": _TWO_TOWERS,
    "test_retain_grad_hidden_states_attentions": _TWO_TOWERS,
}
# The longest upstream test: a deprecated argument with every dtype. `make test-all` runs it
pytest.mark.slow(ModelTesterMixin.test_bc_torch_dtype)


class ModelTests(ModelTesterMixin):
    """The upstream tests of a model and its configuration. A variant's class also derives from `unittest.TestCase`.

    Class attributes:
        all_model_classes: as upstream.
        tester_class: called without arguments; see `DualEncoderTester`.
        skipped: upstream test -> why it does not apply.
    """

    tester_class: type
    skipped: dict[str, str] = DUAL_ENCODER_SKIPPED
    _is_composite = True
    test_can_init_all_missing_weights_before_2023 = True  # upstream dates a model by a copyright line; we have none

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        for name in cls.skipped.keys() & set(dir(cls)):
            setattr(cls, name, unittest.skip(cls.skipped[name])(getattr(cls, name)))

    def setUp(self):
        self.model_tester = self.tester_class()

    def test_config(self):
        config = self.model_tester.get_config()
        given = {name: getattr(config, name).to_dict() for name in type(config).sub_configs}
        ConfigTester(self, type(config), has_text_modality=False).run_common_tests()
        ConfigTester(self, type(config), has_text_modality=False, **given).create_and_test_config_to_json_file()

    def test_nothing_but_the_listed_is_left_out(self):
        upstream = {
            name: getattr(ModelTesterMixin, name) for name in dir(ModelTesterMixin) if name.startswith("test_")
        }
        stale = self.skipped.keys() - {name for name, value in upstream.items() if callable(value)}
        assert not stale, f"no longer in transformers' suite: {sorted(stale)}"
        for name in upstream.keys() - self.skipped.keys():
            own = getattr(type(self), name)
            if callable(own):
                assert inspect.unwrap(own) is inspect.unwrap(upstream[name]), f"{name} is overridden"
            else:
                assert own or not upstream[name], f"the switch {name} turns upstream tests off"


class DualEncoderTester:
    """A tiny configuration and batch of a dual encoder.

    Args:
        config_class: a `DualEncoderConfig`.
        towers: "clip" or "siglip".
        options: further fields of the configuration.
    """

    is_training = True
    batch_size, seq_length, image_size, patch_size, vocab_size = 4, 7, 16, 8, 99
    num_hidden_layers, num_attention_heads, hidden_size = 2, 4, 32

    def __init__(self, config_class: type, towers: str = "clip", **options):
        self.config_class, self.towers, self.options = config_class, towers, options

    def get_config(self):
        tower = {
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "hidden_size": self.hidden_size,
            "intermediate_size": 37,
        }
        ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
        text = {"model_type": f"{self.towers}_text_model", "vocab_size": self.vocab_size} | tower | ids
        vision = {"model_type": f"{self.towers}_vision_model"} | tower
        return self.config_class(
            text_config=text | {"max_position_embeddings": 16},
            vision_config=vision | {"image_size": self.image_size, "patch_size": self.patch_size},
            projection_dim=24,
            **self.options,
        )

    def prepare_config_and_inputs_for_common(self):
        images = torch.randn(self.batch_size, 3, self.image_size, self.image_size)
        ids = torch.randint(2, self.vocab_size, (self.batch_size, self.seq_length))
        ids[:, -1] = 1
        inputs = {"pixel_values": images, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return self.get_config(), inputs | {"return_loss": True}


class ProcessorTests(ProcessorTesterMixin):
    """The upstream tests of a processor made of CLIP's image processor and a CLIP tokenizer trained on the spot."""

    @classmethod
    def _setup_image_processor(cls):
        return CLIPImageProcessorPil()

    @classmethod
    def _setup_tokenizer(cls):
        texts = ["lower newer older longer string upper"] * 4
        tokenizer = CLIPTokenizer().train_new_from_iterator(texts, 400, show_progress=False)
        tokenizer.model_max_length = 77
        return tokenizer
