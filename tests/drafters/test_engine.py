"""The live engine against transformers, against the theory of walking, and under stress."""

import math
import pickle
import sys

import numpy as np
import pytest
import torch
from numba.core.dispatcher import Dispatcher

from drafters.drafting import Drafting
from drafters.engine import IDLE_S, Engine, EngineConfig
from drafters.errors import UserError
from drafters.ngram import NgramDrafter
from drafters.request import Request, Running
from drafters.runner import Runner
from drafters.target import Target, load_target
from policies.base import Policy, StepOutcome, VerifyPlan, VerifyState
from policies.registry import create, get, names
from tests.drafters.live import (
    GAMMA,
    NEW,
    VOCAB,
    block_drafter,
    cost_table,
    informed,
    prompts,
    run,
    save_model,
    transformers_greedy,
)

LIVE = [name for name in names() if not get(name).analysis_only]


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, device: str):
    """(transformers model, our target of the same weights)."""
    folder = tmp_path_factory.mktemp(request.param)
    model = save_model(folder, request.param)
    return model, load_target(str(folder), device=device)


@pytest.fixture(scope="module")
def llama(
    tmp_path_factory: pytest.TempPathFactory, device: str
) -> tuple[Target, list[tuple[int, ...]], list]:
    """(target, prompts, greedy outputs of transformers)."""
    folder = tmp_path_factory.mktemp("llama")
    model = save_model(folder)
    asked = prompts(12)
    outputs = [transformers_greedy(model, p, NEW) for p in asked]
    return load_target(str(folder), device=device), asked, outputs


@pytest.mark.parametrize("drafter", ["none", "block", "ngram"])
def test_greedy_output_is_transformers_own(pair, drafter: str, device: str) -> None:
    model, target = pair
    asked = prompts(8, seed=2)
    made = {
        "none": lambda: None,
        "block": lambda: block_drafter(target),
        "ngram": lambda: NgramDrafter(VOCAB, GAMMA, shortest=1, device=device),
    }[drafter]()
    policy = create("none" if drafter == "none" else "confidence", GAMMA)
    engine = run(target, made, policy, asked)
    for row in engine.ended:
        assert row.output == transformers_greedy(model, row.request.prompt, NEW)
    if drafter != "none":
        assert sum(row.verified for row in engine.ended) > 20


@pytest.mark.parametrize("policy", LIVE)
def test_no_policy_changes_greedy_text(llama, policy: str) -> None:
    target, asked, outputs = llama
    engine = run(target, informed(asked, outputs), create(policy, GAMMA), asked)
    assert [row.output for row in engine.ended] == outputs
    assert policy == "none" or sum(row.verified for row in engine.ended) > 0
    assert all(row.accepted <= row.verified for row in engine.ended)
    for row in engine.ended:
        assert row.generated == NEW
        assert 1 + row.rounds + row.accepted - NEW in (0, 1)  # the last round may lack its bonus


@pytest.mark.parametrize(
    ("concurrency", "step_tokens"), [(1, 2048), (5, 2048), (12, 2048), (5, 30)]
)
def test_batching_and_chunked_prefill_change_nothing(
    llama, concurrency: int, step_tokens: int
) -> None:
    """Rows move when others leave and prompts arrive in chunks: text and rounds stay."""
    target, asked, outputs = llama
    engine = run(
        target, informed(asked, outputs), create("fixed-k", GAMMA, k=GAMMA), asked,
        max_requests=concurrency, max_step_tokens=step_tokens,
    )  # fmt: skip
    alone = run(
        target, informed(asked, outputs), create("fixed-k", GAMMA, k=GAMMA), asked, max_requests=1
    )
    counts = [(r.rounds, r.verified, r.accepted) for r in engine.ended]
    assert [row.output for row in engine.ended] == outputs
    assert counts == [(r.rounds, r.verified, r.accepted) for r in alone.ended]
    chunked = max(engine.log.columns["prefill_tokens"])
    assert chunked <= step_tokens


