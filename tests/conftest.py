"""Tests that are the same for both backends lie in ``twins``; each backend's own import them."""

import sys
from pathlib import Path

import pytest

TWINS = Path(__file__).with_name("twins")
sys.path.insert(0, str(TWINS))
pytest.register_assert_rewrite(*(file.stem for file in TWINS.glob("*.py")))
