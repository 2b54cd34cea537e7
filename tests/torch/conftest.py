import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("tests", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("tests")


@pytest.fixture(autouse=True)
def _one_thread():
    """Small tensors gain nothing from threads, and busy machines lose much by them."""
    torch.set_num_threads(1)
