"""Structured pruning: heads, feed-forward neurons, layers and context are removed, and the graph is really smaller."""
