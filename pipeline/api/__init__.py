"""The calls of Anthropic's API that the pipeline makes, through the installed SDK."""
