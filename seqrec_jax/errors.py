"""The exceptions that are meant for the user: what to mend, and how to go on."""


class InputError(Exception):
    """Bad input or configuration; its message is one line that names the place and says what to do.

    The launcher prints the message without a traceback and exits with status 2.
    """


class Interrupted(Exception):  # noqa: N818  (nothing went wrong)
    """A run that was asked to stop and has stopped in good order; its message says how to go on.

    Args:
        message: one line.
        status: the process's exit status: 128 and the signal's number, or 0 where the configuration asked for it.
    """

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


def in_short(error: BaseException) -> str:
    """What an exception says, in a line of at most 500 characters; that of a library may quote a whole file."""
    return " ".join(str(error).split())[:500]
