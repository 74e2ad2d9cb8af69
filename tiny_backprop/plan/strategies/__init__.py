"""From a graph with its loops to a schedule: trees of blocks, byte budgets; imports `plan.loops` and below."""
