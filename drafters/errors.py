"""The one exception a command turns into a single line and exit code 2."""


class UserError(Exception):
    """Something the user gave cannot be used: what it was, what is allowed, what to do."""
