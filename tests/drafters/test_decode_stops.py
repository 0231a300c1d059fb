"""What a run leaves that is stopped, or whose step fails: all that was measured until then."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from threading import Timer

import pytest
import torch

from drafters import decode
from drafters.decode import Stop, main, serve
from drafters.engine import Engine, EngineConfig
from drafters.request import Request
from drafters.target import load_target
from gpu_traces.bundle import read_bundle
from policies.registry import create
from tests.drafters.live import GAMMA, arguments, cost_table


def test_a_signal_stops_after_the_step_and_the_log_is_kept(home: Path) -> None:
    target = load_target(str(home / "target"))
    config = EngineConfig(max_requests=2, max_context=64)
    engine = Engine(target, None, create("none", GAMMA), cost_table(), config)
    for i in range(4):
        engine.submit(Request(request_id=i, name=str(i), prompt=(1, 2, 3), max_new=40))
    stop, steps = Stop(), 0
    step = engine.step

    def interrupted() -> None:
        nonlocal steps
        steps += 1
        if steps == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        step()

    engine.step = interrupted  # type: ignore[method-assign]
    before = signal.getsignal(signal.SIGTERM)
    with stop.on_signals():
        serve(engine, stop)
    assert stop.asked
    assert len(engine.log) == steps == 5
    assert len(engine.everyone()) == 4
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_wait_for_an_arrival(home: Path, number: int) -> None:
    target = load_target(str(home / "target"))
    engine = Engine(target, None, create("none", GAMMA), cost_table(), EngineConfig())
    late = Request(request_id=0, name="0", prompt=(1, 2, 3), max_new=4, arrival_s=20.0)
    engine.submit(late)
    stop = Stop()
    with stop.on_signals():
        engine.start()
        Timer(0.2, os.kill, (os.getpid(), number)).start()
        serve(engine, stop)
    assert stop.asked
    assert engine.now_s() < 10.0


def test_signals_do_not_stop_the_writing(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three interrupts one ends the decoding; the others come while results are written."""
    step, out, before = Engine.step, tmp_path / "run", signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    written = decode.write

    def interrupted(engine: Engine) -> None:
        if len(engine.log) == 4:
            signal.raise_signal(signal.SIGINT)
        step(engine)

    def slowly(*given: object) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        written(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(Engine, "step", interrupted)
    monkeypatch.setattr(decode, "write", slowly)
    try:
        assert main(arguments(home, out)) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(read_bundle(out).live_steps) == 5  # type: ignore[arg-type]


def test_a_second_interrupt_keeps_what_was_measured(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Raised in this thread, each is handled before the next; of two that wait, one is lost. Tests
    that run in the background of a shell are started with Ctrl-C ignored."""
    step, out, before = Engine.step, tmp_path / "run", signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupted(engine: Engine) -> None:
        if len(engine.log) == 4:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        step(engine)

    monkeypatch.setattr(Engine, "step", interrupted)
    try:
        assert main(arguments(home, out)) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    steps = read_bundle(out).live_steps
    assert steps is not None
    assert len(steps) == 4


OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(
    ("error", "raised"), [(OUT_OF_MEMORY, None), (ZeroDivisionError("bug"), ZeroDivisionError)]
)
def test_a_step_that_fails_keeps_what_was_measured(
    home: Path,
    tmp_path: Path,
    capsys,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    raised: type[Exception] | None,
) -> None:
    """Memory that runs out is one line; a bug keeps its traceback."""
    step, out = Engine.step, tmp_path / "run"

    def failing(engine: Engine) -> None:
        if len(engine.log) == 4:
            raise error
        step(engine)

    monkeypatch.setattr(Engine, "step", failing)
    if raised:
        with pytest.raises(raised, match="bug"):
            main(arguments(home, out))
    else:
        assert main(arguments(home, out)) == 2
        assert (
            "error: 3 requests of up to 64 tokens do not fit into memory" in capsys.readouterr().err
        )
    steps = read_bundle(out).live_steps
    assert steps is not None
    assert len(steps) == 4
