"""How good answers are: gold, measures of the answers that have gold, and the statistics behind both."""
