"""Where tests put objects on the S3 server of `benchmarks.s3_server`."""

BUCKET = "pictures"


def place(name: str) -> str:
    """A URI below the prefix that every test leaves empty."""
    return f"s3://{BUCKET}/t/{name}"
