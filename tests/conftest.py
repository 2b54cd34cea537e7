"""What holds for all tests: how Hypothesis and disks are waited for, and where tests of both backends lie.

Tests that are the same for both backends lie in ``twins``; each backend's own import them.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

TWINS = Path(__file__).with_name("twins")
sys.path.insert(0, str(TWINS))
pytest.register_assert_rewrite(*(file.stem for file in TWINS.glob("*.py")))

# No test fails because a machine is busy: each folder's own profile derives from this one.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture(autouse=True, scope="session")
def _no_waiting_for_disks() -> Iterator[None]:
    """Let files count as written when the system has them; only a power cut would tell the difference."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda handle: None)
        yield
