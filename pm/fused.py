"""A faster forward of Cohere 2 with LoRA, exact against the modules of transformers and peft, whose weights it reads.

- It reads a `Pack`: no padding, and what sequences begin with in common only once (`attention.py`).
- The layers that read the same input are one product, and so are their LoRA matrices; activations that are cheap to
  make again are not kept for the backward pass.
- The last block is computed only for the tokens that the score reads.
- Where `compile_activation` was called, the activation and its gradient are one kernel each.

What it gains: tests/bench/forward.py. Shapes: T tokens, D hidden, N features of several layers together, R ranks of
several adapters together, Q heads, K heads of keys and values, E size of a head, B sequences.
"""

from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import Cohere2Model

from pm.attention import Attention
from pm.packing import Pack, filled_up

PROJECTIONS = 7  # of a block: query, key, value, output, gate, up, down


def unsupported(model: nn.Module) -> str:
    """Why the model cannot be run by `last_hidden_states`; "" where it can."""
    config, parameters = model.config, list(model.parameters())
    if any(hasattr(parameter, "ds_id") for parameter in parameters):
        return "ZeRO 3 gathers only the weights of modules that are called"
    if config.attention_bias or config.attention_dropout or config.hidden_act != "silu":
        return "its attention has a bias or dropout, or its activation is not silu"
    adapted = [module for module in model.modules() if isinstance(module, LoraLayer)]
    for module in adapted:
        if len(module.active_adapters) != 1:
            return "its LoRA has several adapters at once"
        name, = module.active_adapters
        if module.use_dora.get(name) or module.lora_bias.get(name) or module.fan_in_fan_out:
            return "its LoRA is not the plain one"
        if model.training and getattr(module.lora_dropout[name], "p", 0):
            return "LoRA has dropout"
    if len(adapted) not in (0, PROJECTIONS * config.num_hidden_layers):
        return "its LoRA is on some projections only"
    return ""


@cache
def compile_activation() -> None:
    """In this process the activation, and its gradient, are from now on one kernel each, which torch.compile makes when
    they are first needed. What that gains: tests/bench/forward.py --compile."""
    global _swiglu, _swiglu_gradients
    _swiglu, _swiglu_gradients = (torch.compile(function, dynamic=True) for function in (_swiglu, _swiglu_gradients))


def last_hidden_states(model: Cohere2Model, pack: Pack) -> torch.Tensor:
    """What the backbone says at the last token of each sequence, (B, D)."""
    *layers, last_layer = model.layers
    pack = filled_up(pack)
    hidden_TD, rotation_TE = _through(model, layers, pack)
    return _norm(model.norm, _last_block(last_layer, hidden_TD, rotation_TE, pack))


def hidden_states(model: Cohere2Model, pack: Pack) -> torch.Tensor:
    """What the backbone says at every token, (T, D)."""
    hidden_TD, _ = _through(model, model.layers, filled_up(pack))
    return _norm(model.norm, hidden_TD[: len(pack.input_ids)])


