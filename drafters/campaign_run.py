"""Runs the tasks of a campaign in pieces: what is done, what is left, how long it takes.

A task is one resumable command in a process of its own. ``campaign.json`` says how far each came;
it is replaced after every change, so a campaign killed at any moment goes on with the same command.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

GRACE = 2.5  # a task is given up when it has used this many times its budget
START_UP_S = 120.0  # and what it has before its budget counts: imports, models, compilation
LOADING_S = 30.0  # the same for a task that is only stopped, never given up
STOP_S = 20.0  # from asking a command to stop to killing it
_LIBC = ctypes.CDLL(None)
_SET_DEATH_SIGNAL = 1
ENDED = ("done", "enough", "given up", "not here")


@dataclass(frozen=True)
class Task:
    """One command of a stage."""

    stage: str
    name: str
    command: tuple[str, ...]
    """Arguments of ``python -m``; one that ends in ``*`` stands for the trace bundles that it
    matches when the task starts."""
    budget_s: float
    partial: bool = False
    """Whether what it has written when its budget is spent is a result (it then ends there)."""
    alone: bool = False
    """Whether it measures time, so that nothing may run beside it."""
    not_here: str = ""
    """Why this machine cannot run it; empty: it can."""


@dataclass
class Progress:
    """How far a task came."""

    status: str = "open"
    """open, done, enough (budget spent, partial result), given up, failed, not here."""
    spent_s: float = 0.0
    note: str = ""


@dataclass
class State:
    """``campaign.json``."""

    path: Path
    tasks: dict[str, Progress] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> State:
        """The state of an earlier call, or an empty one."""
        if not path.exists():
            return cls(path)
        stored = json.loads(path.read_text())["tasks"]
        return cls(path, {name: Progress(**entry) for name, entry in stored.items()})

    def of(self, task: Task) -> Progress:
        return self.tasks.setdefault(task.name, Progress())

    def save(self) -> None:
        """Replace the file."""
        temporary = self.path.with_suffix(".tmp")
        text = json.dumps({"tasks": {n: asdict(p) for n, p in self.tasks.items()}}, indent=1)
        temporary.write_text(text + "\n")
        os.replace(temporary, self.path)


@dataclass
class Running:
    """A task whose process is alive."""

    task: Task
    process: subprocess.Popen[bytes]
    started: float
    before_s: float

    @property
    def spent_s(self) -> float:
        return self.before_s + time.monotonic() - self.started


class Campaign:
    """Tasks in order, within the seconds of this call."""

    def __init__(
        self, tasks: Sequence[Task], folder: Path, seconds: float, together: int = 1
    ) -> None:
        self.tasks, self.folder, self.together = list(tasks), folder, together
        self.deadline = time.monotonic() + seconds
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "logs").mkdir(exist_ok=True)
        self.state = State.read(folder / "campaign.json")
        for name in self.failed:
            self.state.tasks[name] = Progress()
        for task in self.tasks:
            if task.not_here:
                self.state.tasks[task.name] = Progress("not here", 0.0, task.not_here)
        self.running: list[Running] = []

    def run(self) -> bool:
        """Run until all is done or this call's time is up; True when nothing is left to do."""
        try:
            for stage in dict.fromkeys(task.stage for task in self.tasks):
                if not self._stage(stage):
                    return False
        finally:
            self._stop_all()
            self.state.save()
        return True

    def left_s(self) -> float:
        """Budget of what is not done yet, seconds."""
        return sum(
            max(0.0, task.budget_s - self.state.of(task).spent_s)
            for task in self.tasks
            if self.state.of(task).status == "open"
        )

    def _stage(self, stage: str) -> bool:
        waiting = [
            task
            for task in self.tasks
            if task.stage == stage and self.state.of(task).status == "open"
        ]
        while waiting or self.running:
            if time.monotonic() >= self.deadline:
                return False
            while waiting and self._room(waiting[0]):
                self._start(waiting.pop(0))
            for running in list(self.running):
                self._look_after(running)
            time.sleep(0.05)
        self._say(self.summary(stage))
        return True

    def _room(self, task: Task) -> bool:
        return not self.running or not task.alone and len(self.running) < self.together

    def _start(self, task: Task) -> None:
        self._say(
            f"{task.name}: about {task.budget_s:.0f} s; this call has"
            f" {(self.deadline - time.monotonic()) / 60:.1f} min, the campaign"
            f" {self.left_s() / 60:.1f} min to go"
        )
        log = self.folder / "logs" / f"{task.name.replace('/', '-')}.log"
        with log.open("ab") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", *expanded(task.command)],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=self._environment(),
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )
        before_s = self.state.of(task).spent_s
        self.running.append(Running(task, process, time.monotonic(), before_s))

    def _environment(self) -> dict[str, str]:
        """Logs keep what a killed command printed; processes side by side share the cores."""
        made = {**os.environ, "PYTHONUNBUFFERED": "1"}
        if self.together > 1:
            made.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self.together)))
        return made

    def _look_after(self, running: Running) -> None:
        task, code = running.task, running.process.poll()
        allowed_s = START_UP_S + GRACE * task.budget_s
        if task.partial:
            allowed_s = LOADING_S + task.budget_s
        if code is not None:
            self._end(running, "done" if code == 0 else "failed", self._last_line(task))
        elif running.spent_s > allowed_s:
            _stop(running.process)
            status = "enough" if task.partial else "given up"
            self._end(running, status, f"stopped after {running.spent_s:.0f} s")

    def _end(self, running: Running, status: str, note: str) -> None:
        self.state.tasks[running.task.name] = Progress(status, running.spent_s, note)
        self.state.save()
        self.running.remove(running)
        self._say(f"{running.task.name}: {status}, {running.spent_s:.0f} s. {note}")

    def _stop_all(self) -> None:
        for running in self.running:
            _stop(running.process)
            self.state.of(running.task).spent_s = running.spent_s
            self._say(f"{running.task.name}: interrupted; the same command goes on")
        self.running = []

    def _last_line(self, task: Task) -> str:
        log = self.folder / "logs" / f"{task.name.replace('/', '-')}.log"
        lines = log.read_text(errors="replace").strip().splitlines() or [""]
        return lines[-1][:300]

    def summary(self, stage: str) -> str:
        """One line: how many tasks of a stage ended how, and what they took."""
        mine = [self.state.of(task) for task in self.tasks if task.stage == stage]
        counts = {status: sum(p.status == status for p in mine) for status in (*ENDED, "failed")}
        told = ", ".join(f"{n} {status}" for status, n in counts.items() if n)
        return f"stage {stage}: {told}; {sum(p.spent_s for p in mine):.0f} s"

    @property
    def failed(self) -> list[str]:
        """Names of tasks that ended badly."""
        bad = ("failed", "given up")
        return [task.name for task in self.tasks if self.state.of(task).status in bad]

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def expanded(command: Sequence[str]) -> list[str]:
    """The arguments with each ``FOLDER/PREFIX*`` replaced by the trace bundles that it matches."""
    made: list[str] = []
    for word in command:
        if not word.endswith("*"):
            made.append(word)
            continue
        found = sorted(Path(word).parent.glob(Path(word).name))
        made += [str(path) for path in found if (path / "anchors.parquet").exists()] or [word]
    return made


def _die_with_parent() -> None:
    """Let the kernel kill this process when the campaign dies, however that happens."""
    _LIBC.prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask a command to stop, then make it."""
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
