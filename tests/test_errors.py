"""No message tells a password."""

import pytest

from pipelines.errors import UserError, first_line, redact
from pipelines.runtime.progress import plain_console

SECRET = "s3cr3t-PW"


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (f"http://alice:{SECRET}@127.0.0.1:5000/a", "http://127.0.0.1:5000/a"),
        (f"http://{SECRET}@host", "http://host"),
        (f"http://alice:a/b@{SECRET}@host/x", "http://host/x"),
        (f"postgresql+psycopg2://alice:{SECRET}@h/db", "postgresql+psycopg2://h/db"),
        (f"s3://{SECRET}:x@bucket/y", "s3://bucket/y"),
        (
            f"https://h/x?a=1&X-Amz-Signature={SECRET}&b=2",
            "https://h/x?a=1&X-Amz-Signature=...&b=2",
        ),
        (f"in 'http://a:{SECRET}@h', and \"ftp://b:{SECRET}@h\"", "in 'http://h', and \"ftp://h\""),
        # What only looks like it stays.
        ("http://host:5000/a@b", "http://host:5000/a@b"),
        ("http://[::1]:5000/a@b", "http://[::1]:5000/a@b"),
        ("sqlite:////tmp/a@b/mlflow.db", "sqlite:////tmp/a@b/mlflow.db"),
        ("s3://bucket/a@b.jpg", "s3://bucket/a@b.jpg"),
        ("models:/name@champion", "models:/name@champion"),
        ("alice@host: no URI", "alice@host: no URI"),
    ],
)
def test_a_text_tells_no_user_of_a_uri(
    given: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert redact(given) == shown
    assert redact(shown) == shown
    assert str(UserError(given)) == shown
    assert first_line(ValueError(given)) == shown
    plain_console(soft_wrap=True).print(given)
    assert capsys.readouterr().err == f"{shown}\n"
