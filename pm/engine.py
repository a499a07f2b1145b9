"""What DeepSpeed does not offer by itself: its state as plain tensors, and a step that says whether it happened.

Beside train.py and pm.pretrain the only module that imports deepspeed.
"""

import importlib
import math
import os
from unittest import mock

import deepspeed
import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from deepspeed.utils.mixed_precision_linkage import lazy_init_hp_params_optimizer_state

from pm.distributed import is_main, rank, world_size
from pm.errors import UserError

MOMENTS = ("exp_avg", "exp_avg_sq")


def start_engine() -> None:
    """Starts DeepSpeed on ranks that have met (`distributed.start`), without what nothing here uses.

    On a CPU DeepSpeed would compile a shared-memory op at first use (minutes); gloo gives the same bits. And its ZeRO
    imports Muon whatever the optimizer is: `torch.compile` around Muon's functions would load all of Inductor.
    """
    if not torch.cuda.is_available():
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    with mock.patch.dict(os.environ, TORCHDYNAMO_DISABLE="1"):
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    deepspeed.init_distributed(verbose=False)


def engine_config(ds_config: dict) -> dict:
    """`ds_config.json` as `deepspeed.initialize` needs it.

    The loop owns the global batch, so DeepSpeed's own arithmetic (global = micro x accumulation x ranks) is
    given numbers that always agree. Its timer would wait for the device before every forward pass.
    """
    return {**ds_config, "train_batch_size": world_size(), "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1, "timers": {"throughput": {"enabled": False}}}


def check_config(ds_config: dict) -> None:
    """Raises `UserError` for what DeepSpeed itself refuses; called before the data is read."""
    try:
        deepspeed.DeepSpeedConfig(engine_config(ds_config))
    except (ValueError, TypeError, KeyError, AttributeError, AssertionError, deepspeed.DeepSpeedConfigError) as error:
        raise UserError(f"--deepspeed_config: DeepSpeed refuses it: {' '.join(str(error).split())}") from None


def update(engine, learning_rate: float) -> tuple[float, bool]:
    """Updates the weights: (gradient norm before clipping, whether the update was made).

    It is not made, on any rank, where the gradient is not finite on one. ZeRO 1 to 3 see to that themselves; with
    ZeRO 0 in fp32 DeepSpeed would step, and all weights would turn to NaN.
    """
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate
    if engine.zero_optimization_stage() > 0:
        engine.step()
        norm = float(engine.get_global_grad_norm())
        return norm, engine.was_step_applied()
    engine.enable_backward_allreduce = False  # reduced here, so that the norm is known before the update
    engine.buffered_allreduce_fallback()
    gradients = [parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None]
    norm = float(torch.nn.utils.get_total_norm(gradients))
    if not math.isfinite(norm):
        engine.zero_grad()
        return norm, False
    engine.step()
    return norm, True


def drop_step(engine, inputs: dict, left: int) -> None:
    """Lets `update` make none on any rank: what is left of a backward pass that broke off must not be used.

    `inputs` are those of any micro-batch. The backward passes of `left` micro-batches have not ended, that which broke
    off among them: with ZeRO 2 ranks wait for each other at the end of each. Raises `UserError` where they also wait in
    between: with ZeRO 3, and where ZeRO 2 has reduced a part of the gradients of the pass that broke off.
    """
    stage = engine.zero_optimization_stage()
    possible = stage < 3
    if stage == 2:
        optimizer = engine.optimizer
        possible = world_size() == 1 or (left > 0 and not any(optimizer.params_already_reduced))
        optimizer.params_already_reduced = [False] * len(optimizer.params_already_reduced)
        optimizer.extra_large_param_to_reduce.clear()
        for bucket in optimizer.ipg_buckets.values():
            bucket.clear()
    if not possible:
        raise UserError("out of memory; ranks cannot make the step again together with zero_optimization.stage 3, nor "
                        "with 2 where reduce_bucket_size is below the number of trained weights: a lower "
                        "--tokens_per_micro_batch takes less", of_this_rank=True)
    for _ in range(max(left, 1) if stage == 2 else 1):
        engine.backward(engine(**inputs)[0].sum() * math.nan)


def create_moments(engine, updates: int = 0) -> None:
    """Gives Adam the zero moments that it would make at its first update.

    A resumed run needs them before that, and ZeRO 1 and 2 link only the first parameter group's moments to their
    parameters (DeepSpeed 0.19.8 links when the first group has stepped, and the others have none yet).
    """
    stage = engine.zero_optimization_stage()
    optimizer = engine.optimizer if stage == 0 else engine.optimizer.optimizer
    if stage == 0:
        masters = [parameter for _, parameter in _trained(engine)]
    elif stage < 3:
        masters = engine.optimizer.single_partition_of_fp32_groups
    else:
        masters = engine.optimizer.fp32_partitioned_groups_flat
    for master in masters:
        optimizer.state[master] = {"step": torch.tensor(float(updates))} | {
            name: torch.zeros_like(master, dtype=torch.float32) for name in MOMENTS}
    if stage in (1, 2):
        for group, master in zip(engine.optimizer.bit16_groups, masters, strict=True):
            lazy_init_hp_params_optimizer_state(group, master, optimizer.state)


def get_state(engine) -> dict[str, torch.Tensor]:
    """The trained parameters in fp32 and Adam's moments, whole, on the CPU of the first rank (elsewhere empty).

    Names are `master/NAME`, `exp_avg/NAME`, `exp_avg_sq/NAME`. All ranks call it together.
    """
    state = {}
    for name, parameter in _trained(engine):
        for kind in ("master", *MOMENTS):
            value = _get(engine, parameter, kind)
            if is_main():
                state[f"{kind}/{name}"] = value.detach().float().cpu().clone()
    return state


def set_state(engine, state: dict[str, torch.Tensor], updates: int) -> None:
    """Restores what `get_state` gave, bitwise, into any ZeRO stage and any number of ranks.

    `updates` is the number of optimizer updates made so far (Adam's step count).
    """
    create_moments(engine, updates)
    for name, parameter in _trained(engine):
        for kind in ("master", *MOMENTS):
            _set(engine, parameter, kind, state[f"{kind}/{name}"].to(engine.device))
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0,
                                               enabled=engine.zero_optimization_stage() == 3):
            parameter.data.copy_(state[f"master/{name}"])


def _trained(engine):
    return [(name, parameter) for name, parameter in engine.module.named_parameters() if parameter.requires_grad]


def _get(engine, parameter, kind: str) -> torch.Tensor:
    if engine.zero_optimization_stage() == 0:
        return parameter if kind == "master" else engine.optimizer.state[parameter][kind]
    if kind == "master":
        return safe_get_full_fp32_param(parameter)
    return safe_get_full_optimizer_state(parameter, kind)


def _set(engine, parameter, kind: str, value: torch.Tensor) -> None:
    stage = engine.zero_optimization_stage()
    if stage == 0:
        if kind != "master":
            engine.optimizer.state[parameter][kind].copy_(value)
    elif stage < 3:
        if kind == "master":
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, kind)
    else:
        # Each rank holds one slice, the last one padded; DeepSpeed's own setter of whole tensors does not pad.
        size = parameter.ds_tensor.ds_numel
        padded = torch.zeros(size * world_size(), device=value.device)
        padded[: value.numel()] = value.flatten()
        local = padded[rank() * size : (rank() + 1) * size]
        if kind == "master":
            safe_set_local_fp32_param(parameter, local)
        else:
            safe_set_local_optimizer_state(parameter, local, kind)