@pytest.mark.parametrize("k", range(GAMMA + 1))
def test_rounds_are_those_of_walking_the_acceptance(llama, k: int) -> None:
    """At T = 0 the loop at position t gains min(A_t, k) + 1 tokens, cut at the response's end
    (``gpu_traces.schema``): compared with a walk over A_t computed from drafter and text alone."""
    target, asked, outputs = llama
    drafter = informed(asked, outputs)
    engine = run(target, drafter, create("fixed-k", GAMMA, k=k), asked)
    for row, prompt, output in zip(engine.ended, asked, outputs, strict=True):
        t = rounds = accepted = 0
        while t < NEW - 1:
            block, _ = drafter._block([*prompt, *output[: t + 1]], GAMMA)
            after = output[t + 1 :]
            agree = [a == b for a, b in zip(block, after, strict=False)]
            hit = min([*agree, False].index(False), k)
            t += min(hit + 1, NEW - 1 - t)
            rounds, accepted = rounds + 1, accepted + hit
        assert (row.rounds, row.verified, row.accepted) == (rounds, rounds * k, accepted)


def test_a_stop_token_ends_the_response_where_it_stands(llama) -> None:
    """Also in the middle of an accepted block: what follows is dropped, no bonus token."""
    target, asked, outputs = llama
    stop = outputs[0][7]
    engine = run(
        target, informed(asked, outputs), create("fixed-k", GAMMA, k=GAMMA), asked,
        stops=frozenset({stop}),
    )  # fmt: skip
    for row, output in zip(engine.ended, outputs, strict=True):
        expected = output[: output.index(stop) + 1] if stop in output else output
        assert row.output == expected
        assert row.accepted <= max(0, row.generated - 1)


def test_requests_that_cannot_run_fail_alone(llama) -> None:
    target, asked, outputs = llama
    bad = [asked[0], (VOCAB,), (1,) * 70, (), asked[1]]
    engine = run(target, None, create("none", GAMMA), bad)
    reasons = [row.reason for row in engine.ended]
    assert f"token id {VOCAB} is outside the vocabulary 0..{VOCAB - 1}" in reasons[1]
    assert "70 prompt + 24 new tokens" in reasons[2]
    assert "prompt of at least 1 token" in reasons[3]
    assert [engine.ended[i].output for i in (0, 4)] == outputs[:2]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"temperature": -1.0}, "temperature -1 must be a finite number, 0 or more"),
        ({"temperature": math.nan}, "temperature nan"),
        ({"temperature": math.inf}, "temperature inf"),
        ({"arrival_s": math.nan}, "arrival_s nan must be a finite number"),
        ({"arrival_s": math.inf}, "arrival_s inf"),
        ({"max_new": 50}, "50 new tokens and a block of 6 exceed kv_tokens, which hold 48"),
    ],
)
def test_what_cannot_be_served_fails_alone(llama, changed: dict, says: str) -> None:
    target, asked, outputs = llama
    config = EngineConfig(max_context=80, kv_tokens=50)
    engine = Engine(target, None, create("none", GAMMA), cost_table(), config)
    for i in range(2):
        request = {"prompt": asked[0][:6], "max_new": 4} | (changed if i == 0 else {})
        engine.submit(Request(request_id=i, name=str(i), **request))
    while engine.busy:
        engine.step()
    assert says in engine.ended[0].reason
    assert engine.ended[1].done


def test_a_temperature_near_zero_acts_as_zero(llama) -> None:
    target, asked, outputs = llama
    drafter = informed(asked, outputs)
    engine = run(target, drafter, create("fixed-k", GAMMA), asked, temperature=1e-40)
    assert [row.output for row in engine.ended] == outputs


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        (
            {"max_requests": 64, "max_step_tokens": 64},
            "max requests x .* = 64 x 6 = 384; raise --m",
        ),
        ({"max_requests": 10**12}, "up to 2048 tokens do not fit into memory; lower --concurrency"),
        ({"max_requests": 4, "max_context": 10**13, "kv_tokens": 160}, "do not fit into memory"),
    ],
)
def test_limits_that_cannot_be_kept_are_refused(
    llama, limits: dict, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama[0], "max_positions", math.inf)
    config = EngineConfig(**{"max_step_tokens": 10**15, **limits})
    with pytest.raises(UserError, match=says):
        Engine(llama[0], None, create("none", GAMMA), cost_table(), config)


