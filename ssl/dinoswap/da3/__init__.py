"""Masked-image distillation: the student's masked tokens, projected, point where those of a frozen teacher do.

The teacher is a Depth Anything 3 backbone, or any other frozen network that `protocol.Teacher` describes.
"""
