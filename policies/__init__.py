"""Verification policies: how many draft tokens each request sends to the target.

numpy and numba only. Importing the package registers every policy of this repository by name
(``policies.registry``).
"""

from policies import (  # noqa: F401  (imported to register)
    adaspec,
    ascend,
    atom,
    bandit,
    confidence,
    dcut,
    fixed,
    goodput,
    hardware_aware,
    mtp_1,
    none,
    oracle,
    oracle_static,
    per_batch_size,
    sglang,
    sglang_adaptive,
    tensorrt_llm,
    tetris,
    threshold,
    turbospec,
    vllm,
)
