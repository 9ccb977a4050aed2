"""Constitutions: written principles, how they are loaded, and how they are drawn."""

from constitution.loader import load
from constitution.schema import Constitution, Exemplar, Principle

__all__ = ["Constitution", "Exemplar", "Principle", "load"]
