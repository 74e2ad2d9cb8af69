"""What a compiler is predicted to make of a schedule, in bytes and in seconds; imports `schedule` and pure data."""
