"""What formats give to the codec: tensors by name, their rows in blocks, and who works on them."""
