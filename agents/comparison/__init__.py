"""What result lines say when they are put side by side: fronts, statistics over seeds, and who is ahead at equal cost.
Numbers in, numbers out: no model and no run is touched."""
