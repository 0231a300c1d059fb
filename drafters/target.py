"""The target model: any Llama- or Qwen3-architecture causal LM, with a key/value cache we control.

Weights and tokenizer come from transformers; the forward pass is our own, because verification
needs ragged batches, positions that roll back, and the raw outputs of chosen layers
(the features that drafters condition on), all without recomputing anything that is cached.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from drafters.batch import Batch, Group
from drafters.config import layer_shape
from drafters.devices import checked
from drafters.errors import UserError
from drafters.fetch import MODELS, fetch
from drafters.layers import (
    DecoderLayer,
    LayerShape,
    RMSNorm,
    attend,
    attention_bias,
    causal,
    rotate,
)

if TYPE_CHECKING:
    from drafters.paging import PagedBatch

SUPPORTED = ("llama", "qwen3")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class Prepared(NamedTuple):
    """A batch as every layer's attention over a ``KVCache`` needs it."""

    rope: tuple[Tensor, Tensor]
    """Tables [T, e], fp32."""
    biases: list[Tensor]
    """``attention_bias`` of each group."""


class RaggedCache(Protocol):
    """Where a ragged pass keeps keys and values: ``KVCache``, or blocks (``drafters.paging``)."""

    def prepare(self, batch: Any) -> Any:
        """What ``attend`` needs to know of a batch, the same in every layer."""

    def attend(
        self, layer: int, batch: Any, heads: tuple[Tensor, Tensor, Tensor], prepared: Any
    ) -> Tensor:
        """Rotate and store new keys and values, and attend to all that is stored -> [T, H * e].

        ``heads``: new queries [T, H, e], keys and values [T, K, e].
        """


class KVCache:
    """Keys and values of every layer in slots of fixed capacity; a slot holds one sequence.

    Rolling back costs nothing: attention looks only at positions up to the query's own, so a
    rejected token is simply overwritten.
    """

    def __init__(
        self, layers: int, shape: LayerShape, slots: int, capacity: int, like: Tensor
    ) -> None:
        self._shape = shape
        size = (layers, slots, shape.num_kv_heads, capacity, shape.head_dim)
        self.keys, self.values = like.new_zeros(size), like.new_zeros(size)
        self.slots, self.capacity = slots, capacity
        self.whole = False
        """Attend to all of the capacity, masked: shapes that a graph can keep."""

    def write(self, layer: int, slots: Tensor, positions: Tensor, k: Tensor, v: Tensor) -> None:
        """Store k and v [n, K, q, e] at ``positions`` [n, q] of ``slots`` [n]."""
        where = (slots.unsqueeze(1), slice(None), positions)
        self.keys[layer][where] = k.transpose(1, 2)
        self.values[layer][where] = v.transpose(1, 2)

    def prepare(self, batch: Batch) -> Prepared:
        """See ``RaggedCache``."""
        shape, dtype = self._shape, self.keys.dtype
        rope = shape.rope.table(batch.positions, shape.head_dim)
        return Prepared(rope, [attention_bias(g.mask, shape, dtype) for g in batch.groups])

    def attend(
        self, layer: int, batch: Batch, heads: tuple[Tensor, Tensor, Tensor], prepared: Prepared
    ) -> Tensor:
        """See ``RaggedCache``."""
        q, k, v = heads
        where = (batch.slots, slice(None), batch.positions)
        self.keys[layer][where] = rotate(k, prepared.rope)
        self.values[layer][where] = v
        q = rotate(q, prepared.rope)
        groups = zip(batch.groups, prepared.biases, strict=True)
        return torch.cat([self._attend_group(layer, group, q, bias) for group, bias in groups])

    def _attend_group(self, layer: int, group: Group, q: Tensor, bias: Tensor) -> Tensor:
        rows = q[group.tokens]
        n, width = group.mask.shape[:2]
        rows = rows.unflatten(0, (n, width)) if group.padded is None else rows[group.padded]
        k = self.keys[layer, group.slots, :, : group.span]
        v = self.values[layer, group.slots, :, : group.span]
        out = attend(rows.transpose(1, 2), k, v, bias).flatten(0, 1)
        return out if group.flat is None else out[group.flat]

    def reach(self, positions: Tensor, beyond: int) -> int:
        """Cached positions that queries up to ``beyond`` past ``positions`` may look at."""
        return self.capacity if self.whole else int(positions.max()) + beyond

    def broadcast(self, length: int) -> None:
        """Copy the first ``length`` positions of slot 0 to every slot."""
        for store in (self.keys, self.values):
            store[:, 1:, :, :length] = store[:, :1, :, :length]

    def move(self, source: int, destination: int, length: int) -> None:
        """Copy the first ``length`` positions of one slot over another."""
        for store in (self.keys, self.values):
            store[:, destination, :, :length] = store[:, source, :, :length]


