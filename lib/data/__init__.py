"""Images: from files to batches of pixels."""
