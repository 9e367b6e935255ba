"""What is run around the training: launching, measuring, comparing, and the evidence for the claims."""
