"""From a plan to the gradient that runs, and what it costs beside others; imports `xla`, `capture` and below."""
