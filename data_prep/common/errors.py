"""The one exception that a user is meant to read."""


class UserError(Exception):
    """An error that the user can correct: one sentence that names the field or file, and the remedy.

    The ``phasecollapse`` command prints its text after ``error:``, without a traceback, and exits with status 2.
    """
