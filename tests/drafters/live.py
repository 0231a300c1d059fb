"""Tiny real models for tests of the live loop: a saved Llama or Qwen3, and drafters to match."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drafters.base import Draw, Proposal
from drafters.block import BlockDrafter
from drafters.checkpoint import save_drafter
from drafters.engine import Engine, EngineConfig
from drafters.presets import build_drafter
from drafters.request import Request
from drafters.target import Target, load_target
from policies.base import Policy
from policies.cost import CostTable

VOCAB, GAMMA, NEW = 97, 5, 24
WORDS = "zero one two three four five six seven eight nine ten plus minus is"


def save_model(folder: Path, architecture: str = "llama", **more: Any) -> torch.nn.Module:
    """Save a random transformers model of 4 layers, large weights and no stop token; returns it.
    ``more`` of its configuration."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        architecture,
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
        **more,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    model.save_pretrained(folder)
    return model


def save_tokenizer(folder: Path) -> None:
    """Save a word tokenizer with a chat template; its stop token is the last id."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(WORDS.split())}
    words |= {f"w{i}": i for i in range(len(words), VOCAB - 1)} | {"end": VOCAB - 1}
    tokenizer = Tokenizer(WordLevel(words, unk_token="zero"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="zero", eos_token="end")
    fast.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}is"
    fast.save_pretrained(folder)


def save_models(folder: Path) -> None:
    """Save a target with its tokenizer, and a drafter for it, as any user has them."""
    save_model(folder / "target")
    save_tokenizer(folder / "target")
    save_drafter(block_drafter(load_target(str(folder / "target"))), folder / "drafter")


def prompts(count: int, seed: int = 0, longest: int = 30) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(seed)
    return [tuple(rng.integers(0, VOCAB, rng.integers(1, longest)).tolist()) for _ in range(count)]


def transformers_greedy(model: torch.nn.Module, prompt: Sequence[int], new: int) -> list[int]:
    ids = torch.tensor([prompt])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False,
        pad_token_id=0,
    )  # fmt: skip
    return out[0, len(prompt) :].tolist()


def block_drafter(target: Target) -> BlockDrafter:
    args = argparse.Namespace(
        feature_layers=[0, 1, 2], layers=1, intermediate=0, gamma=GAMMA, rank=8, head="vanilla"
    )
    torch.manual_seed(1)
    drafter = build_drafter("dspark", target, args).requires_grad_(False)
    torch.nn.init.normal_(drafter.confidence_head.proj.weight, std=0.5)
    return drafter.to(target.norm.weight.device)


class Informed:
    """A drafter that knows each request's true continuation and errs now and then.

    It reads the continuation of the sequence whose tokens it holds, and replaces a token by a
    wrong one with probability ``error``, fixed by (position, seed). Confidence: what it errs with,
    jittered. So accepted lengths range over 0..gamma, which a random drafter's never do.
    """

    feature_layers: tuple[int, ...] = ()

    def __init__(self, texts: Sequence[Sequence[int]], error: float = 0.3, gamma: int = GAMMA):
        self.texts, self.error, self.gamma = [list(t) for t in texts], error, gamma

    def new_state(self, slots: int, capacity: int) -> "Memory":
        return Memory(slots)

    def extend(
        self, state: "Memory", tokens: Tensor, features: Tensor, positions: Tensor, slots: Tensor
    ) -> None:
        for slot, row, at in zip(slots.tolist(), tokens.tolist(), positions.tolist(), strict=True):
            assert at[0] <= len(state.held[slot]), "a hole in what the drafter was given"
            state.held[slot] = state.held[slot][: at[0]] + row

    def propose(
        self, state: "Memory", anchors: Tensor, positions: Tensor, gamma: int, draw: Draw
    ) -> Proposal:
        blocks, confidences = [], []
        for slot, (anchor, at) in enumerate(zip(anchors.tolist(), positions.tolist(), strict=True)):
            block, sure = self._block([*state.held[slot][:at], anchor], gamma)
            blocks.append(block)
            confidences.append(sure)
        right = torch.tensor(blocks, device=anchors.device)
        logits = 30.0 * torch.nn.functional.one_hot(right, VOCAB).float()
        tokens = torch.stack([draw(k, logits[:, k]) for k in range(gamma)], 1)
        return Proposal(tokens, logits, torch.tensor(confidences, device=anchors.device))

    def _block(self, held: list[int], gamma: int) -> tuple[list[int], list[float]]:
        text = next((t for t in self.texts if t[: len(held)] == held), held)
        truth = (text[len(held) :] + [0] * gamma)[:gamma]
        rng = np.random.default_rng([len(held), *held])
        wrong = rng.random(gamma) < self.error
        block = [(t + 1) % VOCAB if bad else t for t, bad in zip(truth, wrong, strict=True)]
        return block, rng.uniform(0.3, 0.99, gamma).tolist()


class Memory:
    """Tokens per slot."""

    def __init__(self, slots: int) -> None:
        self.held: list[list[int]] = [[] for _ in range(slots)]

    def move(self, source: int, destination: int, length: int) -> None:
        self.held[destination] = self.held[source][:length]

    def wipe(self, slot: int) -> None:
        self.held[slot] = []


def cost_table(gamma: int = GAMMA, token_s: float = 1e-3) -> CostTable:
    draft = np.outer(np.arange(gamma + 1) > 0, np.full(65, 1e-3)).astype(float)
    return CostTable(draft, 5e-3 + token_s * np.arange(400.0))


def run(
    target: Target,
    drafter: object,
    policy: Policy,
    asked: Sequence[Sequence[int]],
    *,
    temperature: float | Sequence[float] = 0.0,
    stops: frozenset[int] = frozenset(),
    **limits: Any,
) -> Engine:
    """The engine after it has served ``asked``, its rows in order."""
    config = EngineConfig(**{"max_requests": 5, "max_context": 80, **limits})
    engine = Engine(target, drafter, policy, cost_table(), config, stops)  # type: ignore[arg-type]
    heat = [temperature] * len(asked) if isinstance(temperature, float) else temperature
    for i, (prompt, t) in enumerate(zip(asked, heat, strict=True)):
        engine.submit(
            Request(
                request_id=i, name=str(i), prompt=tuple(prompt), max_new=NEW, temperature=t,
                domain=i % 3,
            )
        )  # fmt: skip
    while engine.busy:
        engine.step()
    engine.ended.sort(key=lambda row: row.request.request_id)
    return engine


def informed(asked: Sequence[Sequence[int]], outputs: Sequence[Sequence[int]]) -> Informed:
    return Informed([[*p, *o] for p, o in zip(asked, outputs, strict=True)])


def arguments(home: Path, out: Path, **changed: str) -> list[str]:
    options = {
        "policy": str(home / "policy.json"), "target": str(home / "target"),
        "drafter": str(home / "drafter"), "prompts": str(home / "prompts.jsonl"),
        "concurrency": "3", "max-new": "12", "max-context": "64", "out": str(out), **changed,
    }  # fmt: skip
    return [word for name, value in options.items() for word in (f"--{name}", value)]
