"""What a deployment that was only watched teaches: its steps and its traffic, as far as told."""