def test_analysis_only_policies_are_refused(llama) -> None:
    target, _, _ = llama
    with pytest.raises(UserError, match="true acceptance"):
        run(target, None, create("oracle", GAMMA), [])


class Spy:
    """A policy that verifies what another says, and keeps all it was shown and told."""

    name = "spy"
    analysis_only = False
    anticipating = False
    needs_confidences = True
    first_draft: int | None = None
    draft_lengths: tuple[int, ...] | None = None

    def __init__(self, inner: Policy, lag: int = 0) -> None:
        self.inner, self.lag = inner, lag
        self.states: list[VerifyState] = []
        self.outcomes: list[StepOutcome] = []

    def size(self, state: VerifyState) -> int | None:
        return self.inner.size(state)

    def plan(self, state: VerifyState) -> VerifyPlan:
        self.states.append(state)
        return self.inner.plan(state)

    def observe(self, outcome: StepOutcome) -> None:
        self.outcomes.append(outcome)


def test_policy_sees_and_hears_what_the_contract_says(llama) -> None:
    """Rows in admission order, stable slots, lag by slot, 0 beyond the drafts, read-only arrays."""
    target, asked, outputs = llama
    spy = Spy(create("threshold", GAMMA), lag=2)
    engine = run(target, informed(asked, outputs), spy, asked)  # type: ignore[arg-type]
    log = engine.log.columns
    order: list[int] = []
    past: dict[int, list[np.ndarray]] = {}
    owner: dict[int, int] = {}
    for state, outcome in zip(spy.states, spy.outcomes, strict=True):
        ids = log["request_ids"][state.step]
        order += [i for i in ids if i not in order]
        assert ids == [i for i in order if i in ids]
        assert not state.current.flags.writeable
        assert (state.slots < 5).all()
        assert len(set(state.slots.tolist())) == len(ids)
        for r, i in enumerate(ids):
            assert owner.setdefault(i, int(state.slots[r])) == state.slots[r]
            assert state.fresh[r] == (i not in past)
            seen = past.setdefault(i, [])
            seen.append(state.current[r])
            expected = seen[-3] if len(seen) > 2 else np.ones(GAMMA)
            assert np.array_equal(state.lagged[r], expected)
            assert state.domain[r] == i % 3
        assert (state.current[np.arange(GAMMA) >= state.drafted[:, None]] == 0).all()
        assert np.array_equal(state.current, state.current.astype(np.float16))
        assert state.sampling_requests >= len(ids)
        assert state.other_tokens == len(ids) + log["prefill_tokens"][state.step]
        assert np.array_equal(outcome.accepted, log["accepted"][state.step])
        assert np.array_equal(outcome.slots, state.slots)
    total = sum(sum(a) for a in log["accepted"])
    assert total == sum(row.accepted for row in engine.ended) > 0
    assert sum(int(o.finished.sum()) for o in spy.outcomes) == len(asked)


class Ahead(Spy):
    """Notes what it was shown when it was asked for a size, and when the host read a block."""

    def __init__(self, inner: Policy) -> None:
        super().__init__(inner, inner.lag)
        self.cost_rule = inner.cost_rule
        self.calls: list[str] = []
        self.early: list[VerifyState] = []

    def size(self, state: VerifyState) -> int | None:
        self.calls.append("size")
        self.early.append(state)
        return super().size(state)

    def plan(self, state: VerifyState) -> VerifyPlan:
        self.calls.append("plan")
        return super().plan(state)


