"""What the tests of the documentation share: the pages, and an environment that leaves nothing behind."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def pytest_configure(config: pytest.Config) -> None:
    """Let NumPy complain about TensorFlow's variables, which Keras reads."""
    config.addinivalue_line("filterwarnings", "ignore:__array__ implementation doesn't accept a copy keyword")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test once for each page if it asks for one; ``document`` adds those nobody runs code from."""
    if "page" in metafunc.fixturenames:
        metafunc.parametrize("page", PAGES, ids=_name)
    if "document" in metafunc.fixturenames:
        others = [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
        metafunc.parametrize("document", [*PAGES, *others], ids=_name)


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(autouse=True, scope="session")
def _quiet_libraries(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One thread, and no cache in the user's home."""
    import datasets
    import torch

    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("cache")
