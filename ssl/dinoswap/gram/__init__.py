"""Gram anchoring: similarities between the student's patches are held at those of a teacher. A module per option."""
