"""Still pictures: frontiers, trade-offs, memory maps, graphs; imports `content` and the core."""
