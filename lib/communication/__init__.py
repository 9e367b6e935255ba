"""What processes tell each other: mean of the gradients, agreement, broadcasts."""
