"""What the recordings hold that the laws and the replay are learned from."""
