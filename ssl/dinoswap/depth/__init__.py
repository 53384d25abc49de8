"""Sources of images whose depth is known at every pixel: the options of the group `depth`."""
