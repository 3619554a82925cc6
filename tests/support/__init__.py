"""What the tests share: the plain model, a lake in this process, and writers of every batch format."""
