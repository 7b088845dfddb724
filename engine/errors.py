"""What a person is told instead of a traceback."""


class UserError(Exception):
    """A mistake to correct, in one line: what, the value, what is allowed, what to do. Exit 2."""
