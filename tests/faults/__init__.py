"""Faults put in on purpose, and what a run does about each; `python -m tests.faults` prints them as a page."""
