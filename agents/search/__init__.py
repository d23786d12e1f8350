"""Searches for good routes: static allocations of bitwidths, and the cheapest right route of each image."""
