"""Damage: what a model loses with channels, measured on data and after repair."""
