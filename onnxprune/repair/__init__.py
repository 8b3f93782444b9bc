"""Kept weights refitted on calibration data, without training."""
