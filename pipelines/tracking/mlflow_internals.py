"""All private interfaces of MLflow, measured with 3.17.2: an upgrade is one look at this file."""

from pathlib import Path

from mlflow.exceptions import MlflowException
from mlflow.store.db.utils import _get_latest_schema_revision
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.tracking._tracking_service.utils import _tracking_store_registry


def knows_protocol(uri: str) -> bool:
    """Whether MLflow, or a plug-in of it, speaks the protocol of a tracking server's URI."""
    try:
        _tracking_store_registry.get_store_builder(uri)
    except (MlflowException, ValueError):  # ValueError: no URI at all
        return False
    return True


def schema_revision() -> str:
    """The revision of the database schema that this MLflow reads and writes."""
    return str(_get_latest_schema_revision())


def make_database(file: Path) -> None:
    """Make a whole SQLite database in a new file and close it; takes seconds."""
    uri = f"sqlite:///{file}"
    store = SqlAlchemyStore(uri, (file.parent / "mlartifacts").as_uri())
    store.engine.dispose()
    SqlAlchemyStore._engine_map.pop(uri, None)
