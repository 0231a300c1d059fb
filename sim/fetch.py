"""Downloads of the public traces, for a user with internet access; nothing is shipped.

Files arrive complete, with the checked SHA-256 where it is known, or not at all.
"""

from __future__ import annotations

import hashlib
import os
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

CHUNK_BYTES = 1 << 20
TIMEOUT_S = 60.0


@dataclass(frozen=True)
class PublicTrace:
    """One public file: where it is, and what is known of it."""

    url: str
    about: str
    sha256: str | None = None

    @property
    def filename(self) -> str:
        return self.url.rsplit("/", 1)[1]


_AZURE = "https://raw.githubusercontent.com/Azure/AzurePublicDataset/master/data/"
_AZURE_2024 = "https://github.com/Azure/AzurePublicDataset/releases/download/dataset-llm-2024/"
_MOONCAKE = "https://raw.githubusercontent.com/kvcache-ai/Mooncake/main/FAST25-release/traces/"
_BURSTGPT = "https://github.com/HPMLL/BurstGPT/releases/download/v1.1/"
TRACES = {
    "azure-2023-conv": PublicTrace(
        _AZURE + "AzureLLMInferenceTrace_conv.csv",
        "19,366 requests, 1 hour, 0.7 MB, CC-BY-4.0",
        "2f1e5b666d4e3055fdbba98598ce2ec307767b9064e03e2fa46676dbcc7d0bf8",
    ),
    "azure-2023-code": PublicTrace(
        _AZURE + "AzureLLMInferenceTrace_code.csv",
        "8,819 requests, 1 hour, 0.3 MB, CC-BY-4.0",
        "54e9a6d2a4bd06ba1e060304b900abbc74cbea53de96506e60fe5bb4f2277fb6",
    ),
    "azure-2024-conv": PublicTrace(
        _AZURE_2024 + "AzureLLMInferenceTrace_conv_1week.csv",
        "27,303,999 requests, 1 week, 1.1 GB, CC-BY-4.0",
    ),
    "azure-2024-code": PublicTrace(
        _AZURE_2024 + "AzureLLMInferenceTrace_code_1week.csv",
        "16,803,695 requests, 1 week, 0.7 GB, CC-BY-4.0",
    ),
    "mooncake-conv": PublicTrace(
        _MOONCAKE + "conversation_trace.jsonl",
        "12,031 requests, 1 hour, 3.0 MB, Apache-2.0",
        "b8cbb061a85206d729d91cdc2981f43c9e0d99209dce588d3af5f7934408b9df",
    ),
    "mooncake-toolagent": PublicTrace(
        _MOONCAKE + "toolagent_trace.jsonl", "tool and agent requests, 1 hour, Apache-2.0"
    ),
    "burstgpt": PublicTrace(
        _BURSTGPT + "BurstGPT_without_fails_1.csv", "61 days of a university, CC-BY-4.0"
    ),
}

Opener = Callable[[str], BinaryIO]


def fetch(name: str, folder: Path, opener: Opener | None = None) -> Path:
    """Download the named trace into ``folder`` and return its path; one already there is kept.

    Raises ValueError for an unknown name, no connection, or a file that is not the known one.
    """
    if name not in TRACES:
        raise ValueError(f"unknown public trace {name!r}; known: {', '.join(TRACES)}")
    trace = TRACES[name]
    path = folder / trace.filename
    if path.exists() and trace.sha256 in (None, _sha256(path)):
        return path
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    try:
        digest = _copy((opener or _open)(trace.url), partial)
        if trace.sha256 not in (None, digest):
            raise ValueError(
                f"{trace.url}: SHA-256 is {digest}, expected {trace.sha256}; the public file has "
                "changed, download it by hand and check it before use"
            )
        os.replace(partial, path)
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise ValueError(
            f"cannot download {trace.url}: {reason}; is there internet access?"
        ) from None
    finally:
        partial.unlink(missing_ok=True)
    return path


def _open(url: str) -> BinaryIO:
    response: BinaryIO = urllib.request.urlopen(url, timeout=TIMEOUT_S)
    return response


def _copy(source: BinaryIO, path: Path) -> str:
    """Write the stream to ``path``; its SHA-256."""
    digest = hashlib.sha256()
    with source, path.open("wb") as file:
        while chunk := source.read(CHUNK_BYTES):
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
