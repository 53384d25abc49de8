"""The families of metrics that frozen features are judged by, one module for each option of the group `metric`."""
