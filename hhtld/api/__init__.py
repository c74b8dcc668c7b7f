"""What `import hhtld` gives: convert, encode, open, save, load_file, save_file."""
