"""Nano: the bundled toy models and the small world they speak about."""
