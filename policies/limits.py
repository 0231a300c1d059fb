"""Range checks for policy parameters, all with the same message."""

from __future__ import annotations


def in_range(policy: str, config: object, **bounds: tuple[float, float]) -> None:
    """Raise ValueError unless each named field of ``config`` lies in its closed interval.

    NaN is refused with the rest.
    """
    for field, (low, high) in bounds.items():
        value = getattr(config, field)
        if not low <= value <= high:
            raise ValueError(f"policy {policy!r}: {field}={value} must lie in {low}..{high}")
