"""A Llama model's weights out of a GGUF file, with numpy alone.

Recording machines may hold neither the ``gguf`` package nor what transformers wants for reading
such files, so the four storage types that small Llama files use are decoded here. GGUF stores the
rotary halves of query and key rows interleaved; they are put back as Hugging Face has them.
Source: the GGUF specification (ggml-org/ggml, docs/gguf.md), ggml-quants.c.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from drafters.errors import UserError

Floats = npt.NDArray[np.float32]

_SCALARS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_TEXT, _LIST = 8, 9
BLOCK = 32

NAMES = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _q8_0(raw: npt.NDArray[np.uint8]) -> Floats:
    """34 bytes per block: half scale, 32 signed bytes."""
    scale = raw[:, :2].copy().view(np.float16).astype(np.float32)
    return scale * raw[:, 2:].view(np.int8).astype(np.float32)


def _q4_1(raw: npt.NDArray[np.uint8]) -> Floats:
    """20 bytes per block: half scale and minimum, 16 low nibbles' values before 16 high ones."""
    scale, low = (raw[:, i : i + 2].copy().view(np.float16).astype(np.float32) for i in (0, 2))
    nibbles = np.concatenate((raw[:, 4:] & 15, raw[:, 4:] >> 4), 1)
    return scale * nibbles.astype(np.float32) + low


class Storage(NamedTuple):
    """How a storage type is decoded: bytes and values per block, blocks [n, bytes] -> values."""

    bytes: int
    values: int
    decode: Callable[[npt.NDArray[np.uint8]], Floats]


STORAGE = {
    0: Storage(4, 1, lambda raw: raw.copy().view(np.float32)),
    1: Storage(2, 1, lambda raw: raw.copy().view(np.float16).astype(np.float32)),
    3: Storage(20, BLOCK, _q4_1),
    8: Storage(34, BLOCK, _q8_0),
}


class _Reader:
    """Little-endian values one after the other."""

    def __init__(self, data: npt.NDArray[np.uint8]) -> None:
        self.data, self.at = memoryview(data), 0

    def scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += struct.calcsize("<" + code)
        return value

    def text(self) -> str:
        length = self.scalar("Q")
        self.at += length
        return bytes(self.data[self.at - length : self.at]).decode()

    def value(self, kind: int) -> Any:
        if kind == _TEXT:
            return self.text()
        if kind == _LIST:
            inner, count = self.scalar("I"), self.scalar("Q")
            return [self.value(inner) for _ in range(count)]
        return self.scalar(_SCALARS[kind])


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, Floats]]:
    """Metadata, and every tensor decoded to float32 under its GGUF name.

    UserError for a file that is no GGUF or holds a storage type not known here.
    """
    data = np.memmap(path, dtype=np.uint8, mode="r")
    reader = _Reader(data)
    if data[:4].tobytes() != b"GGUF":
        raise UserError(f"{path}: not a GGUF file")
    reader.at = 8
    tensors, entries = reader.scalar("Q"), reader.scalar("Q")
    metadata = {reader.text(): reader.value(reader.scalar("I")) for _ in range(entries)}
    found = []
    for _ in range(tensors):
        name = reader.text()
        shape = [reader.scalar("Q") for _ in range(reader.scalar("I"))][::-1]
        found.append((name, shape, reader.scalar("I"), reader.scalar("Q")))
    step = metadata.get("general.alignment", 32)
    start = -(-reader.at // step) * step
    return metadata, {
        name: _decode(path, data[start + offset :], name, shape, kind)
        for name, shape, kind, offset in found
    }


def _decode(
    path: Path, data: npt.NDArray[np.uint8], name: str, shape: list[int], kind: int
) -> Floats:
    if kind not in STORAGE:
        known = ", ".join(map(str, STORAGE))
        raise UserError(f"{path}: {name} has storage type {kind}; known here: {known}")
    how = STORAGE[kind]
    blocks = int(np.prod(shape)) // how.values
    raw = np.asarray(data[: blocks * how.bytes]).reshape(blocks, how.bytes)
    return how.decode(raw).reshape(shape)


def llama_weights(path: Path) -> dict[str, Floats]:
    """Weights of a Llama model under their Hugging Face names (a tied output head left out)."""
    metadata, tensors = read_gguf(path)
    if metadata.get("general.architecture") != "llama":
        raise UserError(f"{path}: architecture {metadata.get('general.architecture')!r}, not llama")
    heads = {
        "attn_q": metadata["llama.attention.head_count"],
        "attn_k": metadata["llama.attention.head_count_kv"],
    }
    made = {}
    for name, tensor in tensors.items():
        prefix, part = re.fullmatch(r"(blk\.\d+\.)?(\w+)\.weight", name).groups()  # type: ignore[union-attr]
        if part in heads:
            tensor = _halves(tensor, heads[part])
        layer = prefix.replace("blk", "model.layers") if prefix else "model."
        made["lm_head.weight" if part == "output" else f"{layer}{NAMES[part]}.weight"] = tensor
    return made


def _halves(weight: Floats, heads: int) -> Floats:
    """Rows (0, h, 1, h + 1, ...) of each head back to (0, 1, .., h, h + 1, ..)."""
    rows, width = weight.shape
    split = weight.reshape(heads, rows // heads // 2, 2, width)
    return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(rows, width)
