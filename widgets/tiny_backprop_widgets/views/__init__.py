"""Live views in a notebook, each with its JavaScript; imports `plots` and `content`."""
