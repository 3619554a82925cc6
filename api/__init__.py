"""The HTTP face of the service, a Litestar application."""
