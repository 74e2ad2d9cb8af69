"""What runs beside the cells of a notebook: callbacks one at a time, compilations apart; imports the core."""
