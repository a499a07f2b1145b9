"""The loss: literal values, soft targets, and what each of its terms trains."""

import math

import pytest
import torch
import torch.nn.functional as F

from pm.loss import cross_entropy, next_token_loss, order_divergence, preference_loss

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


# The divergence between the orders

APART_NOC = torch.tensor([[[math.log(9), 0.0], [0.0, 0.0]]])  # probabilities (0.9, 0.1), (1/2, 1/2); mean (3/4, 1/4)


def test_divergence_of_two_orders_by_hand():
    first = 0.75 * math.log(0.75 / 0.9) + 0.25 * math.log(0.25 / 0.1)
    second = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert order_divergence(APART_NOC).tolist() == pytest.approx([(first + second) / 2])
    assert (first + second) / 2 == pytest.approx(0.1115717)


def test_divergence_is_that_of_torch_for_three_classes():
    logits_NOC = torch.tensor([[[1.0, -2.0, 0.5], [0.0, 1.0, -1.0]], [[0.3, 0.2, 0.1], [3.0, 2.0, -4.0]]])
    p_NC = logits_NOC.mean(1).softmax(-1)
    each = [F.kl_div(logits_NOC[:, order].log_softmax(-1), p_NC, reduction="none").sum(1) for order in (0, 1)]
    torch.testing.assert_close(order_divergence(logits_NOC), (each[0] + each[1]) / 2)


def test_divergence_of_orders_with_the_same_odds_is_zero():
    logits_NOC = torch.tensor([[[2.0, 0.0], [2.0, 0.0]], [[1.0, -1.0], [5.0, 3.0]]])  # a shift changes no odds
    torch.testing.assert_close(order_divergence(logits_NOC), torch.zeros(2))
    torch.testing.assert_close(order_divergence(logits_NOC[:, :1]), torch.zeros(2))


def test_consistency_weight_scales_the_divergence():
    target_NC = torch.tensor([[0.0, 1.0]])
    wanted_N = preference_loss(APART_NOC, target_NC, 0.5) + 0.25 * 0.1115717
    torch.testing.assert_close(preference_loss(APART_NOC, target_NC, 0.5, consistency_weight=0.25), wanted_N)


def test_with_one_order_the_consistency_weight_does_not_matter():
    one_order_NOC = LOGITS_NOC[:, :1]
    torch.testing.assert_close(preference_loss(one_order_NOC, TARGET_NC, 0.5, consistency_weight=3.0),
                               preference_loss(one_order_NOC, TARGET_NC, 0.5))


def test_gradient_of_the_divergence_by_hand():
    """Half of what each order's probability is above that of the averaged logits: nothing flows through the latter."""
    logits_NOC = APART_NOC.clone().requires_grad_()
    order_divergence(logits_NOC).sum().backward()
    wanted_NOC = torch.tensor([[[(0.9 - 0.75) / 2, (0.1 - 0.25) / 2], [(0.5 - 0.75) / 2, (0.5 - 0.25) / 2]]])
    torch.testing.assert_close(logits_NOC.grad, wanted_NOC)


def test_divergence_pulls_opposite_orders_together_and_their_mean_nowhere():
    logits_NOC = torch.tensor([[[2.0, 0.0], [0.0, 2.0]]], requires_grad=True)
    order_divergence(logits_NOC).sum().backward()
    # (softmax of the order - 1/2) / 2
    torch.testing.assert_close(logits_NOC.grad, torch.tensor([[[0.1903985, -0.1903985], [-0.1903985, 0.1903985]]]))
    torch.testing.assert_close(logits_NOC.grad.sum(1), torch.zeros(1, 2))
    nearer_NOC = logits_NOC.detach() - logits_NOC.grad
    assert order_divergence(nearer_NOC).item() < order_divergence(logits_NOC).item()


def test_divergence_of_large_logits_is_finite():
    """The smaller probability rounds to 0 in fp32."""
    logits_NOC = torch.tensor([[[300.0, 0.0], [200.0, 0.0]], [[300.0, 0.0], [0.0, 100.0]]], requires_grad=True)
    divergence_N = order_divergence(logits_NOC)
    assert divergence_N.tolist() == [0.0, 50.0]  # the second order gives e^-100 to what the mean is sure of
    divergence_N.sum().backward()
    assert logits_NOC.grad.isfinite().all()


# Label smoothing


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.5])
def test_label_smoothing_equals_torch(label_smoothing):
    logits_NC = torch.tensor([[2.0, 0.0, -1.0], [-1.0, 3.0, 0.5]])
    for target in ([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], [[0.2, 0.3, 0.5], [0.0, 0.6, 0.4]]):
        target_NC = torch.tensor(target)
        wanted_N = F.cross_entropy(logits_NC, target_NC, reduction="none", label_smoothing=label_smoothing)
        torch.testing.assert_close(preference_loss(logits_NC[:, None], target_NC, 0.5, 0.0, label_smoothing), wanted_N)


def test_label_smoothing_by_hand():
    logits_NOC = torch.tensor([[[math.log(9), 0.0]]])  # probabilities (0.9, 0.1), target (0.9, 0.1)
    wanted = -0.9 * math.log(0.9) - 0.1 * math.log(0.1)
    found_N = preference_loss(logits_NOC, torch.tensor([[1.0, 0.0]]), 0.5, label_smoothing=0.2)
    assert found_N.item() == pytest.approx(wanted)


def test_in_bf16_the_gradient_of_a_sure_token_keeps_its_digits():
    """0.999 has no digits left in bf16: 1 - p is the sum of the others."""
    embedding_VD = torch.eye(2, dtype=torch.bfloat16)
    hidden_TD = torch.tensor([[7.0, 0.0], [0.0, 0.0]], dtype=torch.bfloat16, requires_grad=True)
    total, losses = next_token_loss(hidden_TD, embedding_VD, 1.0, torch.tensor([0, 0]), torch.tensor([-1, 0]),
                                    torch.ones(2))
    total.backward()
    wanted = 1 / (1 + math.exp(7))
    assert losses[1].item() == pytest.approx(-math.log1p(-wanted), rel=0.01)
    assert hidden_TD.grad[0].tolist() == pytest.approx([-wanted, wanted], rel=0.01)
