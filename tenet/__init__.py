"""tenet: preference data from a written constitution. This package is the ground floor."""

__version__ = "0.1.0"