@pytest.mark.parametrize("name", ["hardware-aware", "vllm", "sglang", "tensorrt-llm"])
def test_a_size_is_settled_before_the_drafts_are_waited_for(llama, monkeypatch, name: str) -> None:
    """With all but the confidences of the plan's own state; the runs are those of a policy that is
    not asked ahead."""
    target, asked, outputs = llama
    spy = Ahead(create(name, GAMMA))
    read = Drafting.block
    monkeypatch.setattr(Drafting, "block", lambda self: spy.calls.append("read") or read(self))
    engine = run(target, informed(asked, outputs), spy, asked)  # type: ignore[arg-type]
    assert spy.calls == ["size", "read", "plan"] * len(spy.states)
    for early, state in zip(spy.early, spy.states, strict=True):
        assert np.isnan(early.current).all()
        for field in set(VerifyState._fields) - {"current", "budget"}:
            assert np.array_equal(getattr(early, field), getattr(state, field))
        assert state.budget == spy.inner.size(state)
    plain = create(name, GAMMA)
    monkeypatch.setattr(plain, "size", lambda state: None)
    monkeypatch.setattr(plain, "plan", lambda state: create(name, GAMMA).plan(state))
    again = run(target, informed(asked, outputs), plain, asked)
    assert again.log.columns["lengths"] == engine.log.columns["lengths"]
    assert sum(sum(step) for step in engine.log.columns["lengths"]) > 0


class Pausing(Spy):
    """Drafts two steps, pauses three; the drafter then has tokens to catch up with."""

    def plan(self, state: VerifyState) -> VerifyPlan:
        on = (state.step + state.slots) % 5 < 2
        return VerifyPlan(state.drafted.copy(), np.where(on, GAMMA, 0))


def test_a_drafter_catches_up_after_a_pause(llama) -> None:
    """``Informed`` asserts that it is given every token; acceptance shows that they are right."""
    target, asked, outputs = llama
    engine = run(target, informed(asked, outputs), Pausing(create("none", GAMMA)), asked)  # type: ignore[arg-type]
    assert [row.output for row in engine.ended] == outputs
    drafted = [d for step in engine.log.columns["drafted"] for d in step]
    assert 0 in drafted
    assert GAMMA in drafted
    assert sum(row.accepted for row in engine.ended) > 50


def test_block_drafter_proposes_the_same_in_any_batch(llama) -> None:
    """Confidences and acceptance of a real drafter don't depend on slots, moves or neighbours."""
    target, asked, _ = llama
    drafter = block_drafter(target)
    together = run(target, drafter, create("threshold", GAMMA, tau=0.5), asked)
    alone = run(target, drafter, create("threshold", GAMMA, tau=0.5), asked, max_requests=1)
    for a, b in zip(together.ended, alone.ended, strict=True):
        assert (a.rounds, a.verified, a.accepted) == (b.rounds, b.verified, b.accepted)
    assert sum(row.verified for row in together.ended) > 0


def test_sampled_text_belongs_to_the_request_not_the_batch(llama) -> None:
    """Seeded per request and round: the same in any batch; another seed gives another text."""
    target, asked, outputs = llama

    def texts(seed: int, concurrency: int) -> list[list[int]]:
        engine = run(
            target, informed(asked, outputs), create("fixed-k", GAMMA), asked,
            temperature=1.0, max_requests=concurrency, seed=seed,
        )  # fmt: skip
        return [row.output for row in engine.ended]

    assert texts(0, 5) == texts(0, 1)
    assert texts(0, 5) != texts(1, 5)


def test_temperature_is_per_request(llama) -> None:
    target, asked, outputs = llama
    heat = [0.0, 1.0] * 6
    engine = run(
        target, informed(asked, outputs), create("fixed-k", GAMMA), asked, temperature=heat
    )
    for i, row in enumerate(engine.ended):
        assert (row.output == outputs[i]) == (heat[i] == 0.0)


