"""The target model: any Llama- or Qwen3-architecture causal LM, with a key/value cache we control.

Weights and tokenizer come from transformers; the forward pass is our own, because verification
needs ragged batches, positions that roll back, and the raw outputs of chosen layers
(the features that drafters condition on), all without recomputing anything that is cached.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from drafters.batch import Batch
from drafters.cache import KVCache, RaggedCache
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
)

if TYPE_CHECKING:
    from drafters.paging import PagedBatch

SUPPORTED = ("llama", "qwen3")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


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
        self.max_positions = math.inf
        """Positions that it was made for (``max_position_embeddings``), where that is known."""
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
    target.max_positions = getattr(config, "max_position_embeddings", None) or math.inf
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
