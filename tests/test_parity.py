"""The model is the reference's, number for number; see parity_check.py."""

import numpy as np
import parity_check
import pytest
from conftest import shared_file


def read(name):
    with np.load(shared_file(f"parity/{name}")) as npz:
        return dict(npz)


@pytest.mark.parametrize("name", ["srt_tiny.npz"])
def test_every_quantity_agrees_with_the_reference(name):
    file = read(name)
    found = parity_check.errors(file)
    gradients = sum(quantity.startswith(("local/grad/", "global/grad/")) for quantity in found["float32"])
    assert gradients == 2 * sum(key.startswith("param/") for key in file)
    for of in found.values():
        assert {quantity: error for quantity, error in of.items() if error > parity_check.TOLERANCE} == {}


def test_a_changed_weight_is_noticed():
    file = read("srt_tiny.npz")
    file["param/trm_encoder.layer.1.feed_forward.dense_2.bias"][0] += 1e-3
    found = parity_check.errors(file)
    assert all(max(of.values()) > parity_check.TOLERANCE for of in found.values())
