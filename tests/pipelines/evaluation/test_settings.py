"""Settings of the tasks keep the names in keys that they had when results were first stored."""

from dataclasses import fields

import pytest

from pipelines.evaluation.settings import (
    FinetuneSettings,
    InpaintingSettings,
    ProbeSettings,
    settings_in_key,
)


@pytest.mark.parametrize("kind", [FinetuneSettings, InpaintingSettings, ProbeSettings])
def test_a_renamed_setting_has_its_former_name_in_keys(kind: type) -> None:
    renamed: dict[str, str] = kind.RENAMED_FLAGS  # type: ignore[attr-defined]
    names = {field.name for field in fields(kind)}
    assert set(renamed.values()) <= names and not set(renamed) & names
    found = settings_in_key(kind())
    assert set(found) == names - set(renamed.values()) | set(renamed)
    assert all(found[old] == getattr(kind(), new) for old, new in renamed.items())
