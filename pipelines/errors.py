"""The one exception that a user sees as a message instead of a traceback, and words of messages.

No message tells a password: what a URI says of its user is left out of every text here.
"""

import re

# `user:password@` after `://`; a password may hold a slash, unless it looks like a port.
USER_INFORMATION = re.compile(r"(?<=://)(?:[^/\[\s:@'\"]*:(?!\d+/)[^\s'\"]*@|[^/\s'\"]*@)")
# Values that let their holder in: of presigned URLs, and tokens.
SIGNED = re.compile(
    r"([?&](?:X-Amz-(?:Signature|Credential|Security-Token)|AWSAccessKeyId|Signature|sig|token"
    r"|access_token|password)=)[^&\s'\"]+",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """A text whose URIs name no user, password, signature or token."""
    return SIGNED.sub(r"\1...", USER_INFORMATION.sub("", text)) if "://" in text else text


class UserError(ValueError):
    """Something the user can fix: the message says what was given, what is allowed, what to do."""

    code = 1
    """Exit code of a job that ends with it."""

    def __init__(self, message: str) -> None:
        """Keep the message beside the arguments, into which Ray Data writes advice of its own."""
        self.message = redact(message)
        super().__init__(self.message)

    def __str__(self) -> str:
        """The message."""
        return self.message


class RefusedError(UserError):
    """A gate refuses a model: no mistake in the command, so it has an exit code of its own."""

    code = 3


def first_line(error: BaseException) -> str:
    """Of its text, to which servers and databases add much; its class where there is none."""
    return redact(str(error)).strip().partition("\n")[0] or type(error).__name__


def counted(count: int, noun: str, nouns: str | None = None) -> str:
    """`1 image`, `2 images`, `1,000 classes`."""
    return f"{count:,} {noun if count == 1 else nouns or noun + 's'}"