def _through(model: Cohere2Model, layers, pack: Pack) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens behind some of the layers, and their rotations."""
    hidden_TD = model.embed_tokens(pack.input_ids)
    cos_TE, sin_TE = model.rotary_emb(hidden_TD[None, :1].float(), pack.positions[None])
    rotation_TE = torch.complex(cos_TE[0, :, ::2], sin_TE[0, :, ::2])
    attention = Attention(pack, pack.paths, pack.lengths)
    for layer in layers:
        if layer.gradient_checkpointing and model.training:
            hidden_TD = checkpoint(_block, layer, hidden_TD, rotation_TE, attention, use_reentrant=False)
        else:
            hidden_TD = _block(layer, hidden_TD, rotation_TE, attention)
    return hidden_TD, rotation_TE


def _block(layer: nn.Module, hidden_TD: torch.Tensor, rotation_TE: torch.Tensor, attention: Attention) -> torch.Tensor:
    own, mlp = layer.self_attn, layer.mlp
    linears = [own.q_proj, own.k_proj, own.v_proj, mlp.gate_proj, mlp.up_proj]
    query, key, value, gate_TN, up_TN = _products(linears, _norm(layer.input_layernorm, hidden_TD))
    query_TQE, key_TKE, value_TKE = (part.unflatten(1, (-1, own.head_dim)) for part in (query, key, value))
    if own.sliding_window is not None:
        query_TQE, key_TKE = _rotate(query_TQE, rotation_TE), _rotate(key_TKE, rotation_TE)
    seen_TQE = attention(query_TQE, key_TKE, value_TKE, own.sliding_window)
    return _output(hidden_TD, seen_TQE.flatten(1).to(hidden_TD.dtype), gate_TN, up_TN, own.o_proj, mlp.down_proj)


def _last_block(layer: nn.Module, hidden_TD: torch.Tensor, rotation_TE: torch.Tensor, pack: Pack) -> torch.Tensor:
    """As `_block`, but (B, D): all tokens are keys and values, only the last ones of the sequences ask."""
    own, mlp = layer.self_attn, layer.mlp
    normed_TD = _norm(layer.input_layernorm, hidden_TD)
    key, value = _products([own.k_proj, own.v_proj], normed_TD)
    query, gate_BN, up_BN = _products([own.q_proj, mlp.gate_proj, mlp.up_proj], normed_TD[pack.last])
    query_BQE, key_TKE, value_TKE = (part.unflatten(1, (-1, own.head_dim)) for part in (query, key, value))
    if own.sliding_window is not None:
        query_BQE, key_TKE = _rotate(query_BQE, rotation_TE[pack.last]), _rotate(key_TKE, rotation_TE)
    attention = Attention(pack, [pack.paths[leaf] for leaf in pack.leaves], [1] * len(pack.leaves))
    seen_BQE = attention(query_BQE, key_TKE, value_TKE, own.sliding_window)
    return _output(hidden_TD[pack.last], seen_BQE.flatten(1).to(hidden_TD.dtype), gate_BN, up_BN, own.o_proj,
                   mlp.down_proj)


def _norm(norm: nn.Module, hidden_TD: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(hidden_TD, hidden_TD.shape[-1:], norm.weight.to(hidden_TD.dtype), eps=norm.variance_epsilon)


def _rotate(heads_TQE: torch.Tensor, rotation_TE: torch.Tensor) -> torch.Tensor:
    """Rotary positions in fp32; neighbours are the two parts of a complex number."""
    complex_TQE = torch.view_as_complex(heads_TQE.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(complex_TQE * rotation_TE[:, None]).flatten(-2)


# Products


def _products(linears: Sequence[nn.Module], input_TD: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The outputs of linear layers of the same input."""
    weight_ND, adapters = _weight(linears), [_adapter(linear) for linear in linears]
    sizes = [linear.out_features for linear in linears]
    if not any(adapters):
        return F.linear(input_TD, weight_ND).split(sizes, dim=1)
    matrices = [matrix for a, b, _ in adapters for matrix in (a, b)]
    scalings = [scaling for _, _, scaling in adapters]
    return _LoraProducts.apply(input_TD, weight_ND, scalings, *matrices).split(sizes, dim=1)


def _output(residual, seen, gate, up, o_proj: nn.Module, down_proj: nn.Module) -> torch.Tensor:
    """`residual + o_proj(seen) + down_proj(silu(gate) * up)`."""
    weights, adapters = [_weight([o_proj]), _weight([down_proj])], [_adapter(o_proj), _adapter(down_proj)]
    if not any(adapters):
        return residual + F.linear(seen, weights[0]) + F.linear(_swiglu(gate, up), weights[1])
    (o_a, o_b, o_scaling), (down_a, down_b, down_scaling) = adapters
    return _Output.apply(residual, seen, gate, up, *weights, o_a, o_b, o_scaling, down_a, down_b, down_scaling)


def _swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return F.silu(gate).mul_(up)


def _swiglu_gradients(grad, gate, up) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What `_swiglu` gives, and the gradients of gate and up."""
    silu = F.silu(gate)
    return silu * up, torch.ops.aten.silu_backward(grad * up, gate), silu.mul_(grad)


def _adapter(linear: nn.Module) -> tuple[torch.Tensor, torch.Tensor, float] | None:
    """A (R, D), B (N, R) and the scaling of `linear`'s LoRA, where it has one that is in use."""
    if not isinstance(linear, LoraLayer) or linear.disable_adapters or linear.merged:
        return None
    name, = linear.active_adapters
    return linear.lora_A[name].weight, linear.lora_B[name].weight, linear.scaling[name]


def _weight(linears: Sequence[nn.Module]) -> torch.Tensor:
    """The weights of several layers as one matrix (N, D). Where they are frozen, the first call lays them side by side
    in memory, and from then on the matrix is a view of them."""
    weights = [linear.get_base_layer().weight if isinstance(linear, LoraLayer) else linear.weight for linear in linears]
    if len(weights) == 1:
        return weights[0]
    if any(weight.requires_grad for weight in weights):
        return torch.cat(weights)
    rows, first = sum(map(len, weights)), weights[0]
    if not _side_by_side(weights):
        joined = torch.cat(weights)
        for weight, part in zip(weights, joined.split([len(weight) for weight in weights]), strict=True):
            weight.data = part
    return first.detach().as_strided((rows, first.shape[1]), first.stride())


