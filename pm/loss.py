"""The loss. Shapes: N rows of the micro-batch, O orders in which each was read (1 or 2), C classes."""

import torch
import torch.nn.functional as F


def preference_loss(logits_NOC: torch.Tensor, target_NC: torch.Tensor, order_weight: float,
                    consistency_weight: float = 0.0, label_smoothing: float = 0.0) -> torch.Tensor:
    """Loss per row, shape (N,), in nats; targets are probabilities.

    `(1 - order_weight) * CE(mean over orders of the logits) + order_weight * mean over orders of CE(each order)
    + consistency_weight * divergence between the two orders`.
    The first term trains what evaluation uses; alone it leaves the position bias free, because a bias that
    changes sign with the order cancels in the mean, and the second term takes it away. The third pulls the two
    orders together whatever the target says. Classes are in the row's own order in both arguments. With one order
    the first two terms are equal and the third is zero.
    `label_smoothing` moves that share of every target to the uniform distribution, as in PyTorch.
    """
    target_NC = (1 - label_smoothing) * target_NC + label_smoothing / target_NC.shape[-1]
    averaged_N = cross_entropy(logits_NOC.mean(1), target_NC)
    each_N = cross_entropy(logits_NOC, target_NC[:, None].expand_as(logits_NOC)).mean(1)
    loss_N = (1 - order_weight) * averaged_N + order_weight * each_N
    if consistency_weight:
        loss_N = loss_N + consistency_weight * order_divergence(logits_NOC)
    return loss_N


def order_divergence(logits_NOC: torch.Tensor) -> torch.Tensor:
    """Shape (N,): mean over orders of `KL(p || p of the order)`, p from the averaged logits.

    It pulls the two orders to what they say together. A divergence between the orders themselves (R-Drop,
    arXiv:2106.14448) pulls both to even odds as well, which cost accuracy.
    """
    averaged_NC = logits_NOC.detach().float().mean(1)
    p_NC = F.softmax(averaged_NC, dim=-1)
    entropy_N = cross_entropy(averaged_NC, p_NC)  # not of p_NC.log(): a p that rounds to 0 would make it NaN
    return cross_entropy(logits_NOC, p_NC[:, None].expand_as(logits_NOC)).mean(1) - entropy_N


def cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross-entropy over the last axis in fp32, without reduction; `target` holds probabilities."""
    return -(target * F.log_softmax(logits.float(), dim=-1)).sum(-1)
