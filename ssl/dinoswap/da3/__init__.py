"""Masked-image distillation: the student's masked tokens are projected and aligned with those of a frozen teacher.

The teacher is a Depth Anything 3 backbone, or any other frozen network that `protocol.Teacher` describes.
"""
