"""Scores, cost, and the choice of widths under budgets."""
