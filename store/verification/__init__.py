"""What `store.verify` is made of: readers of everything on disk that share no code with the write path."""
