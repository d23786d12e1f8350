"""Searches for good routes: static allocations of bitwidths, and the cheapest correct route of each image."""
