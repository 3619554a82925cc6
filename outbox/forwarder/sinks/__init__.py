"""Where a feed can go: one module for each kind, imported only where one of that kind is configured."""
