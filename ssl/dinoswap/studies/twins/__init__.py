"""What each arm of a study would do at the same weights: gradients, updates, targets and losses on the same batches.

A study trains its arms and compares where they end, which takes days and tells no reasons. Here one run is trained, the
reference, and at its checkpoints every arm is given the reference's weights and the same images, and computes its own
gradient: how far it is turned from the reference's is seen after minutes, by block and by step.
"""
