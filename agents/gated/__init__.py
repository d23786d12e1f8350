"""Networks with gates of their own, which decide for single activations and not block by block: as contestants on the
task's axes, and how they are trained."""
