"""Concrete shapes and the values of shape arithmetic."""
