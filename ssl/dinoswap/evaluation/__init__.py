"""Judging a backbone by its frozen features, beside baselines that need no training."""
