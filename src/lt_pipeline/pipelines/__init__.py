"""The DAGs: thin nodes over the library."""