@dataclass
class TargetOutput:
    """``hidden`` [n, q, d] after the final norm; ``features`` [n, q, m * d], raw layer outputs.

    Of a ragged batch: [T, d] and [T, m * d].
    """

    hidden: Tensor
    features: Tensor | None


class Target(nn.Module):
    """A causal LM; state-dict names equal those of the Hugging Face checkpoint less ``model.``."""

    def __init__(self, shape: LayerShape, num_layers: int, vocab_size: int) -> None:
        super().__init__()
        self.shape, self.num_layers, self.vocab_size = shape, num_layers, vocab_size
        self.embed_tokens = nn.Embedding(vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(shape) for _ in range(num_layers))
        self.norm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.lm_head = nn.Linear(shape.hidden_size, vocab_size, bias=False)

    def new_cache(self, slots: int, capacity: int) -> KVCache:
        return KVCache(self.num_layers, self.shape, slots, capacity, self.norm.weight.detach())

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        cache: KVCache | None = None,
        slots: Tensor | None = None,
        feature_layers: tuple[int, ...] = (),
        fresh: bool = False,
    ) -> TargetOutput:
        """Run ``tokens`` [n, q] at absolute ``positions`` [n, q] (int64).

        Without a cache the tokens are a whole sequence, attended causally. With one, their keys
        are stored in ``slots`` [n] and queries see every stored position up to their own; the
        slots must then be 0..n-1, so that no key is copied. ``fresh`` says that the sequences
        start here (any slots, nothing earlier to look at). Padding goes to the right; what it
        writes is overwritten before anything can see it.
        """
        x = self.embed_tokens(tokens)
        rope = self.shape.rope.table(positions, self.shape.head_dim)
        looks_back = cache is not None and not fresh
        span = int(positions.max()) + 1 if looks_back else tokens.shape[1]
        if looks_back:
            seen = torch.arange(span, device=tokens.device) <= positions.unsqueeze(-1)
        else:
            seen = causal(span, tokens.device)
        bias = attention_bias(seen, self.shape, x.dtype)
        wanted = {-1: x} if -1 in feature_layers else {}
        for i, layer in enumerate(self.layers):
            normed = layer.input_layernorm(x)
            q = layer.self_attn.queries(normed, rope)
            k, v = layer.self_attn.keys_values(normed, rope)
            if cache is not None:
                cache.write(i, slots, positions, k, v)
            if looks_back:
                n = tokens.shape[0]
                k, v = cache.keys[i, :n, :, :span], cache.values[i, :n, :, :span]
            x = layer.finish(x, attend(q, k, v, bias))
            if i in feature_layers:
                wanted[i] = x
        features = torch.cat([wanted[i] for i in feature_layers], -1) if feature_layers else None
        return TargetOutput(self.norm(x), features)

    def ragged(
        self,
        batch: Batch | PagedBatch,
        cache: RaggedCache,
        feature_layers: tuple[int, ...] = (),
    ) -> TargetOutput:
        """Run a ragged batch over ``cache``: its keys are stored, queries see up to themselves."""
        x = self.embed_tokens(batch.tokens)
        prepared = cache.prepare(batch)
        wanted = {-1: x.clone()} if -1 in feature_layers else {}
        for i, layer in enumerate(self.layers):
            heads = layer.self_attn.project(layer.input_layernorm(x))
            layer.finish_in_place(x, cache.attend(i, batch, heads, prepared))
            if i in feature_layers:
                wanted[i] = x.clone()
        features = torch.cat([wanted[i] for i in feature_layers], -1) if feature_layers else None
        return TargetOutput(self.norm(x), features)


