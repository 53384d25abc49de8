"""Weight files of backbones, in and out.

`load.load_backbone` reads a file in any layout: the names that a code or a library gives to the tensors. A layout is a
module, and the others hold what all have in common.
"""
