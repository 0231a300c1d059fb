"""How much a campaign records: small to rehearse, full on a CPU, full on a GPU."""

from __future__ import annotations

from dataclasses import dataclass

TRAINED = ("dspark", "dspark-rnn", "dflash", "eagle3", "mtp")
LOOKUP = "ngram"
FOR_BEGINNING = 0.8  # share of the generation's time in which responses are begun
LIVE = "dspark"
DRAFTERS = (*TRAINED, LOOKUP)
SHAPED = ("dspark-5L", "dflash-5L", "eagle3-1L", "mtp-1L")


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much of everything is recorded."""

    minutes: float
    """Of the whole campaign."""
    invented: dict[str, int]
    """Prompts that the target makes up for each half, to go with the given ones."""
    train: tuple[str, ...]
    """Options of ``drafters.generate`` for the training half."""
    evaluate: tuple[str, ...]
    """The same for the evaluation half, which traces are recorded on."""
    training: tuple[str, ...]
    """Options of ``drafters.train`` beside family and time."""
    steps: int
    """Training steps instead of minutes; 0: minutes."""
    responses: int
    """Responses that traces are recorded on, both temperatures together; 0: all."""
    bundled: int
    """The most that a bundle holds, except the one of ``LIVE``, which holds all; 0: all. One
    response of 210 tokens takes 4.2 kB there and 3.1 kB elsewhere, and bundles are shipped."""
    grid: str
    shapes: tuple[str, ...]
    """Architectures with random weights."""
    shaped: tuple[str, ...]
    live: tuple[str, ...]
    """Options of ``drafters.campaign_live``."""
    together: int
    """Recording processes at once."""
    parts: int = 1
    """Processes that share the responses of one drafter."""


SIZES = {
    ("small", "any"): Size(
        minutes=30,
        invented={"eval": 2, "train": 2},
        train=("--limit", "10", "--samples", "1", "--max-new", "24", "--slots", "16"),
        evaluate=("--limit", "10", "--samples", "1", "--max-new", "24", "--slots", "16"),
        training=("--batch", "2", "--anchors", "8", "--log-every", "5"),
        steps=20,
        responses=0,
        bundled=0,
        grid="tiny",
        shapes=("tiny",),
        shaped=("dspark-2L", "eagle3-1L"),
        live=(
            "--policies", "none", "fixed-k", "vllm", "--concurrency", "1", "2",
            "--least", "2", "--arrival-count", "3", "--max-new", "12",
        ),
        together=1,
    ),
    ("full", "cpu"): Size(
        minutes=120,
        invented={"eval": 0, "train": 1000},
        train=("--samples", "2", "--slots", "128", "--tokens", "600000"),
        evaluate=("--samples", "1", "--slots", "128", "--max-new", "192"),
        training=("--batch", "2", "--lr", "1e-3"),
        steps=0,
        responses=0,
        bundled=0,
        grid="cpu",
        shapes=(),
        shaped=(),
        live=(
            "--policies", "none", "fixed-k", "confidence", "vllm", "goodput",
            "--concurrency", "1", "8", "32", "128", "256", "--least", "4", "--arrival-count", "60",
        ),
        together=1,
    ),
    ("full", "cuda"): Size(
        minutes=25,
        invented={"eval": 1000, "train": 4000},
        train=("--samples", "4", "--slots", "2048", "--tokens", "6500000"),
        evaluate=("--samples", "1", "--slots", "1024", "--max-new", "256"),
        training=("--batch", "16", "--lr", "1.5e-3"),
        steps=0,
        responses=0,
        bundled=1000,
        grid="cuda",
        shapes=("qwen3-4b", "qwen3-8b", "qwen3-14b"),
        shaped=SHAPED,
        live=(
            "--policies", "none", "fixed-k", "confidence", "vllm", "goodput",
            "--concurrency", "1", "8", "32", "128", "256", "--least", "4", "--arrival-count", "150",
        ),
        together=6,
    ),
}  # fmt: skip
