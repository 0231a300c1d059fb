"""What engines already log, read into rounds, latency samples and marginals.

Production counters are censored, each in its own way, and no import can undo that. So every result
says how (``Rounds.censoring``):

- SGLang ``DecodeStepRecord`` (key ``dspark_info_record`` of /server_info): mode ``cap-accept``
  verifies whole blocks, so correct_drafts + cap_trim is the block's accepted length: uncensored.
  Modes ``compact`` and ``static`` saw verify_len - 1 draft tokens and nothing behind them.
- vLLM ``per_step_accepted`` / ``per_step_drafted`` (detailed request metrics): under adaptive
  verification the scheduler counts trimmed tokens as drafted, so they look rejected, and every rate
  is a lower bound.
- Benchmark summaries hold averages only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

NONE = "none: whole blocks were verified"
TRIMMED = "right: nothing is known beyond the verified length"
MISCOUNTED = "trimmed tokens are counted as rejected: every rate is a lower bound"


@dataclass(frozen=True)
class Rounds:
    """Verification rounds of real requests."""

    table: pd.DataFrame
    """One row per round: request, round, verified, accepted (draft tokens, bonus not counted)."""
    censoring: str
    """NONE, TRIMMED or MISCOUNTED."""
    steps: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Latency samples as in a bundle's ``steps`` table, where the engine timed its steps."""

    def marginals(self) -> pd.DataFrame:
        """Per position from 1: rounds that reached it, accepted there, conditional, survival.

        A round counts for position k when k tokens were verified and the k - 1 before were
        accepted. Survival is the product of the conditionals. Under TRIMMED, a scheduler that trims
        what it doubts leaves the better tokens in the sample: deep positions read too high.
        """
        verified, accepted = self.table["verified"], self.table["accepted"]
        positions = np.arange(1, int(verified.max()) + 1) if len(verified) else np.arange(0)
        reached = np.array([((verified >= k) & (accepted >= k - 1)).sum() for k in positions])
        passed = np.array([(accepted >= k).sum() for k in positions])
        conditional = passed / np.where(reached > 0, reached, np.nan)
        return pd.DataFrame(
            {
                "position": positions,
                "reached": reached,
                "accepted": passed,
                "conditional": conditional,
                "survival": np.cumprod(conditional),
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """One run of ``vllm bench serve`` or SGLang's ``bench_serving``."""

    engine: str
    model: str
    request_rate: float
    """Requests per second; inf: all at once."""
    max_concurrency: int | None
    duration_s: float
    completed: int
    input_tokens: int
    output_tokens: int
    output_tok_s: float
    accepted_length: float | None
    """Tokens per round, bonus included, as the server averaged it."""
    survival: tuple[float, ...]
    """Prefix accepted by position, per draft issued; empty where the engine doesn't say."""
    milliseconds: dict[str, float]
    """``mean_ttft_ms``, ``p99_itl_ms``, ... as printed."""
    requests: pd.DataFrame
    """Per request: input_tokens, output_tokens, ttft_s, itl_s (list); empty without details."""


def read_json(path: Path | str) -> Any:
    """A JSON document; ValueError names the file and what is wrong."""
    try:
        return json.loads(Path(path).read_text())
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None


def read_jsonl(path: Path | str) -> Iterator[tuple[int, Any]]:
    """(line number from 1, document) of each non-empty line; ValueError names a malformed line."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text (byte {error.start})") from None
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except json.JSONDecodeError as error:
            where = f"{path}, line {number}: not JSON"
            raise ValueError(f"{where} ({error.msg} at column {error.colno})") from None


def _need(record: Any, key: str, where: str) -> Any:
    if not isinstance(record, dict) or record.get(key) is None:
        raise ValueError(f"{where}: field {key!r} is missing")
    return record[key]


def read_sglang_records(path: Path | str) -> Rounds:
    """A /server_info dump (or its list of DecodeStepRecords) as rounds and latency samples.

    Needs SGLANG_DSPARK_DEBUG_DUMP with ``core`` and ``reqs``; timings are taken where present.
    """
    document = read_json(path)
    records = (
        document if isinstance(document, list) else _need(document, "dspark_info_record", str(path))
    )
    rounds: list[tuple[Any, ...]] = []
    steps: list[tuple[Any, ...]] = []
    modes = set()
    for number, record in enumerate(records):
        where = f"{path}, record {number}"
        mode = _need(record, "mode", where)
        modes.add(mode)
        details = _need(record, "reqs", where)
        rounds += [_sglang_round(record, mode, detail, where) for detail in details]
        steps += _sglang_samples(record, details)
    if len(modes & {"cap-accept"}) and len(modes) > 1:
        raise ValueError(f"{path}: mixes modes {', '.join(sorted(modes))}; import them apart")
    columns = ["request", "step", "verified", "accepted"]
    table = pd.DataFrame(rounds, columns=columns)
    table["round"] = table.groupby("request").cumcount()
    return Rounds(table, NONE if modes == {"cap-accept"} else TRIMMED, _steps_frame(steps))


def _sglang_round(record: Any, mode: str, detail: Any, where: str) -> tuple[Any, ...]:
    window = int(_need(detail, "verify_len", where)) - 1
    correct = int(_need(detail, "correct_drafts", where))
    if mode == "cap-accept":
        correct += int(detail.get("cap_trim") or 0)
        window = len(_need(detail, "draft_tokens", where))
    if not 0 <= correct <= window:
        raise ValueError(f"{where}: {correct} correct drafts of {window} verified")
    return _need(detail, "rid", where), record.get("forward_ct"), window, correct


def _sglang_samples(record: Any, details: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Steps-table rows (mode, R, T, context, draft length, graph, microseconds) of one record."""
    requests = int(record.get("bs") or len(details))
    context = [int(d["prefix_len"]) for d in details if d.get("prefix_len") is not None]
    mean = round(sum(context) / len(context)) if context else 0
    length = max((len(d.get("draft_tokens") or ()) for d in details), default=0)
    tier = record.get("verify_tokens_graph_key")
    tokens = tier or record.get("num_verify_tokens") or 0
    found = []
    if record.get("target_verify_gpu_ms") is not None:
        time = 1e3 * record["target_verify_gpu_ms"]
        found.append(("verify", requests, tokens, mean, 0, tier is not None, time))
    if record.get("draft_gpu_ms") is not None:
        time = 1e3 * record["draft_gpu_ms"]
        found.append(("draft", requests, requests * length, mean, length, True, time))
    return found


def _steps_frame(rows: list[tuple[Any, ...]]) -> pd.DataFrame:
    names = ["mode", "requests", "tokens", "context_tokens", "draft_length", "graph"]
    frame = pd.DataFrame(rows, columns=[*names, "microseconds"])
    frame["repetition"] = frame.groupby(names).cumcount()
    return frame


def read_vllm_requests(path: Path | str, adaptive: bool) -> Rounds:
    """vLLM responses with detailed speculative metrics, one JSON object per line.

    A line is a response (``metrics.speculative_decoding``) or that block alone. ``adaptive``: the
    server ran with adaptive verification, so ``per_step_drafted`` is what was scheduled, not what
    was verified.
    """
    rows = []
    for number, document in read_jsonl(path):
        where = f"{path}, line {number}"
        block = document
        if isinstance(document, dict) and "metrics" in document:
            block = _need(document["metrics"], "speculative_decoding", where)
        accepted = _need(block, "per_step_accepted", where)
        drafted = _need(block, "per_step_drafted", where)
        if len(accepted) != len(drafted):
            raise ValueError(f"{where}: {len(accepted)} accepted counts, {len(drafted)} drafted")
        name = document.get("id", str(number))
        for turn, (ok, of) in enumerate(zip(accepted, drafted, strict=True)):
            if not 0 <= ok <= of:
                raise ValueError(f"{where}: round {turn} accepted {ok} of {of} drafted")
            rows.append((name, turn, of, ok))
    table = pd.DataFrame(rows, columns=["request", "round", "verified", "accepted"])
    return Rounds(table, MISCOUNTED if adaptive else NONE)


def read_vllm_bench(path: Path | str) -> Benchmark:
    """The JSON of ``vllm bench serve --save-result``."""
    return _benchmark(
        read_json(path),
        str(path),
        engine="vllm",
        model="model_id",
        accepted="spec_decode_acceptance_length",
    )


def read_sglang_bench(path: Path | str) -> list[Benchmark]:
    """The JSONL of SGLang's ``bench_serving --output-file``, one run per line."""
    return [
        _benchmark(
            run, f"{path}, line {number}", engine="sglang", model="", accepted="accept_length"
        )
        for number, run in read_jsonl(path)
    ]


def _benchmark(run: Any, where: str, *, engine: str, model: str, accepted: str) -> Benchmark:
    length = run.get(accepted) if isinstance(run, dict) else None
    return Benchmark(
        engine=engine,
        model=str(run.get(model, "")) if isinstance(run, dict) else "",
        request_rate=float(_need(run, "request_rate", where)),
        max_concurrency=run.get("max_concurrency"),
        duration_s=float(_need(run, "duration", where)),
        completed=int(_need(run, "completed", where)),
        input_tokens=int(_need(run, "total_input_tokens", where)),
        output_tokens=int(_need(run, "total_output_tokens", where)),
        output_tok_s=float(_need(run, "output_throughput", where)),
        accepted_length=None if length is None else float(length),
        survival=tuple(run.get("spec_decode_per_position_acceptance_rates") or ()),
        milliseconds={
            key: float(v) for key, v in run.items() if key.endswith("_ms") and v is not None
        },
        requests=_per_request(run),
    )


def _per_request(run: Any) -> pd.DataFrame:
    names = {
        "input_lens": "input_tokens",
        "output_lens": "output_tokens",
        "ttfts": "ttft_s",
        "itls": "itl_s",
    }
    return pd.DataFrame({new: run[old] for old, new in names.items() if run.get(old)})


def read_speculation_profile(path: Path | str) -> tuple[float, ...]:
    """Conditional acceptance by position from NVIDIA's ``speculation_profile.json``.

    Takes ``conditional_accept_rates``, or divides ``marginal_accept_rates`` (prefix survivals).
    """
    document = read_json(path)
    if isinstance(document, dict) and document.get("conditional_accept_rates"):
        rates = np.array(document["conditional_accept_rates"], dtype=np.float64)
    else:
        survival = np.array(_need(document, "marginal_accept_rates", str(path)), dtype=np.float64)
        before = np.concatenate(([1.0], survival[:-1]))
        rates = survival / np.where(before > 0, before, 1.0)
    if not ((rates >= 0) & (rates <= 1)).all():
        raise ValueError(f"{path}: acceptance rates {rates.round(4).tolist()} must lie in 0..1")
    return tuple(map(float, rates))