def test_arrivals_are_waited_for(llama) -> None:
    """With a clock of our own: nothing starts before its time, idle time is slept away."""
    target, asked, outputs = llama
    ticks = iter(np.arange(0, 1e4, 0.25))
    engine = Engine(
        target, None, create("none", GAMMA), cost_table(), EngineConfig(max_context=80),
        clock=lambda: float(next(ticks)),
    )  # fmt: skip
    for i in range(3):
        engine.submit(
            Request(request_id=i, name=str(i), prompt=asked[i], max_new=4, arrival_s=0.001 * i)
        )
    while engine.busy:
        engine.step()
    for row in engine.ended:
        assert row.output == outputs[row.request.request_id][:4]
        assert row.request.arrival_s <= row.first_token_s <= row.finish_s


def test_a_step_without_work_sleeps_only_briefly(llama) -> None:
    """Who steps can look at other things in between, a request to stop for one."""
    target, asked, _ = llama
    engine = Engine(target, None, create("none", GAMMA), cost_table(), EngineConfig())
    engine.submit(Request(request_id=0, name="0", prompt=asked[0], max_new=4, arrival_s=3.0))
    engine.start()
    engine.step()
    assert IDLE_S <= engine.now_s() < 3.0
    assert not len(engine.log)


def compiled() -> dict[Dispatcher, list]:
    """Types that each of the policies' functions was compiled or loaded for."""
    modules = [module for name, module in sys.modules.items() if name.startswith("policies.")]
    found = {f for m in modules for f in vars(m).values() if isinstance(f, Dispatcher)}
    return {f: list(f.overloads) for f in found}


@pytest.mark.parametrize("policy", LIVE)
def test_nothing_is_compiled_once_the_clock_runs(llama, policy: str) -> None:
    """In a process that has loaded nothing; the rehearsal teaches the policy itself nothing."""
    target, asked, outputs = llama
    for function in compiled():
        function._reset_overloads()
    chosen = create(policy, GAMMA)
    config = EngineConfig(max_requests=5, max_context=80)
    engine = Engine(target, informed(asked, outputs), chosen, cost_table(), config)
    for i, prompt in enumerate(asked):
        engine.submit(Request(request_id=i, name=str(i), prompt=prompt, max_new=NEW, domain=i % 3))
    fresh = pickle.dumps(chosen)
    engine.start()
    assert pickle.dumps(chosen) == fresh
    before = compiled()
    while engine.busy:
        engine.step()
    assert compiled() == before


def test_confidences_reach_the_policy_as_a_bundle_would_give_them(llama) -> None:
    """Raw to the float16 grid, calibrated at the request's own temperature, to the grid again."""
    from gpu_traces.calibration import calibrate
    from gpu_traces.manifest import Calibration

    target, asked, outputs = llama
    scales = tuple(1.0 + 0.2 * k for k in range(GAMMA))
    fitted = (
        Calibration(0.0, "sts", scales, (0.0,) * GAMMA),
        Calibration(1.0, "sts+bias", (2.0,) * GAMMA, (-0.5,) * GAMMA),
    )
    drafter = informed(asked, outputs)
    spy = Spy(create("fixed-k", GAMMA))
    config = EngineConfig(max_requests=2, max_context=80)
    engine = Engine(target, drafter, spy, cost_table(), config, calibration=fitted)  # type: ignore[arg-type]
    for i, t in enumerate((0.0, 1.0)):
        engine.submit(
            Request(request_id=i, name=str(i), prompt=asked[i], max_new=NEW, temperature=t)
        )
    engine.step()
    first = [row.tokens for row in engine.line.rows]
    engine.step()
    state = spy.states[0]
    for r, entry in enumerate(fitted):
        _, sure = drafter._block(first[r][: len(asked[r]) + 1], GAMMA)
        raw = np.array(sure, dtype=np.float32).astype(np.float16).astype(np.float32)
        assert np.array_equal(state.current[r], calibrate(raw, entry.scales, entry.bias))


