"""APE under transformers' own common suite: an APE head on CLIP towers, and its processor."""

import unittest

import suite
import torch

from hf_clipplus import APEConfig, APEForImageClassification, APEProcessor, FFFConfig


class APETester(suite.DualEncoderTester):
    """Tiny towers, five classes, two cached images of each, half the channels."""

    def __init__(self):
        super().__init__(FFFConfig)

    def get_config(self):
        return APEConfig(
            backbone_config=super().get_config(), head="ape", num_labels=5, cache_size=10, num_channels=12
        )

    def prepare_config_and_inputs_for_common(self):
        pixel_values = torch.randn(self.batch_size, 3, self.image_size, self.image_size)
        return self.get_config(), {"pixel_values": pixel_values, "labels": torch.arange(self.batch_size)}


_FIRST_LAYER = "watches the first layer of all, the text tower's, which an image classifier does not run"
_ONE_TOWER = "looks for the facts of one tower at the top of the configuration; they are in backbone_config"
SKIPPED = {
    "test_training_gradient_checkpointing": _FIRST_LAYER,
    "test_training_gradient_checkpointing_use_reentrant_false": _FIRST_LAYER,
    "test_training_gradient_checkpointing_use_reentrant_true": _FIRST_LAYER,
    "test_resize_tokens_embeddings": _ONE_TOWER,
    "test_attention_outputs": _ONE_TOWER,
    "test_hidden_states_output": _ONE_TOWER,
    "test_retain_grad_hidden_states_attentions": _ONE_TOWER,
}


class APEModelTest(suite.ModelTests, unittest.TestCase):
    skipped = SKIPPED
    all_model_classes = (APEForImageClassification,)
    tester_class = APETester


class APEProcessorTest(suite.ProcessorTests, unittest.TestCase):
    processor_class = APEProcessor
