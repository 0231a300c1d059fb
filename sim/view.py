"""What a policy sees of a replica: read-only windows on its arrays, cut to the decoding rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from policies.base import StepOutcome, VerifyPlan, VerifyState
from sim import state as s
from sim.state import Ints

if TYPE_CHECKING:
    from sim.replica import Replica


class View:
    """The windows of one replica."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        rows = replica.rows_i
        fields = (s.DRAFTED, s.SLOT), (s.CONTEXT, s.GENERATED, s.DOMAIN, s.SLO_CLASS)
        self._seen = [
            _read_only(array)
            for array in (
                replica.current,
                replica.lagged,
                *(rows[field] for field in fields[0]),
                replica.fresh,
                *(rows[field] for field in fields[1]),
                replica.slack_s,
            )
        ]
        self.accepted, self.finished = _read_only(replica.accepted), _read_only(replica.finished)
        self._cuts: dict[int, list[npt.NDArray[Any]]] = {}

    def _cut(self, rows: int) -> list[npt.NDArray[Any]]:
        """The windows' first rows; kept, since the same few counts come again and again."""
        if rows not in self._cuts:
            self._cuts[rows] = [array[:rows] for array in self._seen]
        return self._cuts[rows]

    def state(self, counts: list[int], now_s: float) -> VerifyState:
        """What the policy sees at the start of a step."""
        rows = counts[s.DECODING]
        return tuple.__new__(
            VerifyState,
            (
                counts[s.STEP],
                now_s,
                *self._cut(rows),
                rows + counts[s.PREFILL_TOKENS],
                rows + counts[s.PREFILL_ENDS],
                counts[s.TAIL] - counts[s.HEAD],
                self.replica.cost,
                self._truth(rows) if self.replica.policy.analysis_only else None,
                None,
            ),
        )

    def _truth(self, rows: int) -> Ints:
        recorded = self.replica.world.traces.accepted
        truth: Ints = recorded[self.replica.rows_i[s.ANCHOR, :rows]].astype(np.int64)
        return truth

    def outcome(self, plan: VerifyPlan, step: int, step_time_s: float) -> StepOutcome:
        """What the policy learns after the step, rows as they were when it planned."""
        rows = plan.lengths.size
        current, _, _, slots, *_ = self._cut(rows)
        accepted, finished = self.accepted[:rows], self.finished[:rows]
        return StepOutcome(step, slots, plan.lengths, accepted, current, finished, step_time_s)


def _read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    view = array.view()
    view.setflags(write=False)
    return view
