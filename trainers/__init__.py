"""Trainers: each kind turns records into a checkpoint."""
