"""What a verification policy sees, what it answers, and the contract between the two.

Notation (R requests in the step, gamma draft positions): c[r, j] is the confidence that draft token
j of request r is accepted given that all before it were; survival S[r, j] is the product of c[r, i]
for i <= j; l[r] is the number of draft tokens of r that are verified this step.

A step goes: draft (for the requests and lengths that the previous plan asked for), ``plan``, one
target pass over R anchors + sum(l) draft tokens + prefill-chunk tokens, ``observe``. An engine
whose device drafts while the host is free asks for the ``size`` meanwhile.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from policies.cost import CostTable

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class VerifyState(NamedTuple):
    """Everything a policy may look at; arrays are read-only views, one row per decoding request.

    Rows are in admission order. ``slots`` are the engine's cache slots: stable while a request
    lives, recycled after it, so a policy that remembers requests indexes its memory by slot and
    clears what ``fresh`` marks.
    """

    step: int
    """Engine step number, from 0."""
    time_s: float
    """Engine clock, seconds."""
    current: Floats
    """[R, gamma] calibrated confidences of this step's drafts; 0 beyond ``drafted``."""
    lagged: Floats
    """[R, gamma] the same as they were ``Policy.lag`` steps ago; 1 for a request too new for it."""
    drafted: Ints
    """[R] draft tokens that exist this step, 0..gamma: the most that can be verified."""
    slots: Ints
    """[R] cache slot of each request."""
    fresh: Bools
    """[R] True in a request's first decoding step."""
    context_tokens: Ints
    """[R] cached tokens that the anchor attends to."""
    generated_tokens: Ints
    """[R] output tokens so far, the anchor included."""
    domain: Ints
    """[R] domain code of each request (0 where unknown)."""
    slo_class: Ints
    """[R] service class: 0 interactive, 1 batch, 2 agent."""
    slack_s: Floats
    """[R] seconds ahead of the class's TPOT schedule (negative: late; inf: no target)."""
    other_tokens: int
    """Non-draft tokens of the step: R anchors + prefill-chunk tokens."""
    sampling_requests: int
    """Requests that get a token from this step: R + prefills that end in it."""
    queue_length: int
    """Requests waiting for admission."""
    cost: CostTable
    """What the engine believes a step costs."""
    true_accepted: Ints | None = None
    """[R] accepted length of each full block: only for policies marked ``analysis_only``."""
    budget: int | None = None
    """What ``Policy.size`` has said of this step; None where it was not asked."""


class VerifyPlan(NamedTuple):
    """The answer: draft tokens to verify now, and how many to draft for the next step."""

    lengths: Ints
    """[R] draft tokens to verify, 0..drafted each."""
    draft: Ints | None = None
    """[R] draft tokens to propose next step, 0..gamma each (0: skip drafting); None: all gamma."""
    adaptive: bool = True
    """False when every request verifies all it drafted: the engine may take the fixed path."""


class StepOutcome(NamedTuple):
    """What came of a plan; rows as in the state the plan was made for."""

    step: int
    slots: Ints
    lengths: Ints
    """[R] draft tokens verified."""
    accepted: Ints
    """[R] draft tokens accepted, 0..lengths (the bonus not counted)."""
    current: Floats
    """[R, gamma] the confidences that went with them."""
    finished: Bools
    """[R] True where the request ended in this step."""
    step_time_s: float
    """Measured time of the whole step, seconds; 0 where it is not known."""


class Policy(Protocol):
    """Decides verification lengths. Construct one object per run and replica.

    A class gives ``Config``, a frozen dataclass whose defaults are its parameters, and is built as
    ``cls(gamma, config)``; ValueError for a parameter out of range. Subclassing inherits the
    defaults below. ``plan`` is pure in the state plus the policy's own memory and never writes to
    the state's arrays; ties are broken by position, then row, never by token value. ``plan`` of an
    empty state (R = 0) returns empty lengths.
    """

    name: ClassVar[str]
    lag: int = 0
    """Age in steps of the confidences in ``state.lagged`` that this policy sizes with."""
    anticipating: bool = False
    """True when sizing reads current values, which biases sampled output (T > 0)."""
    analysis_only: ClassVar[bool] = False
    """True when the policy needs ``true_accepted``: no live loop can offer that."""
    cost_rule: str = "linear"
    """Lookup rule (``policies.cost.RULES``) of the belief that this engine builds from samples."""
    needs_confidences: ClassVar[bool] = True
    """False where ``plan`` reads neither ``current`` nor ``lagged``: an engine may then plan and
    begin the target pass before this step's drafts have reached the host. ``current`` then
    reads NaN in ``plan``, and what it is in ``observe``."""
    needs_cost: ClassVar[bool] = True
    """False where ``plan`` does not read ``cost``: an engine then need not measure any."""
    signal: ClassVar[str] = "confidence"
    """What ``state.current`` should hold: ``confidence`` (estimated acceptance, known before the
    token is drawn) or ``token_prob`` (the drafter's probability of the token it drew). Confidences
    stand in where token probabilities were not recorded."""
    first_draft: int | None = None
    """Draft tokens for a request's first decoding step, of which no plan has spoken yet; read by
    the harness whenever it admits a request. None: all gamma."""

    draft_lengths: tuple[int, ...] | None = None
    """Draft lengths above 0 that it may ever ask for, ascending, so that an engine can prepare
    them (captured graphs); None: gamma alone."""

    def plan(self, state: VerifyState) -> VerifyPlan:
        """Lengths for this step."""

    def size(self, state: VerifyState) -> int | None:
        """Draft tokens to verify in this step, for a policy that sizes by ``lagged`` values: the
        state that ``plan`` will get, as it is before this step's drafts exist (``current`` reads
        NaN). None: ``plan`` decides on its own. Changes nothing in the policy."""
        return None

    def observe(self, outcome: StepOutcome) -> None:
        """Learn from a finished step; called once per plan, in order."""
        return None
