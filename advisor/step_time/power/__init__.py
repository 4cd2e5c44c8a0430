"""What boards draw: learned from recordings, and by the prior for a GPU that was not measured."""
