"""Importers on small files in each public format: what is read, and what is refused in words.

Tests at the end read the public files themselves and skip where they are absent.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sim.importers import load
from sim.request_table import write_parquet
from sim.traffic_stats import arrival_stats, length_stats

SHARED = Path(__file__).parents[3] / "shared" / "traffic" / "raw"
AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:51.2224670,879,55
"""
AZURE_2024 = """TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.009930+00:00,2162,5
2024-05-10 00:00:01+00:00,2399,6
"""
BURSTGPT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,0,1087,Conversation log
118,GPT-4,417,276,693,API log
"""
PLAIN = """arrival_s,prompt_tokens,output_tokens,session_id,domain,slo_class
0.5,10,3,a,chat,interactive
1.5,20,4,b,code,batch
2.5,30,5,a,chat,interactive
"""


def write(tmp_path: Path, name: str, text: str) -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def mooncake_lines(stamps_ms, hash_ids) -> str:
    rows = zip(stamps_ms, hash_ids, strict=True)
    return "\n".join(
        json.dumps(
            {"timestamp": t, "input_length": 1500, "output_length": 20, "hash_ids": list(ids)}
        )
        for t, ids in rows
    )


def test_azure_2023_counts_from_its_first_request(tmp_path):
    table = load(write(tmp_path, "conv.csv", AZURE))
    assert table.arrival_s == pytest.approx([0.0, 4.314579, 4.541877])
    assert table.prompt_tokens.tolist() == [374, 396, 879]
    assert table.output_tokens.tolist() == [44, 109, 55]
    assert table.origin.kind == "published"
    assert "Splitwise" in table.origin.detail
    assert table.prefix_tokens is None


def test_columns_that_record_nothing_count_as_absent(tmp_path):
    """The shared schema leaves a column empty where its source has nothing."""
    head = "arrival_s,prompt_tokens,output_tokens,prefix_tokens,session_id,think_s,domain,slo_class"
    table = load(write(tmp_path, "t.csv", f"{head}\n0,10,3,,,,,\n1,20,4,,,,,\n"))
    assert table.prefix_tokens is table.session is table.think_s is table.domain is None
    assert table.slo_class is None
    with pytest.raises(ValueError, match="prefix_tokens is 'nan' in row 1"):
        load(write(tmp_path, "t.csv", f"{head}\n0,10,3,5,,,,\n1,20,4,,,,,\n"))


def test_part_of_a_token_is_refused(tmp_path):
    text = "arrival_s,prompt_tokens,output_tokens\n0,10,3\n1,20.5,4\n"
    with pytest.raises(ValueError, match="prompt_tokens is 20.5 in row 1; it must be a whole"):
        load(write(tmp_path, "t.csv", text))


def test_azure_2024_stamps_with_and_without_a_fraction(tmp_path):
    table = load(write(tmp_path, "code.csv", AZURE_2024))
    assert table.arrival_s == pytest.approx([0.0, 0.99007])
    assert "DynamoLLM" in table.origin.detail


def test_burstgpt_leaves_failures_out_and_says_so(tmp_path):
    table = load(write(tmp_path, "b.csv", BURSTGPT))
    assert table.arrival_s.tolist() == [5.0, 118.0]
    assert [table.clients[c] for c in table.client] == ["ChatGPT", "GPT-4"]
    assert table.notes == ("1 failed requests left out",)


def test_mooncake_prefix_is_the_leading_run_of_blocks_seen_before(tmp_path):
    lines = mooncake_lines([0, 1000, 2000, 3000], [[1, 2, 3], [1, 2, 4], [9, 2, 4], [1, 2, 3]])
    table = load(write(tmp_path, "m.jsonl", lines))
    assert table.arrival_s.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert table.prefix_tokens.tolist() == [0, 1024, 0, 1500]


def test_mooncake_ties_are_spread_over_the_grid_by_seed(tmp_path):
    path = write(tmp_path, "m.jsonl", mooncake_lines([0] * 50 + [3000] * 50, [[1]] * 100))
    table, again, other = load(path), load(path), load(path, seed=1)
    assert np.array_equal(table.arrival_s, again.arrival_s)
    assert not np.array_equal(table.arrival_s, other.arrival_s)
    assert np.unique(table.arrival_s).size == 100
    assert np.all(table.arrival_s[:50] < 3.0)
    assert np.all((table.arrival_s[50:] >= 3.0) & (table.arrival_s[50:] < 6.0))
    assert table.notes == ("ties spread over 3 s (seed 0)",)


def test_plain_csv_keeps_what_it_has(tmp_path):
    table = load(write(tmp_path, "p.csv", PLAIN), origin="our gateway, May")
    assert table.session.tolist() == [0, 1, 0]
    assert [table.domains[c] for c in table.domain] == ["chat", "code", "chat"]
    assert table.slo_class.tolist() == [0, 1, 0]
    assert table.think_s is None
    assert str(table.origin) == "measured (our gateway, May)"


def test_parquet_comes_back_as_it_was_written(tmp_path):
    table = load(write(tmp_path, "p.csv", PLAIN)).take(slice(None), "a note")
    write_parquet(table, tmp_path / "p.parquet")
    again = load(tmp_path / "p.parquet")
    assert again.notes == ("a note",)
    assert (again.source, again.origin) == (table.source, table.origin)
    for name in ("arrival_s", "prompt_tokens", "output_tokens", "session", "domain", "slo_class"):
        assert np.array_equal(getattr(again, name), getattr(table, name)), name
    assert not list(tmp_path.glob("*.part"))


def test_parquet_without_an_origin_is_refused_until_one_is_stated(tmp_path):
    path = tmp_path / "bare.parquet"
    columns = {"arrival_s": [0.0, 1.0], "prompt_tokens": [1, 2], "output_tokens": [3, 4]}
    pd.DataFrame(columns).to_parquet(path)
    with pytest.raises(ValueError, match="no origin in the file metadata; state it with --origin"):
        load(path)
    assert load(path, origin="a colleague").origin.detail == "a colleague"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "TIMESTAMP,GeneratedTokens\n", "a.csv: missing columns ContextTokens; needed"),
        ("a.csv", AZURE.replace("396", "x"), "ContextTokens is 'x' in row 1; it must be a number"),
        ("a.csv", AZURE.replace("396,109", "396,0"), "GeneratedTokens is 0 in row 1"),
        ("a.csv", AZURE.replace("18:15:50", "18:99:50"), "TIMESTAMP is .* in row 1; expected ISO"),
        ("a.csv", AZURE.replace("18:15:51", "18:15:47"), "in row 2 comes before the row above"),
        ("a.csv", AZURE.split("2023")[0], "no arrivals"),
        ("b.csv", BURSTGPT.replace("Model", "M"), "b.csv: missing columns Model"),
        ("p.csv", PLAIN.replace("arrival_s", "time"), "missing columns arrival_s"),
        ("p.csv", PLAIN.replace("1.5", "-1.5"), "arrival -1.5 s in row 1 is negative"),
        ("p.csv", PLAIN.replace("1.5", "nan"), "arrival_s is 'nan' in row 1"),
        ("p.csv", PLAIN.replace("1.5,20", "1.5,-20"), "prompt_tokens is -20 in row 1"),
        ("p.csv", PLAIN.replace("batch", "bulk"), "unknown slo_class bulk; known: interactive"),
        ("p.csv", PLAIN.replace("code", ""), "domain is empty in row 1"),
        ("p.csv", "", "p.csv: not a readable CSV file"),
        ("m.jsonl", "{}", "row 0 has no number for timestamp, input_length, output_length"),
        ("m.jsonl", "[1", "row 0 is not a JSON object"),
        ("m.jsonl", "", "no arrivals"),
        ("m.jsonl", mooncake_lines([5, 0], [[1], [1]]), "in row 1 comes before"),
        ("x.parquet", "not parquet", "not a readable Parquet file"),
    ],
)
def test_bad_files_are_refused_by_name_column_and_row(tmp_path, name, text, said):
    with pytest.raises(ValueError, match=said) as caught:
        load(write(tmp_path, name, text))
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.csv: no such file"):
        load(tmp_path / "nowhere.csv")


def servegen_pool(tmp_path: Path, shape: float = 0.25, rate: float = 5.0) -> Path:
    """Two clients over four windows; the second is idle in the first two."""
    rows = [f"{600 * w},{rate},{shape**-0.5},Gamma,{shape},{1 / (rate * shape)}" for w in range(4)]
    idle = [f"{600 * w},0,0,,0,0" for w in range(2)]
    weibull = [f"{600 * w},2.0,1.0,Weibull,1.0,0.5" for w in (2, 3)]
    write(tmp_path, "chunk-3-trace.csv", "\n".join(rows))
    write(tmp_path, "chunk-7-trace.csv", "\n".join(idle + weibull))
    lengths = {"input_tokens": "{100: 0.5, 300: 0.5}", "output_tokens": "{10: 0.9, 1000: 0.1}"}
    empty = {"input_tokens": "{}", "output_tokens": "{}"}
    for client in (3, 7):
        windows = {"0": lengths, "1200": empty if client == 3 else lengths}
        write(tmp_path, f"chunk-{client}-dataset.json", json.dumps(windows))
    return tmp_path


def test_servegen_pool_gives_each_client_its_rate_and_lengths(tmp_path):
    table = load(servegen_pool(tmp_path))
    assert table.clients == ("3", "7")
    counts = np.bincount(table.client)
    assert counts[0] == pytest.approx(5.0 * 2400, rel=0.1)
    assert counts[1] == pytest.approx(2.0 * 1200, rel=0.1)
    assert table.arrival_s[table.client == 1].min() >= 1200
    gaps = np.diff(table.arrival_s[table.client == 0])
    assert gaps.std() / gaps.mean() == pytest.approx(2.0, rel=0.1)
    assert set(np.unique(table.prompt_tokens)) == {100, 300}
    assert np.mean(table.output_tokens == 1000) == pytest.approx(0.1, abs=0.02)
    assert abs(length_stats(table)["rank_correlation"]) < 4.5 / np.sqrt(table.requests)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("chunk-3-trace.csv", "0,1,1\n", "3 columns, expected 6"),
        ("chunk-3-trace.csv", "0,1,1,Pareto,1,1\n", "row 0 is no Gamma or Weibull law"),
        ("chunk-3-dataset.json", '{"0": {"input_tokens": "{1: 1}"}}', "not a ServeGen dataset"),
        ("chunk-3-dataset.json", "oops", "not a ServeGen dataset"),
    ],
)
def test_bad_servegen_files_are_named(tmp_path, name, text, said):
    pool = servegen_pool(tmp_path)
    write(tmp_path, name, text)
    with pytest.raises(ValueError, match=said) as caught:
        load(pool)
    assert name in str(caught.value)


def test_servegen_folder_without_clients_or_too_large_is_refused(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="no chunk-"):
        load(empty)
    with pytest.raises(ValueError, match="at most 20,000,000 are drawn"):
        load(servegen_pool(tmp_path, rate=1e5))


@pytest.mark.skipif(not SHARED.exists(), reason="the public traces are not here")
@pytest.mark.parametrize(
    ("name", "requests", "gap_cv", "iod_10s", "prompt_mean", "output_mean"),
    [
        ("AzureLLMInferenceTrace_conv.csv", 19_366, 1.09, 3.86, 1155, 211),
        ("AzureLLMInferenceTrace_code.csv", 8_819, 13.2, 71.6, 2048, 28),
        ("mooncake_conversation_trace.jsonl", 12_031, 1.01, None, 12_035, 343),
    ],
)
def test_public_files_give_their_known_figures(
    name, requests, gap_cv, iod_10s, prompt_mean, output_mean
):
    table = load(SHARED / name)
    arrivals, lengths = arrival_stats(table.arrival_s), length_stats(table)
    assert table.requests == requests
    assert arrivals["gap_cv"] == pytest.approx(gap_cv, rel=0.01)
    assert iod_10s is None or arrivals["10s_iod"] == pytest.approx(iod_10s, rel=0.01)
    assert lengths["prompt_mean"] == pytest.approx(prompt_mean, rel=0.001)
    assert lengths["output_mean"] == pytest.approx(output_mean, rel=0.01)


@pytest.mark.skipif(not SHARED.exists(), reason="the public traces are not here")
def test_mooncake_file_saves_what_is_known_of_an_unlimited_cache():
    stats = length_stats(load(SHARED / "mooncake_conversation_trace.jsonl"))
    assert stats["prefix_share"] == pytest.approx(0.37, abs=0.005)
    assert stats["to_prefill_p50"] == pytest.approx(2470, rel=0.01)
    assert stats["to_prefill_p99"] == pytest.approx(71_888, rel=0.01)
