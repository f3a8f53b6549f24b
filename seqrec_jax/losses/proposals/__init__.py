"""Proposals q: where negatives come from, and how probable each one was."""
