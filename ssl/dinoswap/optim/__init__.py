"""Parameter groups by name, and gradient clipping."""
