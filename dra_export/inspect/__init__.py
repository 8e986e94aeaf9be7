"""What a file or folder is, and where it runs."""
