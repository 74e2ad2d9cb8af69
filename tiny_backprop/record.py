"""`Record`: base of frozen dataclasses of which only the fields are copied and pickled."""

from __future__ import annotations

import dataclasses
from typing import Any


class Record:
    """Base of dataclasses that keep with themselves what was derived from them; a copy derives it anew."""

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
