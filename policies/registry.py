"""Policies by name: ``@register`` a class, ``create`` an instance from a name and parameters.

A package outside this repository adds its own through the entry-point group
``dspark_lab.policies`` (entry name = policy name, value = ``module:Class``).
"""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from importlib.metadata import entry_points
from typing import Any, TypeVar

from policies.base import Policy

GROUP = "dspark_lab.policies"
_classes: dict[str, type] = {}
T = TypeVar("T", bound=type)


def register(cls: T) -> T:
    """Class decorator: make a policy known under its ``name``; refuses a name that is taken."""
    name = cls.name  # type: ignore[attr-defined]
    if name in _classes:
        raise ValueError(f"policy name {name!r} is taken by {_classes[name].__qualname__}")
    _classes[name] = cls
    return cls


def names() -> list[str]:
    """Every known policy name, sorted."""
    _load()
    return sorted(_classes)


def get(name: str) -> type:
    """The class registered under ``name``; ValueError lists the known names."""
    _load()
    if name not in _classes:
        raise ValueError(f"unknown policy {name!r}; known: {', '.join(names())}")
    return _classes[name]


def create(name: str, gamma: int, **parameters: Any) -> Policy:
    """A fresh policy; parameters are fields of its frozen ``Config`` dataclass.

    Raises ValueError for an unknown policy or parameter, a wrong type or a value out of range.
    """
    cls = get(name)
    config: Any = cls.Config  # type: ignore[attr-defined]
    allowed = {f.name: f for f in fields(config)}
    for key, value in parameters.items():
        if key not in allowed:
            known = ", ".join(allowed) or "none"
            raise ValueError(f"policy {name!r} has no parameter {key!r}; it has: {known}")
        kind = type(allowed[key].default)
        wrong = isinstance(value, bool) != (kind is bool) or not isinstance(
            value, (int, float) if kind is float else kind
        )
        if wrong:
            raise ValueError(
                f"policy {name!r}: {key}={value!r} must be of type {kind.__name__}"
                f" (default {allowed[key].default!r})"
            )
    made: Policy = cls(gamma, config(**parameters))
    return made


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """``'fixed-k:k=3'`` -> ``('fixed-k', {'k': 3})``; values read as int, float, bool or text."""
    name, _, tail = text.partition(":")
    parameters: dict[str, Any] = {}
    for item in filter(None, tail.split(";")):
        key, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"policy {text!r}: {item!r} must be parameter=value")
        parameters[key.strip()] = _value(value.strip())
    return name.strip(), parameters


def _value(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


@cache
def _load() -> None:
    import policies  # noqa: F401  (importing the package registers the built-in policies)

    for entry in entry_points(group=GROUP):
        cls = entry.load()
        if cls.name not in _classes:
            register(cls)
