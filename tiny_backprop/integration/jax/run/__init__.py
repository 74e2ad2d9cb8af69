"""From a plan to the gradient that runs; imports `xla`, `capture` and below."""
