"""Who is in a step: requests that wait, those that run, and the cache slots and blocks they hold.

First come, first served, by the simulator's rules. Cache slots are compact: decoding requests in
0 .. D - 1, after them those still in prefill; the last one takes the place of one that leaves.
``Running.slot`` is another number, the one that policies see, which stays.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from drafters.limits import EngineConfig, block_pool
from drafters.request import Running


class Admission:
    """The queue and the running rows; ``moved(source, destination, row)`` is told when a row takes
    another cache slot, ``left(slot)`` when one is sent back to the queue."""

    def __init__(
        self,
        config: EngineConfig,
        gamma: int,
        moved: Callable[[int, int, Running], None],
        left: Callable[[int], None],
    ) -> None:
        self.config, self.pool = config, block_pool(config, gamma)
        self._moved, self._left = moved, left
        self.growth = 1 + gamma
        """Tokens that a decoding request may write to the cache in one step."""
        self.free_slots = list(range(config.max_requests))[::-1]
        self.rows: list[Running] = []
        """By cache slot; the first ``decoding`` decode, the others prefill ``chunks`` tokens."""
        self.decoding = 0
        self.chunks: list[int] = []
        self.arriving: deque[Running] = deque()
        self.waiting: deque[Running] = deque()
        self.ended: list[Running] = []
        self._admissions = 0

    @property
    def decoders(self) -> list[Running]:
        """The rows that decode, by cache slot."""
        return self.rows[: self.decoding]

    @property
    def joining(self) -> list[tuple[Running, int]]:
        """The rows in prefill and the tokens that each takes in this step."""
        return list(zip(self.rows[self.decoding :], self.chunks, strict=True))

    def fill(self, now_s: float) -> bool:
        """Let in what has arrived and fits the step, and share out its tokens; False when nothing
        runs."""
        while self.arriving and self._arrives(self.arriving[0], now_s):
            self.waiting.append(self.arriving.popleft())
        preempted = self._reserve()
        budget = self.config.max_step_tokens
        budget -= sum(1 + row.drafted for row in self.decoders)
        self.chunks = []
        for row in self.rows[self.decoding :]:
            budget = self._take_chunk(row, budget)
        while self.waiting and self.free_slots and budget > 0 and not preempted:
            if not self.pool.grow(self.waiting[0], len(self.waiting[0].tokens) + self.growth):
                break
            budget = self._take_chunk(self._enter(self.waiting.popleft()), budget)
        return bool(self.rows)

    def _arrives(self, row: Running, now_s: float) -> bool:
        """Whether the next request is here by now, noting since when."""
        if row.request.arrival_s is not None:
            return row.request.arrival_s <= now_s
        if len(self.waiting) >= len(self.free_slots):
            return False
        row.arrived_s = now_s
        return True

    def _reserve(self) -> bool:
        """Give each decoding request the blocks that this step may fill, oldest first; for want of
        them the youngest requests go back to the head of the queue. True if any did."""
        preempted = False
        short = [row for row in self.decoders if self.pool.lacks(row, self.growth)]
        for row in sorted(short, key=lambda row: row.number):
            while row.slot >= 0 and not self.pool.grow(row, row.cached + self.growth):
                self._preempt(max(self.rows, key=lambda row: row.number))
                preempted = True
        return preempted

    def _preempt(self, row: Running) -> None:
        self._release(row)
        slot = next(i for i, other in enumerate(self.rows) if other is row)
        self._left(slot)
        self._close_gap(slot)
        row.forget()
        row.preemptions += 1
        self.waiting.appendleft(row)

    def _release(self, row: Running) -> None:
        self.free_slots.append(row.slot)
        self.pool.release(row)
        row.slot = -1

    def _take_chunk(self, row: Running, budget: int) -> int:
        self.chunks.append(max(0, min(budget, row.to_prefill)))
        return budget - self.chunks[-1]

    def _enter(self, row: Running) -> Running:
        row.slot, row.number, row.fresh = self.free_slots.pop(), self._admissions, True
        self._admissions += 1
        self.rows.append(row)
        return row

    def leave(self, now_s: float) -> None:
        """Take out the requests that are done; the last row of each kind fills the gap."""
        done = [i for i, row in enumerate(self.decoders) if row.done]
        for row in sorted((self.rows[i] for i in done), key=lambda row: row.number):
            row.finish_s, row.pending = now_s, []
            self._release(row)
            self.ended.append(row)
        for i in reversed(done):
            self._close_gap(i)

    def _close_gap(self, gap: int) -> None:
        """Take row ``gap`` out; the last decoding row, then the last of all, moves up."""
        if gap < self.decoding:
            self.decoding -= 1
        for last in (self.decoding, len(self.rows) - 1):
            if last > gap:
                self.rows[gap] = self.rows[last]
                self._moved(last, gap, self.rows[gap])
                gap = last
        self.rows.pop()
