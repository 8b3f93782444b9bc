"""Samples, labels and metrics."""
