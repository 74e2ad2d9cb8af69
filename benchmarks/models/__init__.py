"""Models that benchmarks, the demonstration and tests share; none of them knows of tiny_backprop."""
