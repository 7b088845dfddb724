"""The one exception for a mistake of the person at the command line."""


class UserError(Exception):
    """One line: what was wrong, the value, what is allowed, what to do. Command lines exit with 2."""
