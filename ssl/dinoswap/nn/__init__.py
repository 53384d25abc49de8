"""Networks: the vision transformer, the projection head, and weight files."""
