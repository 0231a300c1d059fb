"""Training sequences: the target's own responses, and what the target computes on them.

Per sequence the target runs once, teacher-forced; its features and its probabilities (sparse: only
tokens above a floor) are kept in memory in 16 bits up to a limit, and recomputed beyond it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from drafters.errors import UserError
from drafters.responses import read_responses
from drafters.target import Target

PROBABILITY_FLOOR = 2e-3  # tokens below it everywhere in a sequence share the loss's rest bucket


@dataclass
class Sequence:
    """Prompt and response as one row of tokens; the response starts at ``start``."""

    tokens: Tensor
    start: int


@dataclass
class Supervision:
    """What the target says about one sequence of t tokens.

    ``features`` [t, m * d]; ``kept`` [K] sorted token ids; ``probs`` [t - start, K] the target's
    distribution of the next token after each response token, restricted to ``kept``; ``hidden``
    [t - start, d] the final hidden states that those distributions come from.
    """

    features: Tensor
    kept: Tensor
    probs: Tensor
    hidden: Tensor

    def bytes(self) -> int:
        parts = (self.features, self.kept, self.probs, self.hidden)
        return sum(x.numel() * x.element_size() for x in parts)


def load_sequences(path: str | Path, longest: int, vocab_size: int | None = None) -> list[Sequence]:
    """Sequences of at most ``longest`` tokens from the output of ``drafters.generate``."""
    sequences = []
    for row in read_responses(Path(path), vocab_size):
        tokens = row["prompt_tokens"] + row["response_tokens"]
        if len(row["response_tokens"]) > 2 and len(tokens) <= longest:
            sequences.append(Sequence(torch.tensor(tokens), len(row["prompt_tokens"])))
    if not sequences:
        raise UserError(f"{path} has no response of over 2 and at most {longest} tokens")
    return sequences


def padded(sequences: list[Sequence], beyond: int) -> Tensor:
    """Tokens [b, longest + beyond], zeros behind each sequence."""
    width = max(len(s.tokens) for s in sequences) + beyond
    tokens = torch.zeros(len(sequences), width, dtype=torch.long)
    for row, s in zip(tokens, sequences, strict=True):
        row[: len(s.tokens)] = s.tokens
    return tokens


def padded_features(told: list[Supervision]) -> Tensor:
    """Features [b, longest, m * d], zeros behind each sequence."""
    return torch.nn.utils.rnn.pad_sequence([t.features for t in told], batch_first=True)


class Supervisor:
    """Runs the target over sequences, with a bounded memory of what it said."""

    def __init__(self, target: Target, feature_layers: tuple[int, ...], cache_gb: float) -> None:
        self.target, self.feature_layers = target, feature_layers
        self.room_bytes = cache_gb * 1e9
        self.memory: dict[int, Supervision] = {}

    def __call__(self, keys: list[int], sequences: list[Sequence]) -> list[Supervision]:
        """Supervision of each sequence; ``keys`` identify them across calls."""
        missing = [(k, s) for k, s in zip(keys, sequences, strict=True) if k not in self.memory]
        fresh = dict(
            zip([k for k, _ in missing], self._compute([s for _, s in missing]), strict=True)
        )
        found = [self.memory[k] if k in self.memory else fresh[k] for k in keys]
        for key, supervision in fresh.items():
            if supervision.bytes() < self.room_bytes:
                self.memory[key] = supervision
                self.room_bytes -= supervision.bytes()
        return found

    @torch.no_grad()
    def _compute(self, sequences: list[Sequence]) -> Iterator[Supervision]:
        if not sequences:
            return
        device = self.target.norm.weight.device
        tokens = padded(sequences, 0)
        positions = torch.arange(tokens.shape[1]).expand_as(tokens)
        out = self.target(
            tokens.to(device), positions.to(device), feature_layers=self.feature_layers
        )
        assert out.features is not None
        for i, s in enumerate(sequences):
            length = len(s.tokens)
            probs = torch.softmax(self.target.lm_head(out.hidden[i, s.start : length]).float(), -1)
            frequent = (probs > PROBABILITY_FLOOR).any(0)
            frequent[s.tokens[s.start :].to(device)] = True
            kept = frequent.nonzero().squeeze(1)
            features = out.features[i, :length].to(torch.bfloat16).cpu()
            hidden = out.hidden[i, s.start : length].to(torch.bfloat16).cpu()
            yield Supervision(features, kept.cpu(), probs[:, kept].half().cpu(), hidden)
