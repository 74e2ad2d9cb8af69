"""JSON texts that say what they are: graphs and plans are saved as such."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def write_json(format_name: str, version: int, fields: Mapping[str, Any]) -> str:
    """Return the fields as JSON text that says that it is `format_name` in `version`."""
    return json.dumps({"format": format_name, "version": version, **fields})


def read_json(text: str, format_name: str, version: int, error: type[Exception]) -> dict[str, Any]:
    """Return the fields of a JSON text that says it is `format_name` in `version`; raise `error` otherwise."""
    try:
        data = json.loads(text)
    except (TypeError, ValueError, RecursionError) as e:
        raise error(f"expected the JSON text of a {format_name}; found something that is not JSON ({e})") from None
    if not isinstance(data, dict) or data.get("format") != format_name:
        raise error(f"expected the JSON text of a {format_name}; found {str(text)[:60]!r}")
    if data.get("version") != version:
        raise error(
            f"the {format_name} was written in version {data.get('version')!r} of its format; this version of "
            f"tiny_backprop reads version {version}. Make it again from the function."
        )
    return {k: v for k, v in data.items() if k not in ("format", "version")}