def test_moved_rows_keep_their_cache(llama) -> None:
    """A row that takes the place of a finished one goes on with its own keys and values."""
    target, asked, outputs = llama
    engine = Engine(
        target, block_drafter(target), create("fixed-k", GAMMA), cost_table(),
        EngineConfig(max_requests=4, max_context=80),
    )  # fmt: skip
    for i, new in enumerate((3, NEW, 6, NEW)):
        engine.submit(Request(request_id=i, name=str(i), prompt=asked[i], max_new=new))
    moved: list[Running] = []
    while engine.busy:
        before = list(engine.line.rows)
        engine.step()
        pairs = zip(before, engine.line.rows, strict=False)
        moved += [row for was, row in pairs if was is not row]
    assert moved
    for row in engine.ended:
        i = row.request.request_id
        assert row.output == outputs[i][: row.request.max_new]


@pytest.mark.parametrize("paged", [False, True])
def test_a_full_cache_preempts_and_loses_nothing(
    llama, paged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten blocks for five requests that want four each: the youngest go back and start over, and
    nothing of them stays in the slot that they leave."""
    target, asked, outputs = llama
    wipe, wiped = Runner.wipe, []

    def watched(runner: Runner, slot: int) -> None:
        wipe(runner, slot)
        wiped.append(paged or not runner.cache.keys[:, slot].any())

    monkeypatch.setattr(Runner, "wipe", watched)
    engine = run(
        target, informed(asked, outputs), create("fixed-k", GAMMA), asked,
        kv_tokens=160, paged=paged,
    )  # fmt: skip
    assert [row.output for row in engine.ended] == outputs
    assert sum(row.preemptions for row in engine.ended) == len(wiped) > 0
    assert all(wiped)
    assert sorted(engine.line.pool.free) == list(range(10))
    assert sorted(engine.line.free_slots) == list(range(5))


def test_paged_cache_gives_the_same_text_and_rounds(llama) -> None:
    target, asked, outputs = llama
    policy = lambda: create("threshold", GAMMA, tau=0.5)  # noqa: E731
    slots = run(target, informed(asked, outputs), policy(), asked, max_step_tokens=30)
    paged = run(target, informed(asked, outputs), policy(), asked, max_step_tokens=30, paged=True)
    assert [row.output for row in paged.ended] == outputs
    assert [row.verified for row in paged.ended] == [row.verified for row in slots.ended]


def test_a_request_larger_than_the_cache_fails_alone(llama) -> None:
    target, asked, outputs = llama
    asked = [asked[0], (1,) * 50]
    engine = run(target, None, create("none", GAMMA), asked, kv_tokens=64)
    assert "exceed kv_tokens" in engine.ended[1].reason
    assert engine.ended[0].output == outputs[0]


@pytest.mark.weights
@pytest.mark.slow
def test_smollm2_greedy_is_transformers_own() -> None:
    """A few real prompts, 24 tokens each; where texts part, the two best logits tie in fp32."""
    from transformers import AutoModelForCausalLM

    import drafters
    from drafters.chat import encode_chat
    from drafters.target import load_tokenizer, resolve

    name = "smollm2-135m"
    model = AutoModelForCausalLM.from_pretrained(resolve(name), dtype=torch.float32).eval()
    target, tokenizer = load_target(name), load_tokenizer(name)
    asked = [
        tuple(encode_chat(tokenizer, text))
        for text in ("Write a haiku.", "What is 12 * 7?", "def fib(n): finish this function.")
    ]
    engine = run(
        target, drafters.load("dspark-smollm2-135m", target), create("fixed-k", 7), asked,
        max_context=256,
    )  # fmt: skip
    assert sum(row.accepted for row in engine.ended) > 20
    for row in engine.ended:
        expected = transformers_greedy(model, row.request.prompt, NEW)
        pairs = enumerate(zip(row.output, expected, strict=False))
        parted = next((i for i, (a, b) in pairs if a != b), None)
        if parted is not None:
            prefix = torch.tensor([[*row.request.prompt, *expected[:parted]]])
            best = model(prefix).logits[0, -1].topk(2).values
            assert float(best[0] - best[1]) < 1e-3
