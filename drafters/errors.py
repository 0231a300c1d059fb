"""The one exception a command turns into a single line and exit code 2."""


class UserError(Exception):
    """Something the user gave cannot be used; the message says what, what is allowed, what to do."""
