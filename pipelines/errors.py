"""The one exception that is shown to a user as a message instead of a traceback."""


class UserError(ValueError):
    """Something the user can mend: the message says what was given, what is allowed, what to do."""
