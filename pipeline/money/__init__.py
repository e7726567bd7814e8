"""Prices of models, the cost of answers, and budgets."""
