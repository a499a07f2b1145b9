"""The losses. Shapes: N rows of the micro-batch, O orders in which each was read (1 or 2), C classes; of a language
model: T tokens, D hidden, V pieces of the vocabulary."""

import torch
import torch.nn.functional as F

TINY = torch.finfo(torch.float32).tiny
# Of the vocabulary times tokens; of more neither logits nor their gradients are ever there.
LOGITS_AT_ONCE, LOGITS_AT_ONCE_ON_GPU = 2**22, 2**28


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


def next_token_loss(hidden_TD: torch.Tensor, embedding_VD: torch.Tensor, scale: float, input_ids_T: torch.Tensor,
                    before_T: torch.Tensor, weight_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum over tokens of `weight * -log p(token | what is before it)`, in nats, and each token's own part without
    its weight, (T,), which has no gradient.

    `before_T` (`packing.predecessors`) is the place whose hidden state predicts the token; where it is -1 the token is
    not predicted. Logits are `scale * hidden @ embedding^T`, the language model's with tied embeddings.
    """
    if not torch.is_grad_enabled():
        hidden_TD, embedding_VD = hidden_TD.detach(), embedding_VD.detach()
    predicted = (before_T >= 0).nonzero()[:, 0]
    place, token = before_T[predicted], input_ids_T[predicted]
    total, loss = _NextTokenLoss.apply(hidden_TD, embedding_VD, scale, place, token, weight_T[predicted])
    return total, loss.new_zeros(len(input_ids_T)).index_copy(0, predicted, loss)


class _NextTokenLoss(torch.autograd.Function):
    """Makes the gradients with the logits, a part of the tokens at a time, since these would be most of the memory."""

    @staticmethod
    def forward(ctx, hidden_TD, embedding_VD, scale, place, token, weight):
        of_hidden, of_embedding = ctx.needs_input_grad[:2]
        grad_hidden_TD = torch.zeros_like(hidden_TD) if of_hidden else None
        grad_embedding_VD = torch.zeros_like(embedding_VD, dtype=torch.float32) if of_embedding else None
        losses = []
        at_once = LOGITS_AT_ONCE_ON_GPU if hidden_TD.is_cuda else LOGITS_AT_ONCE
        for some in torch.arange(len(token), device=token.device).split(max(1, at_once // len(embedding_VD))):
            hidden = hidden_TD.index_select(0, place[some])
            logits = hidden @ embedding_VD.T
            logits = logits if scale == 1 else logits.mul_(scale)
            if of_hidden or of_embedding:
                grad = F.softmax(logits, dim=1)  # in the dtype of training: passes over the vocabulary take most time
                probability = grad.gather(1, token[some, None]).float()
                rest = grad.scatter_(1, token[some, None], 0).sum(1, keepdim=True, dtype=torch.float32)
                grad.scatter_(1, token[some, None], -rest.to(grad.dtype))
                # 1 - rest where bf16 has no digits for a probability near 1
                sure = rest < 0.5
                losses.append(torch.where(sure, -torch.log1p(-rest.clamp_max(0.5)),
                                          -probability.clamp_min(TINY).log())[:, 0])
                weights = (scale * weight[some, None]).to(hidden.dtype)
                if of_hidden:
                    grad_hidden_TD.index_add_(0, place[some], (grad @ embedding_VD).mul_(weights))
                if of_embedding:
                    grad_embedding_VD += grad.T @ (hidden * weights)
            else:
                losses.append(F.cross_entropy(logits.float(), token[some], reduction="none"))
        loss = torch.cat(losses) if losses else weight.new_zeros(0)
        ctx.gradients = grad_hidden_TD, grad_embedding_VD
        ctx.dtypes = hidden_TD.dtype, embedding_VD.dtype
        ctx.mark_non_differentiable(loss)
        return (loss * weight).sum(), loss

    @staticmethod
    def backward(ctx, grad_total, _):
        made, ctx.gradients = ctx.gradients, None  # `ctx` may live longer than this pass
        gradients = [None if gradient is None else gradient.mul_(grad_total).to(dtype)
                     for gradient, dtype in zip(made, ctx.dtypes, strict=True)]
        return *gradients, None, None, None, None