def resolve(name: str) -> str:
    """A model name of ``drafters.fetch`` becomes its local folder; anything else passes through."""
    return str(fetch(name)) if name in MODELS else name


def _source(name: str) -> str:
    """``resolve``; UserError for what cannot be a hub id either, without asking the hub."""
    if name not in MODELS and not Path(name).is_dir() and not HUB_ID.fullmatch(name):
        raise _not_loaded(name, "neither a folder nor OWNER/NAME")
    return resolve(name)


def load_target(name: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Target:
    """Load a target by fetched name, local folder or hub id; weights frozen, in ``dtype``.

    Raises UserError when it cannot be found, its architecture is not Llama or Qwen3 with the layers
    that we compute, its weights are not all there or no numbers, or there is no such device.
    """
    device = checked(device)
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    disable_progress_bar()  # errors of a command are one line on stderr
    set_verbosity_error()
    source = _source(name)
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        raise _not_loaded(name, error) from None
    except StrictDataclassError as error:  # tells the reason in its second line
        raise _not_loaded(name, " ".join(str(error).split())) from None
    if config.model_type not in SUPPORTED:
        raise UserError(
            f"target {name!r} has architecture {config.model_type!r}; supported: "
            + ", ".join(SUPPORTED)
        )
    try:
        shape = layer_shape(config.to_dict())
    except ValueError as error:
        raise UserError(f"target {name!r}: {error}") from None
    target = Target(shape, config.num_hidden_layers, config.vocab_size).to(dtype)
    target.load_state_dict(_read_weights(name, source, dtype))
    if config.tie_word_embeddings:
        target.lm_head.weight = target.embed_tokens.weight
    return target.to(device).requires_grad_(False).eval()


def _read_weights(name: str, source: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """A target's weights under our names. transformers would make up what the files lack."""
    from transformers import AutoModelForCausalLM

    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except (OSError, ValueError, SafetensorError) as error:  # weights missing or truncated
        raise _not_loaded(name, error) from None
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(f"target {name!r}: {len(missing)} keys are missing: {', '.join(missing)}")
    for key, found, wanted in sorted(report["mismatched_keys"]):
        raise UserError(
            f"target {name!r}: {key} has shape {list(found)}, config.json says {list(wanted)}"
        )
    weights = {k.removeprefix("model."): v for k, v in model.state_dict().items()}
    check_finite(weights, f"target {name!r}")
    return weights


def check_finite(weights: dict[str, Tensor], where: str) -> None:
    """UserError for floating-point ``weights`` that are no numbers."""
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise UserError(f"{where}: {name} holds NaN or infinity; the checkpoint is damaged")


def load_tokenizer(name: str) -> object:
    """The tokenizer that belongs to a target name, folder or hub id."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(_source(name))
    except (OSError, ValueError) as error:
        raise _not_loaded(name, error) from None


def _not_loaded(name: str, error: Exception | str) -> UserError:
    return UserError(
        f"target {name!r} cannot be loaded ({str(error).splitlines()[0]}); give one of "
        f"{', '.join(MODELS)}, a local folder or a hub id"
    )


def encode_chat(tokenizer: object, prompt: str) -> list[int]:
    """Token ids of one user turn in the target's chat template, ready for the answer."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
    )
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def chat_opening(tokenizer: object) -> list[int]:
    """Token ids of the target's chat template up to where a user's words begin."""
    mark = "\N{SECTION SIGN}"
    text = tokenizer.apply_chat_template([{"role": "user", "content": mark}], tokenize=False)
    return tokenizer(text.partition(mark)[0], add_special_tokens=False)["input_ids"]


def stop_tokens(name: str, tokenizer: object) -> frozenset[int]:
    """Every end-of-sequence id that the target's generation config or tokenizer names."""
    path = Path(resolve(name)) / "generation_config.json"
    ids = json.loads(path.read_text()).get("eos_token_id") if path.exists() else None
    ids = ids if isinstance(ids, list) else [ids]
    return frozenset(i for i in [*ids, tokenizer.eos_token_id] if i is not None)
