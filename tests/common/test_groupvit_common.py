"""GroupViT under transformers' own common suite, and its processor."""

import unittest

import suite
import torch

from hf_clipplus import GroupViTPlusConfig, GroupViTPlusModel, GroupViTPlusProcessor


class GroupViTTester:
    """A tiny configuration with two grouping stages, and a batch."""

    is_training = True
    batch_size, seq_length, image_size, vocab_size = 4, 7, 16, 99
    num_hidden_layers = 2  # of both encoders; the image encoder has them before its two grouping blocks

    def get_config(self):
        text = {"hidden_size": 32, "intermediate_size": 37, "num_attention_heads": 4}
        ids = {"vocab_size": self.vocab_size, "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 1}
        ids["num_hidden_layers"] = self.num_hidden_layers
        vision = {"hidden_size": 32, "num_attention_heads": 4, "image_size": self.image_size, "patch_size": 8}
        groups = {"depths": [1, 1, 0], "num_group_tokens": [6, 3, 0], "num_output_groups": [6, 3]}
        return GroupViTPlusConfig(
            text_config=text | ids | {"pad_token_id": 1},
            vision_config=vision | groups,
            projection_dim=24,
            projection_intermediate_dim=20,
        )

    def prepare_config_and_inputs_for_common(self):
        images = torch.randn(self.batch_size, 3, self.image_size, self.image_size)
        ids = torch.randint(2, self.vocab_size, (self.batch_size, self.seq_length))
        ids[:, -1] = 1
        inputs = {"pixel_values": images, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return self.get_config(), inputs | {"return_loss": True}


class GroupViTModelTest(suite.ModelTests, unittest.TestCase):
    all_model_classes = (GroupViTPlusModel,)
    tester_class = GroupViTTester
    additional_model_inputs = ["input_ids"]


class GroupViTProcessorTest(suite.ProcessorTests, unittest.TestCase):
    processor_class = GroupViTPlusProcessor
