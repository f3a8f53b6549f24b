"""What the tables say beside the numbers."""

from seqrec_jax.tasks.tables import on_test


def test_a_title_tells_the_order_of_ties_of_each_dataset():
    beauty = {"order": "file", "neighbours": 77, "of": 176}
    random = {"order": "random", "seed": 7, "neighbours": 1, "of": 3}
    assert on_test({"beauty": beauty}) == "Results on test (ties: as in the file, 44 % of neighbours)"
    assert on_test({"beauty": beauty, "shop": random}) == (
        "Results on test (ties: beauty as in the file, 44 % of neighbours; shop in random order, 33 % of neighbours)"
    )
    one_each = {"order": "file", "neighbours": 0, "of": 0}
    assert on_test({"shop": one_each}) == "Results on test (ties: as in the file, 0 % of neighbours)"
