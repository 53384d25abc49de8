"""Sources of images whose every pixel has a class: the options of the group `dense`."""
