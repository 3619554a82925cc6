"""Configuration, wiring and the command line: the only place where objects are put together."""
