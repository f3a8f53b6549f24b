"""The model is the reference's, number for number; see parity_check.py."""

import numpy as np
import parity_check
import pytest
from conftest import shared_file


@pytest.mark.parametrize("name", ["srt_tiny.npz"])
def test_every_quantity_agrees_with_the_reference(name):
    with np.load(shared_file(f"parity/{name}")) as npz:
        file = dict(npz)
    errors = {quantity: parity_check.error(ours, theirs) for quantity, ours, theirs in parity_check.quantities(file)}
    gradients = sum(quantity.startswith(("local/grad/", "global/grad/")) for quantity in errors)
    assert gradients == 2 * sum(key.startswith("param/") for key in file)
    assert {quantity: error for quantity, error in errors.items() if error > parity_check.TOLERANCE} == {}


def test_a_changed_weight_is_noticed():
    with np.load(shared_file("parity/srt_tiny.npz")) as npz:
        file = dict(npz)
    file["param/trm_encoder.layer.1.feed_forward.dense_2.bias"][0] += 1e-3
    assert (
        max(parity_check.error(ours, theirs) for _, ours, theirs in parity_check.quantities(file))
        > parity_check.TOLERANCE
    )
