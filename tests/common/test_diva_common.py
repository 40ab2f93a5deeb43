"""DIVA under transformers' own common suite, and its processor."""

import unittest
from functools import partial

import suite

from hf_clipplus import DIVAConfig, DIVAModel, DIVAProcessor


class DIVATester(suite.DualEncoderTester):
    """The batch of a dual encoder without `return_loss`: `DIVAModel` has no loss of its own."""

    is_training = False

    def prepare_config_and_inputs_for_common(self):
        config, inputs = super().prepare_config_and_inputs_for_common()
        inputs.pop("return_loss")
        return config, inputs


class DIVAModelTest(suite.ModelTests, unittest.TestCase):
    all_model_classes = (DIVAModel,)
    tester_class = partial(DIVATester, DIVAConfig, embedding="cls+local_mean")
    additional_model_inputs = ["input_ids"]


class DIVAProcessorTest(suite.ProcessorTests, unittest.TestCase):
    processor_class = DIVAProcessor
