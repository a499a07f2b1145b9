"""The loss: literal values, soft targets, and what each of its two terms trains."""

import math

import pytest
import torch
import torch.nn.functional as F

from pm.loss import cross_entropy, preference_loss

# Two rows, each read in both orders; classes in the row's own order (a, b).
LOGITS_NOC = torch.tensor([[[2.0, 0.0], [1.0, 3.0]], [[0.0, 0.5], [-1.0, 1.0]]])
TARGET_NC = torch.tensor([[1.0, 0.0], [0.0, 1.0]])


def test_one_row_by_hand():
    logits_NOC = torch.tensor([[[0.0, math.log(3)]]])  # probabilities 1/4 and 3/4
    assert preference_loss(logits_NOC, torch.tensor([[1.0, 0.0]]), 0.5).item() == pytest.approx(math.log(4))
    assert preference_loss(logits_NOC, torch.tensor([[0.0, 1.0]]), 0.5).item() == pytest.approx(math.log(4 / 3))


def test_hard_targets_equal_torch():
    logits = torch.tensor([[2.0, 0.0], [-1.0, 3.0], [0.0, 0.0]])
    wanted = F.cross_entropy(logits, torch.tensor([0, 0, 1]), reduction="none")
    torch.testing.assert_close(cross_entropy(logits, torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])), wanted)
    torch.testing.assert_close(wanted, torch.tensor([0.126928, 4.018150, 0.693147]))


def test_soft_targets_equal_torch():
    logits = torch.tensor([[2.0, 0.0], [-1.0, 3.0]])
    target = torch.tensor([[0.5, 0.5], [0.25, 0.75]])
    wanted = F.cross_entropy(logits, target, reduction="none")
    torch.testing.assert_close(cross_entropy(logits, target), wanted)
    torch.testing.assert_close(wanted, torch.tensor([1.126928, 1.018150]))


def test_three_classes_equal_torch():
    logits = torch.tensor([[1.0, -2.0, 0.5]])
    target = torch.tensor([[0.2, 0.3, 0.5]])
    torch.testing.assert_close(cross_entropy(logits, target), F.cross_entropy(logits, target, reduction="none"))


def test_soft_target_is_least_where_probabilities_match_it():
    target_NC = torch.tensor([[0.25, 0.75]])
    matching = preference_loss(torch.tensor([[[0.0, math.log(3)]]]), target_NC, 1.0).item()
    assert matching == pytest.approx(0.5623351)  # the entropy of (1/4, 3/4)
    for other in (0.0, 1.0, 1.2):
        assert preference_loss(torch.tensor([[[0.0, other]]]), target_NC, 1.0).item() > matching


def test_order_weight_0_is_the_loss_of_the_averaged_logits():
    averaged_NC = torch.tensor([[1.5, 1.5], [-0.5, 0.75]])
    wanted_N = F.cross_entropy(averaged_NC, TARGET_NC, reduction="none")
    torch.testing.assert_close(preference_loss(LOGITS_NOC, TARGET_NC, 0.0), wanted_N)
    torch.testing.assert_close(wanted_N, torch.tensor([0.693147, 0.251929]))


def test_order_weight_1_is_the_mean_loss_of_the_orders():
    first_N = F.cross_entropy(torch.tensor([[2.0, 0.0], [0.0, 0.5]]), TARGET_NC, reduction="none")
    second_N = F.cross_entropy(torch.tensor([[1.0, 3.0], [-1.0, 1.0]]), TARGET_NC, reduction="none")
    torch.testing.assert_close(preference_loss(LOGITS_NOC, TARGET_NC, 1.0), (first_N + second_N) / 2)


def test_order_weight_one_half_is_half_of_each():
    halves_N = (preference_loss(LOGITS_NOC, TARGET_NC, 0.0) + preference_loss(LOGITS_NOC, TARGET_NC, 1.0)) / 2
    torch.testing.assert_close(preference_loss(LOGITS_NOC, TARGET_NC, 0.5), halves_N)


@pytest.mark.parametrize("order_weight", [0.0, 0.5, 1.0])
def test_with_one_order_the_weight_does_not_matter(order_weight):
    one_order_NOC = LOGITS_NOC[:, :1]
    wanted_N = F.cross_entropy(one_order_NOC[:, 0], TARGET_NC, reduction="none")
    torch.testing.assert_close(preference_loss(one_order_NOC, TARGET_NC, order_weight), wanted_N)


@pytest.mark.parametrize(("order_weight", "gradient"), [(0.0, 0.0), (0.5, 0.1155293), (1.0, 0.2310586)])
def test_only_the_loss_of_each_order_moves_a_position_bias(order_weight, gradient):
    bias = torch.tensor(1.0, requires_grad=True)  # added to the response that stands first
    zero = torch.zeros(())
    logits_NOC = torch.stack([torch.stack([bias, zero]), torch.stack([zero, bias])])[None]
    preference_loss(logits_NOC, torch.tensor([[1.0, 0.0]]), order_weight).sum().backward()
    assert bias.grad.item() == pytest.approx(gradient, abs=1e-7)  # sigmoid(1) - 1/2, times the weight


def test_bf16_logits_give_an_fp32_loss():
    loss_N = preference_loss(LOGITS_NOC.bfloat16(), TARGET_NC, 0.0)
    assert loss_N.dtype == torch.float32
    torch.testing.assert_close(loss_N, torch.tensor([0.693147, 0.251929]))


def test_large_logits_stay_finite():
    loss_N = preference_loss(torch.tensor([[[1e4, 0.0]], [[0.0, 1e4]]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]]), 0.5)
    assert loss_N.tolist() == [0.0, 1e4]
