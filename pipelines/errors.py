"""The one exception that is shown to a user as a message instead of a traceback."""


class UserError(ValueError):
    """Something the user can mend: the message says what was given, what is allowed, what to do."""

    def __init__(self, message: str) -> None:
        """Keep the message beside the arguments, into which Ray Data writes advice of its own."""
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        """The message."""
        return self.message


def reason(error: BaseException) -> str | None:
    """What to tell the user about an error, also one that came through Ray.

    None for a fault of the program, of which a traceback says more.
    """
    cause = getattr(error, "cause", error)  # what a Ray task raised
    return str(cause) if isinstance(cause, UserError | OSError) else None
