"""What an empty server needs before the first job: the bucket, and the jobs' user of MLflow.

May run again: what there is stays.
"""

import os

import boto3
from mlflow.exceptions import RestException
from mlflow.server import get_app_client

BUCKET = "context-encoder"
USER = "trainer"


def main() -> None:
    """Make both; the addresses and logins are in the environment."""
    s3 = boto3.client("s3")
    if BUCKET not in {each["Name"] for each in s3.list_buckets()["Buckets"]}:
        s3.create_bucket(Bucket=BUCKET)
    logins = get_app_client("basic-auth", tracking_uri=os.environ["MLFLOW_TRACKING_URI"])
    try:
        logins.get_user(USER)
    except RestException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        logins.create_user(USER, os.environ["TRAINER_PASSWORD"])


if __name__ == "__main__":
    main()
