"""Runnable examples: emoji data, the recipe of the built-in model, the demo."""
