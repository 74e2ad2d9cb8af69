"""What XLA makes of a program: its bytes, FLOPs, seconds and the map of its memory; imports `capture` and below."""
