"""What a person is told instead of a traceback."""


class UserError(Exception):
    """A mistake to correct, in one line: what, the value, what is allowed, what to do."""

    exit_code = 2


class Diverged(Exception):
    """Something is no longer finite; the message says where and what."""

    exit_code = 3
