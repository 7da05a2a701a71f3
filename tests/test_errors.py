"""No message tells a password, and the page of messages has those that the code says."""

import ast
import re
from collections.abc import Iterator

import pytest
from helpers import ROOT

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


VALUE = r"'[^']*'|\d[\d.]*|\.\.\.|[A-Z]+/[A-Z]+|TMPDIR|starting Ray here|CPUs|stopped: | of / .*"
"""What the code puts into a message when it says it."""


def texts_of_the_code() -> Iterator[str]:
    """Every text in `pipelines`, a newline for what is put into it."""
    for path in (ROOT / "pipelines").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (
                    part.value if isinstance(part, ast.Constant) else "\n" for part in node.values
                )
                yield "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_the_page_has_the_messages_of_the_code() -> None:
    page = (ROOT / "docs" / "errors.md").read_text()
    messages = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    code = "\n".join(texts_of_the_code())
    parts = [part.strip(" .,;:") for message in messages for part in re.split(VALUE, message)]
    assert len(messages) > 30
    assert [part for part in parts if len(part) > 3 and part not in code] == []
