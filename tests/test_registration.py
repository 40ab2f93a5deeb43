"""Registration with the Auto classes: lazily, and in whatever order transformers and the zoo are imported."""

import subprocess
import sys

import pytest

from hf_clipplus import FFFConfig, FFFModel
from hf_clipplus.registration import LazyClass

CHECK = """
from transformers import AutoConfig, AutoModel, AutoModelForZeroShotImageClassification
from transformers.models.auto.processing_auto import processor_class_from_name
config = AutoConfig.for_model("clipplus_fff")
model = AutoModel._model_mapping[type(config)]
zero_shot = AutoModelForZeroShotImageClassification._model_mapping[type(config)]
from hf_clipplus import FFFConfig, FFFModel, FFFProcessor
assert type(config) is FFFConfig
assert model.from_pretrained.__self__ is zero_shot.from_pretrained.__self__ is FFFModel
assert processor_class_from_name("FFFProcessor").from_pretrained.__self__ is FFFProcessor
"""


@pytest.mark.parametrize(
    "first",
    [
        "import hf_clipplus, transformers.modeling_utils",  # loads AutoConfig while it is itself half loaded
        *(
            pytest.param(other, marks=pytest.mark.slow)
            for other in (
                "import transformers.pipelines, hf_clipplus",
                "from hf_clipplus.models.fff.configuration_fff import FFFConfig",
                "import hf_clipplus; from transformers import pipeline",
            )
        ),
    ],
)
def test_any_order_of_imports(first):
    done = subprocess.run([sys.executable, "-c", first + CHECK], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_auto_config_alone_loads_no_model():
    script = """
import sys, hf_clipplus
from transformers import AutoConfig
assert type(AutoConfig.for_model("clipplus_fff")).__name__ == "FFFConfig"
print(*(name for name in sys.modules if name.startswith("hf_clipplus") and "modeling" in name))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stdout.strip()


def test_lazy_class_is_the_class_to_whoever_uses_it():
    lazy = LazyClass("hf_clipplus.models.fff.modeling_fff", "FFFModel", FFFConfig)
    assert (lazy.__name__, lazy.__module__, lazy.config_class) == ("FFFModel", FFFModel.__module__, FFFConfig)
    assert lazy.from_pretrained.__self__ is FFFModel
    assert "FFFModel" in repr(lazy)
    with pytest.raises(AttributeError, match="no_such_thing"):
        lazy.no_such_thing  # noqa: B018


def test_unknown_name_of_the_package():
    import hf_clipplus

    assert {"FFFModel", "list_models"} <= set(dir(hf_clipplus))
    with pytest.raises(AttributeError, match="no attribute 'NoSuchModel'"):
        hf_clipplus.NoSuchModel  # noqa: B018
