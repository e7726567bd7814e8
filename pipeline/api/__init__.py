"""Anthropic's API as the pipeline uses it, through the installed SDK."""
