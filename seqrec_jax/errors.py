"""The one exception that means: the user can mend this."""


class InputError(Exception):
    """Bad input or configuration; its message is one line that names the place and says what to do.

    The launcher prints the message without a traceback and exits with status 2.
    """
