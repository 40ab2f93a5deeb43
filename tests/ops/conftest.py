"""What the tests of the equations share."""

import pytest
import torch


@pytest.fixture
def seeded():
    torch.manual_seed(0)
