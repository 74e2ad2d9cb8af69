"""Searches for one order of steps of one graph within a memory; imports `schedule` and pure data."""
