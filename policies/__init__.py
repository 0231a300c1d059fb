"""Verification policies: how many draft tokens each request sends to the target.

numpy and numba only. Importing the package registers every policy of this repository by name
(``policies.registry``).
"""

from policies import (  # noqa: F401  (imported to register)
    confidence,
    fixed,
    hardware_aware,
    mtp_1,
    none,
    threshold,
)
