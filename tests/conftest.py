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


@pytest.fixture(scope="session")
def tiny_raw(tmp_path_factory) -> Path:
    """Phantom datasets in their raw layouts; tests must not write into it."""
    from partialseg.data.phantom import write_phantom

    folder = tmp_path_factory.mktemp("tiny") / "raw"
    write_phantom(folder, "tiny", seed=0)
    return folder


@pytest.fixture(scope="session")
def tiny_prepared(tiny_raw) -> Path:
    """The phantom datasets, prepared at 6 x 6 x 6 mm; tests must not write into it."""
    from partialseg.data.cards import read_card
    from partialseg.data.prepare import prepare

    cards = [read_card(name) for name in ("btcv", "msd_liver", "msd_spleen", "msd_pancreas", "kits19")]
    folder = tiny_raw.parent / "prepared"
    result = prepare(cards, tiny_raw, folder, spacing_mm=(6.0, 6.0, 6.0))
    assert not result.problems
    return folder
