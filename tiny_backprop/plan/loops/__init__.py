"""Loops and branches: how they may be reversed, and which ways are worth it; imports `plan.search` and below."""
