"""Networks: the vision transformer, the projection head, and their official weight files."""
