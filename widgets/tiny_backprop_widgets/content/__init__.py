"""What pictures, views and reports tell of a graph and a plan, as arrays and words, nothing drawn; imports the core."""
