"""Sequences side by side without padding, what they begin with in common read once.

Shapes: T tokens of the pack, S segments, B sequences.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch

# How many tokens sequences must begin with in common, so that these are read once: for fewer, attention over keys from
# several segments costs more than the tokens would (tests/bench/forward.py --shortest, shared_prefix.py).
SHORTEST_SHARED = 32


@dataclass(frozen=True)
class Pack:
    """Sequences as paths through trees of segments, from the root to a leaf.

    `input_ids` (T,) and `positions` (T,) hold the segments one after the other, with `lengths` (S) tokens each.
    `paths[s]` are the segments that lead to segment s, itself the last one; `leaves[b]` is the segment in which
    sequence b ends, and `last` (B,) the place of its last token.
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    lengths: list[int]
    paths: list[tuple[int, ...]]
    leaves: list[int]
    last: torch.Tensor

    def to(self, device: torch.device) -> "Pack":
        input_ids, positions, last = (to_device(part, device) for part in (self.input_ids, self.positions, self.last))
        return replace(self, input_ids=input_ids, positions=positions, last=last)


def filled_up(pack: Pack) -> Pack:
    """The pack with a segment behind it that is in no sequence, so that there are at most 32 numbers of tokens between
    a power of two and the next: oneDNN, which makes the bf16 products on a CPU, compiles and keeps a kernel for each
    number of rows, and in packs nearly every one would be new."""
    tokens = len(pack.input_ids)
    step = 2 ** max(0, tokens.bit_length() - 6)
    more = -tokens % step
    if not more:
        return pack
    device = pack.input_ids.device
    return replace(pack, input_ids=torch.cat([pack.input_ids, pack.input_ids[-1:].expand(more)]),
                   positions=torch.cat([pack.positions, torch.arange(more, device=device)]),
                   lengths=[*pack.lengths, more], paths=[*pack.paths, (len(pack.paths),)])


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """From the CPU; a GPU copies it when it comes to that, and nothing waits for what is queued there."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def pack(sequences: Sequence[Sequence[int]]) -> Pack:
    """Sequences of ids as one pack. With a `SHORTEST_SHARED` of 2, `[[1, 6], [1, 5, 8], [1, 5, 7, 8]]` would be

        input_ids  [1, 5, 7, 8, 8, 1, 6]
        positions  [0, 1, 2, 3, 2, 0, 1]
        lengths    [2, 2, 1, 2]
        paths      [(0,), (0, 1), (0, 2), (3,)]
        leaves     [3, 2, 1]
        last       [6, 4, 3]
    """
    input_ids: list[int] = []
    positions: list[int] = []
    lengths: list[int] = []
    paths: list[tuple[int, ...]] = []
    leaves: dict[int, int] = {}
    last: dict[int, int] = {}

    def add(tokens: Sequence[int], start: int, above: tuple[int, ...]) -> tuple[int, ...]:
        input_ids.extend(tokens)
        positions.extend(range(start, start + len(tokens)))
        lengths.append(len(tokens))
        paths.append((*above, len(paths)))
        return paths[-1]

    def grow(some: list[tuple[Sequence[int], int]], start: int, above: tuple[int, ...]) -> None:
        """Adds what some of the sequences, sorted and with their numbers, hold from `start` on."""
        for alike in _alike(some, start):
            tokens, number = alike[0]
            if len(alike) > 1:
                shared = min(_shared(one[0], other[0]) for one, other in pairwise(alike))
                grow(alike, shared, add(tokens[start:shared], start, above))
            else:
                leaves[number] = add(tokens[start:], start, above)[-1]
                last[number] = len(input_ids) - 1

    numbers = range(len(sequences))
    grow(sorted(zip(sequences, numbers, strict=True)), 0, ())
    return Pack(torch.tensor(input_ids, dtype=torch.long), torch.tensor(positions, dtype=torch.long), lengths, paths,
                [leaves[number] for number in numbers],
                torch.tensor([last[number] for number in numbers], dtype=torch.long))


def predecessors(pack: Pack) -> torch.Tensor:
    """Of each token the place of the one before it, (T,); -1 for what a sequence begins with."""
    lengths = torch.tensor(pack.lengths, dtype=torch.long)
    ends = lengths.cumsum(0)
    before_T = torch.arange(-1, len(pack.input_ids) - 1)
    before_T[ends - lengths] = torch.tensor([int(ends[path[-2]]) - 1 if len(path) > 1 else -1 for path in pack.paths],
                                            dtype=torch.long)
    return to_device(before_T, pack.input_ids.device)


def token_weights(pack: Pack, weights: Sequence[float]) -> torch.Tensor:
    """Of each token the sum of the `weights` (B) of the sequences that it is in, (T,)."""
    of_segment = [0.0] * len(pack.paths)
    for leaf, weight in zip(pack.leaves, weights, strict=True):
        for segment in pack.paths[leaf]:
            of_segment[segment] += weight
    lengths = torch.tensor(pack.lengths, dtype=torch.long)
    return to_device(torch.tensor(of_segment).repeat_interleave(lengths), pack.input_ids.device)


def sequence_sums(pack: Pack, values_T: torch.Tensor) -> list[float]:
    """The sum of the values of each sequence's tokens."""
    return _along_paths(pack, [float(values.sum()) for values in values_T.double().cpu().split(pack.lengths)])


def sequence_lengths(pack: Pack) -> list[int]:
    """How many tokens each sequence has."""
    return _along_paths(pack, pack.lengths)


def _along_paths(pack: Pack, of_segment: Sequence[float]) -> list:
    """For each sequence the sum over the segments that it is made of."""
    return [sum(of_segment[segment] for segment in pack.paths[leaf]) for leaf in pack.leaves]


def _alike(sequences: list[tuple[Sequence[int], int]], start: int) -> Iterator[list[tuple[Sequence[int], int]]]:
    """Runs of sorted sequences that share enough from `start` on."""
    first = 0
    for place in range(1, len(sequences) + 1):
        if place == len(sequences) or (
                _shared(sequences[place - 1][0], sequences[place][0]) < start + SHORTEST_SHARED):
            yield sequences[first:place]
            first = place


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with; the last token of either is its own."""
    fewest = min(len(one), len(other)) - 1
    return next((place for place in range(fewest) if one[place] != other[place]), fewest)
