"""Readers: sums over channels with stored weights, seen alike in every operator, and statistics."""
