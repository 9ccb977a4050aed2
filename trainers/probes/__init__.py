"""Probes: what a training stage did to the weights, to single replies, to other skills and to style."""