def _side_by_side(weights: Sequence[torch.Tensor]) -> bool:
    storage, place = weights[0].untyped_storage().data_ptr(), weights[0].storage_offset()
    for weight in weights:
        if (weight.untyped_storage().data_ptr(), weight.storage_offset()) != (storage, place):
            return False
        place += weight.numel()
    return True


class _LoraProducts(torch.autograd.Function):
    """`input @ W^T`, to each layer's part of which `scaling * (input @ A^T) @ B^T` is added. W is frozen."""

    @staticmethod
    def forward(ctx, input_TD, weight_ND, scalings, *matrices):
        a_RD = torch.cat(matrices[::2]).to(input_TD.dtype)
        bs = [b.to(input_TD.dtype) for b in matrices[1::2]]
        low_TR, output_TN = input_TD @ a_RD.T, input_TD @ weight_ND.T
        ctx.sizes, ctx.ranks = [len(b) for b in bs], [b.shape[1] for b in bs]
        parts = zip(output_TN.split(ctx.sizes, 1), low_TR.split(ctx.ranks, 1), bs, scalings, strict=True)
        for output, low, b, scaling in parts:
            output.addmm_(low, b.T, alpha=scaling)
        ctx.save_for_backward(input_TD, low_TR, weight_ND, a_RD, *matrices)
        ctx.scalings = scalings
        return output_TN

    @staticmethod
    def backward(ctx, grad_TN):
        input_TD, low_TR, weight_ND, a_RD, *matrices = ctx.saved_tensors
        grads = grad_TN.split(ctx.sizes, 1)
        grad_low_TR = torch.cat([(grad @ b.to(grad.dtype)).mul_(scaling) for grad, b, scaling
                                 in zip(grads, matrices[1::2], ctx.scalings, strict=True)], 1)
        grad_input_TD = torch.addmm(grad_TN @ weight_ND, grad_low_TR, a_RD) if ctx.needs_input_grad[0] else None
        grad_matrices = []
        parts = zip((grad_low_TR.T @ input_TD).split(ctx.ranks), grads, low_TR.split(ctx.ranks, 1), ctx.scalings,
                    matrices[::2], matrices[1::2], strict=True)
        for grad_a, grad, low, scaling, a, b in parts:
            grad_matrices += [grad_a.to(a.dtype), (grad.T @ low).mul_(scaling).to(b.dtype)]
        return grad_input_TD, None, None, *grad_matrices


class _Output(torch.autograd.Function):
    """The end of a block, `_output` with LoRA; the product of gate and up is made again in the backward pass."""

    @staticmethod
    def forward(ctx, residual, seen, gate, up, o_weight, down_weight, o_a, o_b, o_scaling, down_a, down_b,
                down_scaling):
        activated = _swiglu(gate, up)
        output = torch.addmm(residual, seen, o_weight.T).addmm_(activated, down_weight.T)
        lows = []
        for part, a, b, scaling in ((seen, o_a, o_b, o_scaling), (activated, down_a, down_b, down_scaling)):
            lows.append(part @ a.T.to(part.dtype))
            output.addmm_(lows[-1], b.T.to(part.dtype), alpha=scaling)
        ctx.save_for_backward(seen, gate, up, *lows, o_weight, down_weight, o_a, o_b, down_a, down_b)
        ctx.scalings = o_scaling, down_scaling
        return output

    @staticmethod
    def backward(ctx, grad):
        seen, gate, up, o_low, down_low, o_weight, down_weight, o_a, o_b, down_a, down_b = ctx.saved_tensors
        o_scaling, down_scaling = ctx.scalings

        def of_input(weight, a, b, scaling):
            """Of a linear layer's input, and of what lies between its LoRA matrices."""
            grad_low = (grad @ b.to(grad.dtype)).mul_(scaling)
            return torch.addmm(grad @ weight, grad_low, a.to(grad.dtype)), grad_low

        def of_matrices(part, low, grad_low, a, b, scaling):
            return (grad_low.T @ part).to(a.dtype), (grad.T @ low).mul_(scaling).to(b.dtype)

        grad_seen, o_grad_low = of_input(o_weight, o_a, o_b, o_scaling)
        grad_activated, down_grad_low = of_input(down_weight, down_a, down_b, down_scaling)
        activated, grad_gate, grad_up = _swiglu_gradients(grad_activated, gate, up)
        return (grad, grad_seen, grad_gate, grad_up, None, None,
                *of_matrices(seen, o_low, o_grad_low, o_a, o_b, o_scaling), None,
                *of_matrices(activated, down_low, down_grad_low, down_a, down_b, down_scaling), None)
