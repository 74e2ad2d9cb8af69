"""Orders of steps, the referee that plays them, and what nodes cost; imports pure data alone."""
