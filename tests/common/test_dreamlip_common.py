"""DreamLIP under transformers' own common suite, and its processor."""

import unittest
from functools import partial

import suite

from hf_clipplus import DreamLIPConfig, DreamLIPModel, DreamLIPProcessor


class DreamLIPModelTest(suite.ModelTests, unittest.TestCase):
    all_model_classes = (DreamLIPModel,)
    tester_class = partial(suite.DualEncoderTester, DreamLIPConfig)
    additional_model_inputs = ["input_ids"]


class DreamLIPProcessorTest(suite.ProcessorTests, unittest.TestCase):
    processor_class = DreamLIPProcessor
