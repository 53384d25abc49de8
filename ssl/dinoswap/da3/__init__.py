"""Masked-image distillation: the student's masked tokens are projected and aligned with those of a frozen teacher.

The teacher is an option of the group `teacher`: a Depth Anything 3 backbone, or any other frozen network.
"""
