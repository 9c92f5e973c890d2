"""Networks are made with the same weights each time."""

import keras
import pytest


@pytest.fixture(autouse=True)
def same_weights_each_time():
    keras.utils.set_random_seed(0)
