"""Generators: prompts become replies, critiques, revisions and comparisons."""
