"""The emulated models: their catalogue, the checks of their requests, their answers and their token counts."""
