"""What a campaign consists of: its stages, and the command of every task."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path

import torch

from drafters.campaign_live import POLICIES
from drafters.campaign_run import Task
from drafters.campaign_sizes import DRAFTERS, FOR_BEGINNING, LIVE, LOOKUP, SIZES, TRAINED, Size
from drafters.checkpoint import SHIPPED
from drafters.errors import UserError
from drafters.kernels import OPERATIONS

SHARES = {
    "invent": 0.03,
    "generate": 0.13,
    "train": 0.30,
    "traces": 0.12,
    "latency": 0.15,
    "bundle": 0.03,
    "evaluate": 0.02,
    "live": 0.15,
    "kernels": 0.07,
}
"""Stages in order, and the share of the campaign's time that each may take."""


@dataclass(frozen=True)
class Plan:
    """What was asked for."""

    out: Path
    target: str
    prompts: tuple[str, ...]
    device: str
    dtype: str
    size: str
    stages: tuple[str, ...]
    arrivals: tuple[str, ...] = ()
    total_minutes: float = 0.0
    """0: the size's own."""

    @property
    def sized(self) -> Size:
        kind = "any" if self.size == "small" else self.device.split(":")[0]
        if (self.size, kind) not in SIZES:
            raise UserError(f"--device {self.device}: a campaign runs on cpu or cuda")
        return SIZES[self.size, kind]

    def seconds(self, stage: str) -> float:
        """Time of a stage."""
        return 60 * (self.total_minutes or self.sized.minutes) * SHARES[stage]

    def common(self) -> tuple[str, ...]:
        return ("--target", self.target, "--device", self.device, "--dtype", self.dtype)

    def bundle(self, drafter: str) -> Path:
        """Folder of the traces of one drafter."""
        return self.out / "bundles" / f"{Path(self.target).name}-{drafter}"

    def source(self, drafter: str) -> str:
        """Checkpoint of a drafter: the one trained here, else one that ships for the target."""
        made = self.out / "drafters" / drafter
        shipped = f"{drafter}-{Path(self.target).name}"
        trained_here = "train" in self.stages or (made / "model.safetensors").exists()
        if drafter == LOOKUP:
            return drafter
        return shipped if not trained_here and (SHIPPED / shipped).is_dir() else str(made)


def tasks(plan: Plan) -> list[Task]:
    """The tasks of the chosen stages, in order."""
    return [task for stage in plan.stages for task in STAGES[stage](plan)]


def choose_stages(only: list[str], skip: list[str]) -> tuple[str, ...]:
    """Stages to run; UserError for an unknown name or an empty choice."""
    for name in (*only, *skip):
        if name not in SHARES:
            raise UserError(f"unknown stage {name!r}; known: {', '.join(SHARES)}")
    chosen = tuple(s for s in SHARES if (not only or s in only) and s not in skip)
    if not chosen:
        raise UserError("no stage is left to run; give other --stages or --skip less")
    return chosen


def _invent(plan: Plan) -> list[Task]:
    common = ("drafters.invent", *plan.common(), "--prompts", *plan.prompts, "--slots", "1024")
    return [
        Task(
            "invent",
            f"invent/{half}",
            (*common, "--split", half, "--count", str(count), "--out", str(_invented(plan, half))),
            plan.seconds("invent"),
        )
        for half, count in plan.sized.invented.items()
        if count
    ]


def _invented(plan: Plan, half: str) -> Path:
    return plan.out / "prompts" / f"{half}.jsonl"


def _prompts(plan: Plan, half: str) -> tuple[str, ...]:
    """The given prompts, and those that the target has made up or will have."""
    path = _invented(plan, half)
    coming = "invent" in plan.stages and plan.sized.invented[half]
    return (*plan.prompts, str(path)) if coming or path.exists() else plan.prompts


def _generate(plan: Plan) -> list[Task]:
    common = ("drafters.generate", *plan.common())
    options = {"eval": plan.sized.evaluate, "train": plan.sized.train}
    alone = plan.sized.together == 1
    seconds = {
        half: plan.seconds("generate") * (share if alone else 1.0)
        for half, share in {"eval": 0.25, "train": 0.75}.items()
    }
    return _warm(plan) + [
        Task(
            "generate",
            f"generate/{half}",
            (
                *common, "--prompts", *_prompts(plan, half), "--split", half,
                "--out", str(_responses(plan, half)), *options[half],
                "--seconds", f"{FOR_BEGINNING * seconds[half]:.0f}",
            ),
            seconds[half],
            partial=True,
        )
        for half in ("eval", "train")
    ]  # fmt: skip


def _warm(plan: Plan) -> list[Task]:
    """Compile the policies of the live runs beside work that leaves the CPU idle."""
    if "live" not in plan.stages:
        return []
    words = (*plan.sized.live, "--")
    given = words[words.index("--policies") + 1 :] if "--policies" in words else POLICIES
    policies = takewhile(lambda word: not word.startswith("--"), given)
    return [Task("generate", "compile", ("drafters.campaign_warm", *policies), 60)]


def _responses(plan: Plan, half: str) -> Path:
    return plan.out / "responses" / f"{half}.jsonl"


