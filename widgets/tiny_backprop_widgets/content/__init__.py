"""What pictures, views and reports tell of a graph and a plan, as numbers and words; imports the core."""
