"""Bound for fixed lengths: the best k for a load, found by trying them all on that load.

l[r] = k, as ``fixed-k``; the search over k is the experiment's, which sees the results first.

Analysis only: hindsight picks k. The policy itself reads nothing and is lossless.
"""

from __future__ import annotations

from typing import ClassVar

from policies.fixed import FixedK
from policies.registry import register


@register
class OracleStatic(FixedK):
    """A fixed k chosen with hindsight."""

    name: ClassVar[str] = "oracle-static"
    analysis_only: ClassVar[bool] = True
