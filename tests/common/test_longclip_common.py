"""Long-CLIP under transformers' own common suite, and its processor."""

import unittest
from functools import partial

import pytest
import suite

from hf_clipplus import LongCLIPConfig, LongCLIPModel, LongCLIPProcessor


@pytest.mark.slow
class LongCLIPModelTest(suite.ModelTests, unittest.TestCase):
    all_model_classes = (LongCLIPModel,)
    tester_class = partial(suite.DualEncoderTester, LongCLIPConfig, frozen_positions=2)
    additional_model_inputs = ["input_ids"]


class LongCLIPProcessorTest(suite.ProcessorTests, unittest.TestCase):
    processor_class = LongCLIPProcessor
