"""Searches for good routes: one allocation of bitwidths for all images, the cheapest right route of each image, and a
learned choice among a few known routes."""
