"""MA-CLIP under transformers' own common suite: a video classifier that owns its adapters, with a support set."""

import unittest

import suite
from test_clip_fsar_common import SKIPPED, CLIPFSARTester

from hf_clipplus import MACLIPConfig, MACLIPForFewShotVideoClassification


class MACLIPTester(CLIPFSARTester):
    """Tiny adapted towers, a support set of three classes with two frames."""

    def __init__(self):
        fields = {"temporal_heads": 4, "temporal_ffn_dim": 20, "support_shape": [3, 2], "num_labels": 3}
        own = {"num_frames": 2, "adapters": {"adapter_ratio": 0.5, "num_frames": 2, "temporal_embedding": True}}
        suite.DualEncoderTester.__init__(self, MACLIPConfig, **fields, **own)


class MACLIPModelTest(suite.ModelTests, unittest.TestCase):
    skipped = SKIPPED
    all_model_classes = (MACLIPForFewShotVideoClassification,)
    tester_class = MACLIPTester
