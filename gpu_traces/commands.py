"""What every command line shares: errors of one line, defaults in the help, numbers checked."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults of every option, and descriptions as they were written."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if not action.option_strings or action.default not in (None, "", []):
            return super()._get_help_string(action)
        return f"{action.help} ({'required' if action.required else 'default: none'})"


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors (exit code 2) and defaults in the help."""

    def __init__(self, prog: str, description: str | None = None) -> None:
        super().__init__(
            prog=prog, description=description, formatter_class=_Help, allow_abbrev=False
        )

    def error(self, message: str) -> None:  # type: ignore[override]
        """Say what is wrong in one line and leave with exit code 2."""
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")

    def answer(self, job: Callable[[], object], stopped: str = "nothing was written") -> int:
        """Run a command; its exit code.

        0, or after one line on stderr 2 for what the user can mend and 130 when interrupted.
        """
        try:
            job()
        except (ValueError, OSError) as error:
            print(f"{self.prog}: error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print(f"{self.prog}: interrupted; {stopped}", file=sys.stderr)
            return 130
        return 0


def whole(least: int) -> Callable[[str], int]:
    """An argparse type: an integer of at least ``least``."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, {least} or more")
        return value

    return parse


def positive(text: str) -> float:
    """An argparse type: a number above 0 (inf allowed)."""
    return _number(text, lambda value: value > 0, "a number above 0")


def share(text: str) -> float:
    """An argparse type: a number above 0 and at most 1."""
    return _number(text, lambda value: 0 < value <= 1, "a share, above 0 and at most 1")


def at_least_zero(text: str) -> float:
    """An argparse type: a finite number, 0 or above."""
    return _number(text, lambda value: 0 <= value < math.inf, "a number, 0 or more")


def _number(text: str, allowed: Callable[[float], bool], words: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not allowed(value):
        raise argparse.ArgumentTypeError(f"{text!r} must be {words}")
    return value
