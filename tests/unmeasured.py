"""The plan as it is where ``mode=doctor`` hasn't been: whoever runs the tests may have measured the machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.plan import measured, table
from conf.schema import RunConfig

OWN = RunConfig.__dataclass_fields__["cache_dir"].default


def unmeasured(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Looks for what was measured in ``folder`` and not in the user's own cache; in a cache of a test's as ever."""
    place = measured.place

    def elsewhere(config: RunConfig) -> Path:
        return place(config) if config.cache_dir != OWN else folder / place(config).name

    patch.setattr(measured, "place", elsewhere)
    patch.setattr(table, "place", elsewhere)
