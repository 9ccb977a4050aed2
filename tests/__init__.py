"""Tests of what a user can see."""
