"""CLIP-FSAR under transformers' own common suite: a video classifier with a stored support set."""

import unittest

import suite
import torch

from hf_clipplus import CLIPFSARConfig, CLIPFSARForFewShotVideoClassification


class CLIPFSARTester(suite.DualEncoderTester):
    """Tiny towers, a support set of three classes with two frames."""

    def __init__(self):
        fields = {"temporal_heads": 4, "temporal_ffn_dim": 20, "support_shape": [3, 2], "num_labels": 3}
        super().__init__(CLIPFSARConfig, **fields)

    def prepare_config_and_inputs_for_common(self):
        pixels = torch.randn(self.batch_size, 2, 3, self.image_size, self.image_size)
        return self.get_config(), {"pixel_values": pixels, "labels": torch.arange(self.batch_size) % 3}


_FIRST_LAYER = "watches the first layer of all, the text tower's, which a video classifier does not run"
_ONE_TOWER = "looks for the facts of one tower at the top of the configuration; they are in vision_config"
SKIPPED = {
    "test_training_gradient_checkpointing": _FIRST_LAYER,
    "test_training_gradient_checkpointing_use_reentrant_false": _FIRST_LAYER,
    "test_training_gradient_checkpointing_use_reentrant_true": _FIRST_LAYER,
    "test_resize_tokens_embeddings": _ONE_TOWER,
    "test_attention_outputs": _ONE_TOWER,
    "test_hidden_states_output": _ONE_TOWER,
    "test_retain_grad_hidden_states_attentions": _ONE_TOWER,
}


class CLIPFSARModelTest(suite.ModelTests, unittest.TestCase):
    skipped = SKIPPED
    all_model_classes = (CLIPFSARForFewShotVideoClassification,)
    tester_class = CLIPFSARTester
