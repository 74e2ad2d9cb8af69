"""From a JAX function to a graph with the equations of its nodes; imports `compat`, `flops` and the core."""
