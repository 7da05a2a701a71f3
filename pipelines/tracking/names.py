"""What a registered model may be called; without mlflow, so that a config can ask."""

from pipelines.errors import UserError

NOT_IN_NAME = "/:@%\\"


def require_name(name: str) -> None:
    """Refuse, before anything runs, a name that no registered model can have.

    Raises:
        UserError: it is empty, or has a letter that means something else in `models:/NAME@ALIAS`.
    """
    if not name.strip() or name in (".", "..") or set(name) & set(NOT_IN_NAME) or "\n" in name:
        raise UserError(
            f"name is '{name}'; a registered model is called by a text without any of "
            f"{' '.join(NOT_IN_NAME)}, such as context-encoder"
        )
