"""Bootstrap intervals of metrics, and the paired comparison of two models."""

import numpy as np
import pytest
from scipy.stats import permutation_test, ttest_rel

from seqrec_jax.evaluation.intervals import bootstrap_interval, intervals, paired_difference
from seqrec_jax.evaluation.metrics import per_user, summarize

METRIC = "ndcg_at_10"


def ranks_of(rng, n, skill):
    return rng.geometric(skill, n) - 1


def gains(ranks):
    return per_user(ranks, 10)["ndcg"]


def test_the_interval_is_that_of_drawing_the_users_themselves():
    rng = np.random.default_rng(0)
    ranks = ranks_of(rng, 400, 0.05)
    values = gains(ranks)
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(4000)]
    low, high = bootstrap_interval(ranks, METRIC, 4000, 1)
    np.testing.assert_allclose([low, high], np.percentile(means, (2.5, 97.5)), rtol=0.03)


def test_intervals_hold_the_mean_of_all_users_in_95_of_100_samples():
    rng = np.random.default_rng(0)
    truth = gains(ranks_of(rng, 2_000_000, 0.03)).mean()
    held = 0
    for seed in range(400):
        low, high = bootstrap_interval(ranks_of(rng, 500, 0.03), METRIC, 500, seed)
        held += low <= truth <= high
    assert 0.92 <= held / 400 <= 0.98


def test_every_figure_has_an_interval_around_it():
    ranks = ranks_of(np.random.default_rng(0), 300, 0.1)
    summary = summarize(ranks, (5, 10))
    found = intervals(ranks, summary, 500, 0)
    assert set(found) == set(summary)
    assert all(found[name][0] <= value <= found[name][1] for name, value in summary.items())
    assert intervals(ranks[:0], summarize(ranks[:0], (5,)), 500, 0) == {}


def test_p_is_that_of_scipys_permutation_test():
    rng = np.random.default_rng(1)
    first = ranks_of(rng, 200, 0.05)
    second = np.maximum(0, first - rng.integers(-2, 4, 200))
    found = paired_difference(first, second, METRIC, 20_000, 0)
    expected = permutation_test(
        (gains(second), gains(first)), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples",
        vectorized=True, n_resamples=5_000, rng=np.random.default_rng(0),
    )  # fmt: skip
    assert found.difference == pytest.approx((gains(second) - gains(first)).mean())
    assert found.p == pytest.approx(expected.pvalue, abs=0.02)
    interval = ttest_rel(gains(second), gains(first)).confidence_interval()
    np.testing.assert_allclose([found.low, found.high], [interval.low, interval.high], rtol=0.1, atol=1e-3)
    assert found.better == (gains(second) > gains(first)).sum()
    assert found.worse == (gains(second) < gains(first)).sum()


def test_p_is_even_where_nothing_differs():
    rng, p = np.random.default_rng(2), []
    for seed in range(200):
        first, second = ranks_of(rng, 300, 0.05), ranks_of(rng, 300, 0.05)
        p.append(paired_difference(first, second, METRIC, 500, seed).p)
    assert 0.01 <= np.mean(np.array(p) < 0.05) <= 0.10
    same = paired_difference(first, first, METRIC, 500, 0)
    assert (same.difference, same.p, same.low, same.high) == (0.0, 1.0, 0.0, 0.0)


def users_with_several_targets(rng, n_users):
    """Ranks of users who have one to eight targets each, and are served alike well in all of theirs."""
    users = np.repeat(np.arange(n_users), rng.integers(1, 9, n_users))
    skill = rng.beta(1, 9, n_users)[users]
    return users, rng.geometric(np.maximum(skill, 1e-3)) - 1


def test_users_are_drawn_with_all_of_their_targets():
    rng = np.random.default_rng(3)
    truth = gains(users_with_several_targets(rng, 300_000)[1]).mean()
    held, alone = 0, 0
    for seed in range(200):
        users, ranks = users_with_several_targets(rng, 200)
        low, high = bootstrap_interval(ranks, METRIC, 300, seed, users)
        held += low <= truth <= high
        low, high = bootstrap_interval(ranks, METRIC, 300, seed)
        alone += low <= truth <= high
    assert 0.90 <= held / 200 <= 0.99
    assert alone / 200 < 0.88  # as if each target were a user


def test_one_user_of_many_targets_is_never_drawn_away():
    ranks = ranks_of(np.random.default_rng(6), 300, 0.1)
    expected = pytest.approx(summarize(ranks, (10,))["ndcg_at_10"])
    assert intervals(ranks, [METRIC], 200, 0, np.zeros(300, int)) == {METRIC: [expected, expected]}


def test_all_metrics_of_users_with_several_targets_are_those_of_one_alone():
    users, ranks = users_with_several_targets(np.random.default_rng(7), 200)
    for name, (low, high) in intervals(ranks, summarize(ranks, (5, 10)), 4000, 1, users).items():
        alone = bootstrap_interval(ranks, name, 4000, 2, users)
        assert (low, high) == pytest.approx(alone, rel=0.1)


def test_one_target_a_user_is_the_same_with_users_named():
    ranks = ranks_of(np.random.default_rng(4), 300, 0.1)
    assert bootstrap_interval(ranks, METRIC, 200, 0, np.arange(300)) == bootstrap_interval(ranks, METRIC, 200, 0)


def test_a_comparison_turns_users_and_not_targets():
    rng, p = np.random.default_rng(5), []
    for seed in range(200):
        users, first = users_with_several_targets(rng, 100)
        turned = rng.permutation(first)[: users.max() + 1] % 40  # one figure a user, alike in all of its targets
        second = turned[users]
        other = rng.permutation(turned)[users]
        p.append(paired_difference(second, other, METRIC, 200, seed, users).p)
    assert 0.0 <= np.mean(np.array(p) < 0.05) <= 0.11
    same = paired_difference(first, first, METRIC, 200, 0, users)
    assert (same.difference, same.low, same.high, same.p) == (0.0, 0.0, 0.0, 1.0)
