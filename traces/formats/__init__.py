"""Foreign formats that hold outcomes of samples: one file each, and what they share."""
