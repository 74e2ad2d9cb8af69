"""What can go wrong here and nowhere else."""

from tiny_backprop.errors import TinyBackpropError


class DisplayError(TinyBackpropError, ValueError):
    """Something cannot be drawn or exported as asked."""
