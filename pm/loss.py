"""The loss. Shapes: N rows of the micro-batch, O orders in which each was read (1 or 2), C classes."""

import torch
import torch.nn.functional as F


def preference_loss(logits_NOC: torch.Tensor, target_NC: torch.Tensor, order_weight: float) -> torch.Tensor:
    """Cross-entropy per row, shape (N,), in nats; a soft target is allowed.

    `(1 - order_weight) * CE(mean over orders of the logits) + order_weight * mean over orders of CE(each order)`.
    The first term trains what evaluation uses; alone it leaves the position bias free, because a bias that
    changes sign with the order cancels in the mean, and the second term takes it away.
    Classes are in the row's own order in both arguments. With one order the two terms are equal.
    """
    target_NOC = target_NC[:, None].expand_as(logits_NOC)
    averaged_N = cross_entropy(logits_NOC.mean(1), target_NC)
    each_N = cross_entropy(logits_NOC, target_NOC).mean(1)
    return (1 - order_weight) * averaged_N + order_weight * each_N


def cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross-entropy over the last axis in fp32, without reduction; `target` holds probabilities."""
    return -(target * F.log_softmax(logits.float(), dim=-1)).sum(-1)
