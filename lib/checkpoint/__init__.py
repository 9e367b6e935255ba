"""Files from which a run continues, and its weights."""
