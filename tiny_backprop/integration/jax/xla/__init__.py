"""What XLA made of a program: measured bytes, FLOPs and seconds, and the map of its memory; imports `capture` and below."""
