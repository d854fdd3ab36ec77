"""Turns the words of a command line into a checked `Config`."""
