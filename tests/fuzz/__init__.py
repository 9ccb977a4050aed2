"""Fuzzing of the readers: targets, the atheris harness, and the corpus that the tests replay."""
