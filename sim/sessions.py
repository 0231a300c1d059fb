"""Agentic traffic: users who run one long conversation after another, in a closed loop.

A user's next request follows the end of the last one by a think time, so load adapts to the
server. Within a conversation each prompt repeats the previous one (its whole blocks are in a
prefix cache) and adds new tokens; now and then the context is rebuilt ("reset": compaction, another
file set) and only the system prompt still matches. Two kinds of conversation: fresh ones that
start small and grow, and resumed ones that start large and end soon. Figures: ``data/scenarios``.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from sim.arrivals import Floats, generator
from sim.lengths import QuantileCurve, Tokens

CACHE_BLOCK_TOKENS = 64
NOMINAL_MODEL_TIME_S = 6.1
"""Median time of a model call in the source; only used to sort requests of different users."""
LARGEST_CONTEXT_TOKENS = 1_000_000
STAGGER_S = 60.0
"""Users begin at even random times in this span."""


@dataclass(frozen=True)
class ConversationKind:
    """How conversations of one kind begin and how many requests they have."""

    share: float
    first_prompt: QuantileCurve
    turns: QuantileCurve


@dataclass(frozen=True)
class Resets:
    """Rebuilt contexts: by context size, how often and to which multiple of the old prompt."""

    from_context_tokens: tuple[int, ...]
    probability: tuple[tuple[float, ...], ...]
    """Per request, for each kind of conversation and size."""
    size_ratio: tuple[QuantileCurve, ...]
    kept_tokens: QuantileCurve


@dataclass(frozen=True)
class Requests:
    """Requests of all users by nominal time; ``conversation`` numbers them across users."""

    arrival_s: Floats
    think_s: Floats
    prompt_tokens: Tokens
    prefix_tokens: Tokens
    user: npt.NDArray[np.int64]
    conversation: npt.NDArray[np.int64]


@dataclass(frozen=True)
class AgentSessions:
    """The conversation model; ``draw`` makes requests."""

    kinds: tuple[ConversationKind, ...]
    new_tokens: QuantileCurve
    resets: Resets
    think_s: QuantileCurve

    def draw(self, requests: int, users: int, seed: np.random.SeedSequence) -> Requests:
        """The first ``requests`` requests of ``users`` concurrent users, by nominal time.

        Raises ValueError for fewer than one user.
        """
        if users < 1:
            raise ValueError(f"users={users}; a closed loop needs at least 1")
        mean_turns = sum(kind.share * kind.turns.mean for kind in self.kinds)
        rounds = int(1.5 * requests / users / mean_turns) + 2
        while (drawn := self._rounds(rounds, users, requests, seed)) is None:
            rounds *= 2
        return drawn

    def _rounds(
        self, rounds: int, users: int, requests: int, seed: np.random.SeedSequence
    ) -> Requests | None:
        """``rounds`` conversations per user; None when some user runs dry too early.

        Flat arrays hold conversation after conversation; conversation i belongs to user i modulo
        ``users``, so that more rounds only append.
        """
        kind, first, turns = self._openings(rounds * users, seed)
        conversation = np.repeat(np.arange(turns.size), turns)
        user = conversation % users
        think_s = self.think_s.at(generator(seed, 3).random(conversation.size))
        by_user = np.argsort(user, kind="stable")
        clock_s, complete_s = _clocks(user[by_user], think_s[by_user], generator(seed, 4))
        if np.count_nonzero(clock_s < complete_s) < requests:
            return None
        rows = np.argsort(clock_s, kind="stable")[:requests]
        prompts, prefixes = self._contexts(kind, first, turns, seed)
        chosen = by_user[rows]
        return Requests(
            arrival_s=clock_s[rows],
            think_s=think_s[chosen],
            prompt_tokens=prompts[chosen],
            prefix_tokens=prefixes[chosen],
            user=user[chosen],
            conversation=conversation[chosen],
        )

    def _openings(
        self, count: int, seed: np.random.SeedSequence
    ) -> tuple[npt.NDArray[np.intp], Tokens, Tokens]:
        """Kind, first prompt and number of requests of each conversation."""
        which, first_u, turns_u = (generator(seed, i).random(count) for i in range(3))
        bounds = np.cumsum([kind.share for kind in self.kinds])
        kind = np.minimum(np.searchsorted(bounds, which, side="right"), len(self.kinds) - 1)
        first, turns = np.empty(count, np.int32), np.empty(count, np.int32)
        for i, k in enumerate(self.kinds):
            of_kind = kind == i
            first[of_kind] = k.first_prompt.tokens(first_u[of_kind])
            turns[of_kind] = k.turns.tokens(turns_u[of_kind])
        return kind, first, turns

    def _contexts(
        self,
        kind: npt.NDArray[np.intp],
        first: Tokens,
        turns: Tokens,
        seed: np.random.SeedSequence,
    ) -> tuple[Tokens, Tokens]:
        """Prompt and reusable prefix of every request, one turn of all conversations at a time."""
        new_u, reset_u, size_u = (generator(seed, i).random(turns.sum()) for i in (5, 6, 7))
        new, kept = self.new_tokens.tokens(new_u), self.resets.kept_tokens.tokens(new_u)
        probability = np.array(self.resets.probability)
        start = np.cumsum(turns) - turns
        prompts, prefixes = np.zeros(new.size, np.int32), np.zeros(new.size, np.int32)
        prompts[start] = first
        for turn in range(1, int(turns.max())):
            going_on = np.flatnonzero(turns > turn)
            rows = start[going_on] + turn
            before = prompts[rows - 1]
            prefixes[rows] = before // CACHE_BLOCK_TOKENS * CACHE_BLOCK_TOKENS
            prompts[rows] = prefixes[rows] + new[rows]
            size = np.searchsorted(self.resets.from_context_tokens, before, side="right") - 1
            reset = np.flatnonzero(reset_u[rows] < probability[kind[going_on], size])
            for i in np.unique(size[reset]):
                at = reset[size[reset] == i]
                ratio = self.resets.size_ratio[i].at(size_u[rows[at]])
                prompts[rows[at]] = np.maximum(before[at] * ratio, 1)
                prefixes[rows[at]] = np.minimum(kept[rows[at]], prompts[rows[at]])
            prompts[rows] = np.minimum(prompts[rows], LARGEST_CONTEXT_TOKENS)
        return prompts, np.minimum(prefixes, prompts)


def _clocks(
    user: npt.NDArray[np.int64], think_s: Floats, rng: np.random.Generator
) -> tuple[Floats, float]:
    """Nominal time of each request (sorted by user), and the time at which the first user ends."""
    bounds = np.append(np.flatnonzero(np.diff(user, prepend=-1)), user.size)
    clock_s = think_s + NOMINAL_MODEL_TIME_S
    clock_s[bounds[:-1]] = rng.uniform(0, STAGGER_S, bounds.size - 1)
    for first, end in pairwise(bounds):  # user by user, so that more rounds change no digit
        np.cumsum(clock_s[first:end], out=clock_s[first:end])
    return clock_s, float(clock_s[bounds[1:] - 1].min())
