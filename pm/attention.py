"""Attention over a `Pack`: a query sees the keys of its path up to itself, and where there is a window those in it.

On a GPU one call of FlashAttention reads all paths; elsewhere each path is a call of `scaled_dot_product_attention`.
What the difference is: tests/bench/forward.py --path_by_path.

Shapes: T tokens of the pack, A queries of all paths, P keys of all paths, L queries and S keys of one path, Q heads,
K heads of keys and values, E size of a head.
"""

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate, chain

import torch
import torch.nn.functional as F
from torch.nn.attention.varlen import varlen_attn

from pm.packing import Pack, to_device


def flash_runs(value_TKE: torch.Tensor) -> bool:
    """Whether FlashAttention, as torch has it, takes such tensors."""
    size, row = value_TKE.shape[-1], value_TKE.stride(0)  # it loads eight numbers at a time
    return (value_TKE.is_cuda and torch.version.hip is None and value_TKE.dtype == torch.bfloat16
            and torch.cuda.get_device_capability(value_TKE.device) >= (8, 0)
            and size % 8 == row % 8 == 0 and size <= 256)


class Attention:
    """Of the queries at the ends of paths: `lengths[n]` of them are the last tokens of `paths[n]`. The same for all
    layers, which differ by their window."""

    def __init__(self, pack: Pack, paths: Sequence[tuple[int, ...]], lengths: Sequence[int]):
        self._pack, self._paths, self._lengths = pack, paths, lengths
        self._masks: dict = {}

    def __call__(self, query_AQE: torch.Tensor, key_TKE: torch.Tensor, value_TKE: torch.Tensor,
                 window: int | None) -> torch.Tensor:
        """(A, Q, E)."""
        if flash_runs(value_TKE):
            return self._at_once(query_AQE, key_TKE, value_TKE, window)
        return self._path_by_path(query_AQE, key_TKE, value_TKE, window)

    # All paths at once

    def _at_once(self, query_AQE, key_TKE, value_TKE, window: int | None) -> torch.Tensor:
        places_P, query_starts, key_starts, most_keys = self._ragged
        query_AQE, key_PKE = (part.to(value_TKE.dtype) for part in (query_AQE, key_TKE))
        value_PKE = value_TKE
        if places_P is not None:
            key_PKE, value_PKE = key_PKE[places_P], value_PKE[places_P]
        # The last query of a path is opposite to its last key: FlashAttention aligns them so where there are fewer.
        return varlen_attn(query_AQE, key_PKE, value_PKE, query_starts, key_starts, max(self._lengths), most_keys,
                           window_size=(-1 if window is None else window - 1, 0), enable_gqa=True)

    @cached_property
    def _ragged(self) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor, int]:
        """The places of the keys of each path, None where these are all tokens in their order; where the queries and
        where the keys of each path begin; and the most keys of a path."""
        pack, device = self._pack, self._pack.input_ids.device
        segments = torch.arange(sum(pack.lengths)).split(pack.lengths)
        order = list(chain.from_iterable(self._paths))
        keys = [sum(pack.lengths[segment] for segment in path) for path in self._paths]
        places_P = None
        if order != list(range(len(segments))):
            places_P = to_device(torch.cat([segments[segment] for segment in order]), device)
        query_starts, key_starts = (to_device(torch.tensor([0, *accumulate(counts)], dtype=torch.int32), device)
                                    for counts in (self._lengths, keys))
        return places_P, query_starts, key_starts, max(keys)

    # Path by path

    def _path_by_path(self, query_AQE, key_TKE, value_TKE, window: int | None) -> torch.Tensor:
        on_cpu = value_TKE.device.type == "cpu"
        # In fp32 on a CPU, where bf16 is slower for short sequences; rotated queries and keys are in fp32 anyway.
        dtype = torch.float32 if on_cpu else value_TKE.dtype
        query, key, value = (part.to(dtype).transpose(0, 1)[None] for part in (query_AQE, key_TKE, value_TKE))
        if not on_cpu:  # a GPU's kernels for fp32 and for masks take as many heads of keys as of queries
            key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], 1) for part in (key, value))
        keys, values = key.split(self._pack.lengths, 2), value.split(self._pack.lengths, 2)
        found = []
        for query_L, path in zip(query.split(self._lengths, 2), self._paths, strict=True):
            key_S, value_S = (parts[path[0]] if len(path) == 1 else torch.cat([parts[number] for number in path], 2)
                              for parts in (keys, values))
            found.append(self._path(query_L, key_S, value_S, window))
        return torch.cat(found, 2)[0].transpose(0, 1)

    def _path(self, query_L, key_S, value_S, window: int | None) -> torch.Tensor:
        """(1, heads, L or S, E) each, as `scaled_dot_product_attention` takes them."""
        length, seen = query_L.shape[2], key_S.shape[2]
        if window is None or seen <= window:
            return self._scaled_dot_product(query_L, key_S, value_S, None)
        # In blocks of queries, each of which sees only the keys that its window can reach.
        size = max(64, window // 2)
        found = []
        for start in range(0, length, size):
            stop = min(start + size, length)
            some = slice(max(0, seen - length + start - window + 1), seen - length + stop)
            found.append(self._scaled_dot_product(query_L[:, :, start:stop], key_S[:, :, some], value_S[:, :, some],
                                                  window))
        return torch.cat(found, 2)

    def _scaled_dot_product(self, query_L, key_S, value_S, window: int | None) -> torch.Tensor:
        """The queries are those of the last L of the S keys."""
        length, seen = query_L.shape[2], key_S.shape[2]
        causal, mask_LS = length == seen and window is None, None
        if not causal and length > 1:
            shape = length, seen, window
            if shape not in self._masks:
                self._masks[shape] = _mask(*shape, query_L)
            mask_LS = self._masks[shape]
        return F.scaled_dot_product_attention(query_L, key_S, value_S, mask_LS, is_causal=causal,
                                              enable_gqa=query_L.shape[1] != key_S.shape[1])


def _mask(length: int, seen: int, window: int | None, like: torch.Tensor) -> torch.Tensor:
    """0 where a query may look and -inf elsewhere: a mask of booleans would be made into that at every call."""
    distance_LS = (torch.arange(seen - length, seen, device=like.device)[:, None]
                   - torch.arange(seen, device=like.device))
    hidden_LS = (distance_LS < 0) | (distance_LS >= (window or seen))
    return torch.zeros_like(hidden_LS, dtype=like.dtype).masked_fill_(hidden_LS, -torch.inf)
