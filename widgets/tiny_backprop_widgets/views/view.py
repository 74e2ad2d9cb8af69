"""What all views have in common: one module and one style sheet, a picture where there is no kernel, `save`."""

from __future__ import annotations

import html
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets

from tiny_backprop_widgets.errors import DisplayError
from tiny_backprop_widgets.views.stand_in import hidden_stand_in, show_with_stand_in


class View(anywidget.AnyWidget):
    """A live view in a notebook; where there is no kernel, a picture stands in its place.

    Subclasses say how they are drawn as a picture (`_pictures`) and what `save` writes (`_writers`).

    Attributes:
      kind: Name of the JavaScript module in `js/views` that draws it.
    """

    kind: str

    _stand_in_style = traitlets.Unicode().tag(sync=True)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write what is shown to a file, whose suffix is the format; the same content gives the same bytes.

        Args:
          path: File to write; its folder must exist.

        Returns:
          The path.

        Raises:
          DisplayError: There is no such format for this view; the message names those that there are.
          OSError: The file cannot be written.
        """
        path = Path(path)
        suffix = path.suffix.lower()
        writers = self._writers()
        if suffix not in writers:
            raise DisplayError(
                f"a {type(self).__name__} is saved as {', '.join(writers)}; {path.name!r} asks for {path.suffix!r}"
            )
        writers[suffix](path)
        return path

    def _writers(self) -> Mapping[str, Any]:
        """Return, for each suffix, the function that writes such a file to a path."""
        raise NotImplementedError

    def _pictures(self) -> dict[str, str]:
        """Return the picture that stands in where there is no kernel, by MIME type."""
        raise NotImplementedError

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        return with_pictures(super()._repr_mimebundle_(**kwargs), self, self._pictures)

    def _ipython_display_(self) -> None:
        """Show the live view and, as an output of its own, the picture that stands in where its model is not found."""
        self._stand_in_style = hidden_stand_in(self.model_id)
        show_with_stand_in(self._repr_mimebundle_(), self.model_id)


def with_pictures(bundle: Any, value: object, pictures: Any) -> dict[str, Any]:
    """Return a widget's MIME bundle with a text and pictures beside the live view; a failing picture says why."""
    data = dict(bundle[0] if isinstance(bundle, tuple) else bundle or {})
    data["text/plain"] = repr(value)
    try:
        data |= pictures()
    except Exception as e:
        data["text/html"] = f"<pre>{html.escape(repr(value))}\n(no picture: {html.escape(repr(e))})</pre>"
    return data


def packed(array: Any, dtype: Any) -> bytes:
    """Return an array as little-endian bytes, as a typed array of JavaScript reads them."""
    return np.ascontiguousarray(array, np.dtype(dtype).newbyteorder("<")).tobytes()
