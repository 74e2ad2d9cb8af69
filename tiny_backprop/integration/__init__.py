"""Bridges from array frameworks to the framework-free core."""
