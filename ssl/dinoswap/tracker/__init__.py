"""Experiment trackers, which show a run elsewhere than in its folder: the group `tracker`."""
