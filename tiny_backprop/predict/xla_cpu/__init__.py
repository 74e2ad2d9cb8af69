"""What XLA:CPU alone makes of a program (JAX 0.10, with YNNPACK's kernels); imports the rest of `predict`."""
