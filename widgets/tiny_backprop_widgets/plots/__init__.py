"""Still pictures: frontiers, trade-offs, memory maps, graphs; imports the core."""
