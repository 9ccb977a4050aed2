"""PPO's arithmetic against numbers worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from trainers import _ppo_math as m


def t(rows: Any) -> Any:
    import torch

    return torch.tensor(rows, dtype=torch.float64)


def mask(*lengths: int, width: int = 3) -> Any:
    import torch

    return torch.tensor([[i < n for i in range(width)] for n in lengths])



def close(found: Any, wanted: Any) -> bool:
    import torch

    return torch.allclose(found, t(wanted), atol=1e-9)


def test_means_variances_and_whitening_see_only_real_tokens() -> None:
    x, real = t([[1, 2, 9], [3, 9, 9]]), mask(2, 1)
    assert m.mean(x, real).item() == 2
    assert m.variance(x, real).item() == 1
    w = 1 / math.sqrt(1 + 1e-8)
    assert close(m.whiten(x, real), [[-w, 0, 0], [w, 0, 0]])
    assert close(m.whiten(x, real, shift=False), [[2 - w, 2, 0], [2 + w, 0, 0]])
    assert close(m.whiten(t([[7, 9, 9]]), mask(1), shift=False), [[7, 0, 0]])


def test_kl_estimates() -> None:
    logp, ref = t([[math.log(0.5), math.log(0.2)]]), t([[math.log(0.25), math.log(0.4)]])
    assert close(m.kl(logp, ref), [[math.log(2), -math.log(2)]])
    # r = 1/2: -1/2 + ln 2; r = 2: 1 - ln 2
    assert close(m.kl(logp, ref, "k3"), [[-0.5 + math.log(2), 1 - math.log(2)]])


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_kl_estimates_are_unbiased(estimator: Any) -> None:
    p, q = t([[0.7, 0.2, 0.1]]), t([[0.3, 0.3, 0.4]])
    expected = (p * m.kl(p.log(), q.log(), estimator)).sum().item()
    assert expected == pytest.approx((p * (p / q).log()).sum().item())


def test_kl_weight_is_steered_to_its_target() -> None:
    fixed = m.KLController(0.1)
    assert fixed.after(99.0) == fixed
    steered = m.KLController(0.1, target=6.0, rate=0.1)
    assert steered.after(60.0).beta == pytest.approx(0.1 * 1.02)  # error clipped to 0.2
    assert steered.after(0.0).beta == pytest.approx(0.1 * 0.98)
    assert steered.after(6.6).beta == pytest.approx(0.1 * 1.01)
    assert steered.after(6.0).beta == pytest.approx(0.1)


def test_score_comes_with_the_last_token_and_kl_with_each() -> None:
    import torch

    rewards = m.shaped(t([1.0, -2.0]), t([[1, 2, 3], [4, 5, 6]]), 0.1, mask(3, 1))
    assert close(rewards, [[-0.1, -0.2, 0.7], [-2.4, 0, 0]])
    assert torch.equal(m.shaped(t([1.0]), t([[0, 0, 0]]), 0.1, mask(2)), t([[0, 1.0, 0]]))


def test_advantages_by_hand() -> None:
    rewards, values, real = t([[0, 0, 1], [0.5, 7, 7]]), t([[0.1, 0.2, 0.4], [0.2, 9, 9]]), mask(3, 1)
    advantages, returns = m.gae(rewards, values, real, gamma=0.9, lam=0.5)
    # deltas: 1 - .4 = .6; .9*.4 - .2 = .16; .9*.2 - .1 = .08; second row .5 - .2 = .3
    assert close(advantages, [[0.08 + 0.45 * (0.16 + 0.45 * 0.6), 0.16 + 0.45 * 0.6, 0.6], [0.3, 0, 0]])
    assert close(returns, [[0.2735 + 0.1, 0.43 + 0.2, 1.0], [0.5, 0, 0]])


def test_advantages_at_the_ends_of_lambda() -> None:
    rewards, values, real = t([[1, 2, 3]]), t([[5, 6, 7]]), mask(3)
    monte_carlo, returns = m.gae(rewards, values, real, 1.0, 1.0)
    assert close(monte_carlo, [[1, -1, -4]])
    assert close(returns, [[6, 5, 3]])
    one_step, _ = m.gae(rewards, values, real, 1.0, 0.0)
    assert close(one_step, [[1 + 6 - 5, 2 + 7 - 6, 3 - 7]])


def test_policy_loss_is_clipped_only_where_that_lowers_the_gain() -> None:
    old = t([[0.0, 0.0, 0.0, 0.0]])
    logp = t([[1.5, 1.5, 0.5, 0.5]]).log()
    found = m.policy_loss(logp, old, t([[2.0, -2.0, 2.0, -2.0]]), 0.2)
    assert close(found.terms, [[-2.4, 3.0, -1.0, 1.6]])
    assert found.clipped.tolist() == [[True, False, False, True]]


def test_no_gradient_flows_through_a_clipped_term() -> None:
    logp = t([[1.5, 1.1]]).log().requires_grad_()
    m.policy_loss(logp, t([[0.0, 0.0]]), t([[1.0, 1.0]]), 0.2).terms.sum().backward()
    assert close(logp.grad, [[0.0, -1.1]])


def test_value_loss_takes_the_larger_of_plain_and_clipped() -> None:
    found = m.value_loss(t([[1.0, 1.0, 0.1]]), t([[0.0, 0.0, 0.0]]), t([[1.0, 0.0, 1.0]]), 0.2)
    assert close(found.terms, [[0.5 * 0.64, 0.5, 0.5 * 0.81]])
    assert found.clipped.tolist() == [[True, False, False]]
    assert close(m.value_loss(t([[1.0]]), t([[0.0]]), t([[1.5]]), None).terms, [[0.125]])


def test_explained_variance() -> None:
    returns, real = t([[1, 2, 3]]), mask(3)
    assert m.explained_variance(returns + 5, returns, real) == pytest.approx(1)
    assert m.explained_variance(t([[0, 0, 0]]), returns, real) == pytest.approx(0)
    assert m.explained_variance(returns, t([[4, 4, 4]]), real) is None
    assert m.explained_variance(t([[1, 0, 0]]), t([[1, 0, 0]]), mask(1)) is None
