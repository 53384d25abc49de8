"""Frozen networks whose patch tokens are distilled. One module per option of the `teacher` group.

This module imports nothing: a run is named by the weights of its teacher (`weights`), without waiting for torch.
"""
