"""Settings of every test."""

import pytest
import torch

from tests.helpers.runs import Tape


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    # On eight neurons, threads only wait for each other.
    torch.set_num_threads(1)


@pytest.fixture
def tape():
    return Tape()
