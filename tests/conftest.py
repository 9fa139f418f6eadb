"What several test files need."
from pathlib import Path
import pytest

@pytest.fixture(scope='session')
def shared() -> Path:
    "The folder of reference vectors, texts and pictures beside the checkout; it is not part of the product."
    folder = Path(__file__).resolve().parents[2]/'shared'
    if not folder.is_dir(): pytest.skip("../shared (reference vectors and test data) is not beside this checkout")
    return folder
