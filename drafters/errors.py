"""What a command answers: one line and exit code 2 for what the user can mend, 130 when stopped."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gpu_traces.files import can_hold
from gpu_traces.manifest import BundleError


class UserError(Exception):
    """Something the user gave cannot be used: what it was, what is allowed, what to do."""


@contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """An OSError while ``path`` is written names it; one of a full disk names no file."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def check_folder(folder: Path) -> None:
    """UserError where no files can be put into ``folder``, which need not be there yet."""
    try:
        can_hold(folder / "file")
    except ValueError as error:
        raise UserError(str(error)) from None


def exit_code(job: Callable[[], int | None], stopped: str) -> int:
    """Run a command: its own code or 0, 2 after one line on stderr, 130 after saying what was
    ``stopped``."""
    try:
        return job() or 0
    except (UserError, BundleError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(stopped, file=sys.stderr)
        return 130
