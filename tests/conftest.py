"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real scans and label maps; tests that need it are skipped where it is missing."""
    named = os.environ.get("PARTIALSEG_TEST_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real data not found in {folder}; set PARTIALSEG_TEST_DATA to the folder that holds it")
    return folder
