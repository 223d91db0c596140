"""The two kinds of failure a user can meet."""


class BadInput(ValueError):
    """What was asked for cannot be done as asked; the command line exits with status 2.

    The message is one line: the thing, what it got, what it wants, the way out.
    """


class Fault(RuntimeError):
    """What was asked for was right and still failed here; the command line exits with status 1."""
