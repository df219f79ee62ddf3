"""Sums over every span of one length, kept as charges come, so that asking costs the same after years.

Place: beneath the ledger; it knows lengths of time and amounts, not accounts.
Invariants: exact; the same answers as adding everything up again.

A span `[t, t + length)` touches a charge for the windows that start from `first` to `last` if t lies in
`(first - length, last]`. So the sum over a span is a step function of t; a charge raises it over one interval, and a
question is its maximum over one. The steps lie in blocks of a few hundred; a raise touches whole blocks once.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_BLOCK = 256


@dataclass(slots=True)
class _Block:
    keys: list[int]
    """Where the steps begin, ascending."""
    sums: list[int]
    """The sum from each on, less `more`."""
    most: int
    """The largest of `sums`."""
    more: int = 0


class Spans:
    """The sums of one kind of amount over all spans of one length; times are whole numbers of any one unit."""

    def __init__(self, length: int, charges: Iterable[tuple[int, int, Fraction]] = ()) -> None:
        """Begin with charges: first, last, amount."""
        self._length = length
        self._denominator = 1
        self._blocks: list[_Block] = []
        steps: dict[int, int] = {}
        for first, last, amount in charges:
            if amount:
                times = self._refine(amount.denominator)
                if times > 1:
                    steps = {key: step * times for key, step in steps.items()}
                whole, begin = self._whole(amount), first - length + 1
                steps[begin] = steps.get(begin, 0) + whole
                steps[last + 1] = steps.get(last + 1, 0) - whole
        keys = sorted(steps)
        sums = list(accumulate(steps[key] for key in keys))
        parts = [(keys[i : i + _BLOCK], sums[i : i + _BLOCK]) for i in range(0, len(keys), _BLOCK)]
        self._blocks = [_Block(part, values, max(values)) for part, values in parts]
        self._starts = [block.keys[0] for block in self._blocks]

    def add(self, first: int, last: int, amount: Fraction) -> None:
        """One more charge."""
        if not amount:
            return
        self._refine(amount.denominator)
        begin, end = first - self._length + 1, last + 1
        for key in (begin, end):
            self._step(key)
        raised = self._whole(amount)
        i, j = self._at(begin), self._at(end)
        for block in self._blocks[i + 1 : j]:
            block.more += raised
        for k in {i, j}:
            block = self._blocks[k]
            low, high = bisect_left(block.keys, begin), bisect_left(block.keys, end)
            block.sums[low:high] = [sum_ + raised for sum_ in block.sums[low:high]]
            block.most = max(block.sums)

    def heaviest(self, first: int, last: int) -> Fraction:
        """The largest sum of a span that touches any of the windows that start from `first` to `last`."""
        begin, end = first - self._length + 1, last + 1
        i, j = self._at(begin), self._at(end - 1)
        worst = 0
        for k in {i, j}.intersection(range(len(self._blocks))):
            block = self._blocks[k]
            low, high = max(bisect_right(block.keys, begin) - 1, 0), bisect_left(block.keys, end)
            worst = max(worst, max(block.sums[low:high], default=-block.more) + block.more)
        worst = max(worst, max((block.most + block.more for block in self._blocks[i + 1 : max(j, 0)]), default=0))
        return Fraction(worst, self._denominator)

    def most(self) -> Fraction:
        """The largest sum of any span."""
        worst = max((block.most + block.more for block in self._blocks), default=0)
        return Fraction(max(worst, 0), self._denominator)

    def _at(self, key: int) -> int:
        """The block in which a moment lies; -1 before the first."""
        return bisect_right(self._starts, key) - 1

    def _step(self, key: int) -> None:
        """Let a step begin at a moment, with the sum as it is there."""
        at = self._at(key)
        if at < 0:
            if not self._blocks:
                self._blocks.append(_Block([key], [0], 0))
                self._starts.append(key)
                return
            at = 0
        block = self._blocks[at]
        i = bisect_left(block.keys, key)
        if i < len(block.keys) and block.keys[i] == key:
            return
        block.keys.insert(i, key)
        block.sums.insert(i, block.sums[i - 1] if i else -block.more)
        block.most = max(block.most, block.sums[i])
        self._starts[at] = block.keys[0]
        if len(block.keys) > 2 * _BLOCK:
            rest = _Block(block.keys[_BLOCK:], block.sums[_BLOCK:], max(block.sums[_BLOCK:]), block.more)
            del block.keys[_BLOCK:], block.sums[_BLOCK:]
            block.most = max(block.sums)
            self._blocks.insert(at + 1, rest)
            self._starts.insert(at + 1, rest.keys[0])

    def _refine(self, denominator: int) -> int:
        """Count in a unit that the denominator fits in too; how many of it make one of the unit before."""
        times = math.lcm(self._denominator, denominator) // self._denominator
        if times > 1:
            self._denominator *= times
            for block in self._blocks:
                block.sums = [sum_ * times for sum_ in block.sums]
                block.most, block.more = block.most * times, block.more * times
        return times

    def _whole(self, amount: Fraction) -> int:
        return amount.numerator * (self._denominator // amount.denominator)