def _train(plan: Plan) -> list[Task]:
    """Families of a group learn from the same batches, groups side by side: the host's launches
    bound a process, so that one alone leaves half of a GPU idle."""
    seconds = plan.seconds("train")
    length = ("--minutes", f"{seconds / 60:.3f}")
    if plan.sized.steps:
        length = ("--steps", str(plan.sized.steps))
    groups = (TRAINED,) if plan.sized.together == 1 else (TRAINED[::3], TRAINED[1:3] + TRAINED[4:])
    return [
        Task(
            "train",
            f"train/{'+'.join(group)}",
            (
                "drafters.train", "--drafter", *group, "--target", plan.target,
                "--device", plan.device, "--responses", str(_responses(plan, "train")), *length,
                *plan.sized.training, "--save-minutes", "1", "--out", str(plan.out / "drafters"),
            ),
            seconds,
        )
        for group in groups
    ]  # fmt: skip


def _shards(plan: Plan, name: str, limit: int) -> tuple[str, ...]:
    return (
        "--target", plan.target, "--device", plan.device,
        "--responses", str(_responses(plan, "eval")), "--limit", str(limit),
        "--shards", str(plan.out / "shards" / name),
    )  # fmt: skip


def _traces(plan: Plan) -> list[Task]:
    """Several processes a drafter where one alone cannot keep the device busy."""
    parts = plan.sized.parts
    count = parts * len(DRAFTERS)
    seconds = plan.seconds("traces") * min(plan.sized.together, count) / count
    return [
        Task(
            "traces",
            f"traces/{name}-{part}" if parts > 1 else f"traces/{name}",
            (
                "drafters.campaign_traces", "anchors", *_shards(plan, name, plan.sized.responses),
                "--drafter", plan.source(name), "--dtype", plan.dtype,
                "--seconds", f"{seconds:.0f}", "--part", f"{part}/{parts}",
            ),
            seconds,
        )
        for part in range(1, parts + 1)
        for name in DRAFTERS
    ]  # fmt: skip


def _latency(plan: Plan) -> list[Task]:
    """The target with its drafters, then each architecture with random weights."""
    each = plan.seconds("latency") / (1 + len(plan.sized.shapes))
    common = ("drafters.campaign_latency", "--device", plan.device, "--dtype", plan.dtype)
    common += ("--grid", plan.sized.grid, "--seconds", f"{each:.0f}")
    tables = plan.out / "steps"
    named = [f"{name}={plan.source(name)}" for name in DRAFTERS]
    own = ("--target", plan.target, "--tables", str(tables), "--drafters", *named)
    made = [Task("latency", "latency/target", (*common, *own), each, alone=True)]
    for shape in plan.sized.shapes:
        pairs = [f"{shape}-{text}={text}" for text in plan.sized.shaped]
        rest = ("--shape", shape, "--tables", str(tables), "--out", str(plan.out / "bundles"))
        command = (*common, *rest, "--drafters", *pairs)
        made.append(Task("latency", f"latency/{shape}", command, each, alone=True))
    return made


def _bundle(plan: Plan) -> list[Task]:
    limits = {name: 0 if name == LIVE else plan.sized.bundled for name in DRAFTERS}
    return [
        Task(
            "bundle",
            f"bundle/{name}",
            (
                "drafters.campaign_traces", "bundle", *_shards(plan, name, limits[name]),
                "--drafter-name", name, "--steps", str(plan.out / "steps" / f"{name}.parquet"),
                "--out", str(plan.bundle(name)),
                "--confidences", "float16" if name == LIVE else "uint8",
            ),
            plan.seconds("bundle") / len(DRAFTERS),
        )
        for name in DRAFTERS
    ]  # fmt: skip


def _evaluate(plan: Plan) -> list[Task]:
    missing = "" if find_spec("plotly") else "plotly is not installed; evaluate the bundles later"
    command = ("drafters.evaluate", f"{plan.bundle('')}*", "--out", str(plan.out / "evaluation"))
    return [Task("evaluate", "evaluate", command, plan.seconds("evaluate"), not_here=missing)]


def _live(plan: Plan) -> list[Task]:
    seconds = plan.seconds("live")
    arrivals = ("--arrivals", *plan.arrivals) if plan.arrivals else ()
    command = (
        "drafters.campaign_live", *plan.common(), "--prompts", *plan.prompts,
        "--drafter", plan.source(LIVE), "--bundle", str(plan.bundle(LIVE)),
        "--out", str(plan.out / "live"), "--seconds", f"{seconds:.0f}",
        "--seconds-per-run", f"{max(10.0, seconds / 12):.0f}", *plan.sized.live, *arrivals,
    )  # fmt: skip
    return [Task("live", "live", command, seconds, alone=True)]


def _kernels(plan: Plan) -> list[Task]:
    missing = "" if plan.device.startswith("cuda") else "kernels are timed on CUDA only"
    if not missing and not torch.cuda.is_available():
        missing = f"torch {torch.__version__} sees no CUDA device"
    seconds = plan.seconds("kernels") / len(OPERATIONS)
    out = ("--out", str(plan.out / "kernels.csv"))
    return [
        Task(
            "kernels", f"kernels/{name}", ("drafters.kernels.bench", name, *out), seconds,
            alone=True, not_here=missing,
        )
        for name in OPERATIONS
    ]  # fmt: skip


STAGES = {
    "invent": _invent,
    "generate": _generate,
    "train": _train,
    "traces": _traces,
    "latency": _latency,
    "bundle": _bundle,
    "evaluate": _evaluate,
    "live": _live,
    "kernels": _kernels,
}
