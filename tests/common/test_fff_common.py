"""FFF under transformers' own common suite: with CLIP towers, with SigLIP towers, and its processor."""

import unittest
from functools import partial

import pytest
import suite

from hf_clipplus import FFFConfig, FFFModel, FFFProcessor


class FFFModelTest(suite.ModelTests, unittest.TestCase):
    all_model_classes = (FFFModel,)
    tester_class = partial(suite.DualEncoderTester, FFFConfig)
    additional_model_inputs = ["input_ids"]


@pytest.mark.slow
class FFFWithSiglipTowersTest(FFFModelTest):
    tester_class = partial(suite.DualEncoderTester, FFFConfig, "siglip")


class FFFProcessorTest(suite.ProcessorTests, unittest.TestCase):
    processor_class = FFFProcessor
