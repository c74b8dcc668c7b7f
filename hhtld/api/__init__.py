"""What `import hhtld` gives: convert, open, save, load_file, save_file."""
