"""What tensors become: groups that share a palette or a basis, and the rows of each codec."""
