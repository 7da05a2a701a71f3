"""The one exception that is shown to a user as a message instead of a traceback."""


class UserError(ValueError):
    """Something the user can fix: the message says what was given, what is allowed, what to do."""

    def __init__(self, message: str) -> None:
        """Keep the message beside the arguments, into which Ray Data writes advice of its own."""
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        """The message."""
        return self.message


def first_line(error: BaseException) -> str:
    """Of its text, to which servers and databases add much; its class where there is none."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
