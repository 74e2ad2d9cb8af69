"""Plans of a graph: planners and the `Plan` that they return; imports `predict` and below, never JAX."""
