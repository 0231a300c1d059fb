"""Layout of the simulator's structure-of-arrays state, shared by the kernels and the replica.

A *row* is a request that a replica is running; rows are in admission order, those that decode come
before those still in prefill. A *line* is the same record in the table of all requests, where it
lives before admission, after eviction and after its end. Rows are stored field by field
(``[fields, max_requests]``: a field is contiguous, so policies get plain views), lines request by
request (``[requests, fields]``: a request is contiguous, so moving one touches few cache lines).

After a change here, delete the compiled kernels (``sim/__pycache__/*.nb?``): numba's disk cache
watches only the file a kernel is written in.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gpu_traces.schema import AcceptanceTraces
from sim.workload import Workload

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

(
    REQUEST,  # row of the workload
    SLOT,  # cache slot, stable while the request runs
    RESPONSE,  # recorded response being replayed
    ANCHOR,  # row of the anchors table
    CONTEXT,  # cached tokens
    GENERATED,  # output tokens so far
    OUTPUT,  # output tokens wanted
    PROMPT,
    PREFILL,  # tokens still to prefill
    CHUNK,  # tokens prefilled in this step
    DRAFTED,  # draft tokens that exist this step
    FRESH,  # 1 until the first decoding step since admission is over
    DOMAIN,
    SLO_CLASS,
    ROUNDS,
    VERIFIED,
    ACCEPTED,
    BLOCKS,  # KV blocks held
    PREFIX,  # leading tokens found in the prefix cache
    GAINED,  # tokens won in the last step
    UNDRAFTED,  # tokens generated since the request last drafted
    PREEMPTIONS,
    RETRIES,
    REPLICA,
    STATUS,
) = range(25)
INT_FIELDS = 25

ARRIVAL, ADMITTED, FIRST_TOKEN, LAST_CHUNK, FINISH, DEADLINE, MAX_GAP = range(7)
FLOAT_FIELDS = 7

WAITING, RUNNING, COMPLETED, CANCELLED, TIMED_OUT, FAILED = range(6)
STATUS_NAMES = ("waiting", "running", "completed", "cancelled", "timed out", "failed")

(
    ROWS,  # requests running
    DECODING,  # of those, past prefill: rows 0 .. DECODING - 1
    HEAD,  # queue: first waiting
    TAIL,  # queue: one past the last waiting
    FREE_SLOTS,
    FREE_BLOCKS,
    PREFILL_TOKENS,  # of this step
    PREFILL_ENDS,  # prefills that end in this step with a first token
    FIRST_TOKENS,  # requests that enter this step with a first token made elsewhere
    CONTEXT_SUM,  # cached tokens that this step's target pass reads
    DRAFTING,  # rows that draft in this step
    LONGEST,  # longest block they draft
    DRAFT_CONTEXT,  # cached tokens that they read
    REFILL,  # tokens that the drafter's cache lacks of them
    ENDED,  # requests that left in the last call, listed in ``ended``
    PREEMPTED,  # so far
    OUTSTANDING,  # tokens that a router counts against this replica
    STEP,
    STALLS,
) = range(19)
COUNTS = 19

(
    S_REPLICA,
    S_DECODE,
    S_PREFILL_TOKENS,
    S_DRAFTED,
    S_BUDGET,
    S_ACCEPTED,
    S_OUTPUT,
    S_QUEUE,
    S_CONTEXT,
    S_KV_BLOCKS,
    S_ENDED,
) = range(11)
STEP_INTS = 11

(
    MAX_REQUESTS,
    MAX_TOKENS,  # of a step
    BLOCK_TOKENS,
    TOTAL_BLOCKS,
    GROWTH,  # cached tokens that a request can gain in a step
    MODE,  # of prefill
    FIRST_DRAFT,  # draft tokens of a fresh request
    MEAN_OUTPUT,  # output tokens that a router expects of a request
) = range(8)
LIMITS = 8

CHUNKED, SEPARATE, NONE = range(3)
PREFILL_MODES = ("chunked", "separate", "none")


def request_table(
    workload: Workload, traces: AcceptanceTraces, timeout_s: float, prefix_cache: bool
) -> tuple[Ints, Floats]:
    """Lines of all requests before anything happened: ints [n, INT_FIELDS], floats [n, ...]."""
    ints = np.zeros((workload.requests, INT_FIELDS), dtype=np.int64)
    ints[:, REQUEST] = np.arange(workload.requests)
    response, start = _first_anchored(workload, traces)
    ints[:, RESPONSE] = response
    ints[:, ANCHOR] = traces.first_anchor[response] + start
    ints[:, OUTPUT] = workload.output_tokens
    ints[:, PROMPT] = workload.prompt_tokens
    ints[:, DOMAIN] = workload.domain
    ints[:, SLO_CLASS] = workload.slo_class
    ints[:, SLOT] = ints[:, REPLICA] = -1
    if prefix_cache:
        ints[:, PREFIX] = np.minimum(workload.prefix_tokens, workload.prompt_tokens - 1)
    floats = np.full((workload.requests, FLOAT_FIELDS), np.nan)
    floats[:, ARRIVAL] = workload.arrival_s
    floats[:, DEADLINE] = workload.arrival_s + np.minimum(workload.patience_s, timeout_s)
    floats[:, MAX_GAP] = 0.0
    return ints, floats


def _first_anchored(workload: Workload, traces: AcceptanceTraces) -> tuple[Ints, Ints]:
    """Where each chain begins; a response of one token has no anchor, so it yields to the next."""
    bare = traces.response_tokens[workload.response] <= 1
    response = np.where(bare, successors(traces)[workload.response], workload.response)
    return response, np.where(bare, 0, workload.start)


def successors(traces: AcceptanceTraces) -> Ints:
    """[responses] the response whose anchors follow a response's own: the next of its domain."""
    following = np.arange(traces.responses)
    for domain in np.unique(traces.domain):
        members = traces.of_domain(int(domain))
        usable = members[traces.response_tokens[members] > 1]
        following[members] = usable[0] if usable.size else members
        following[usable] = np.roll(usable, -1)
    return following
