"""Work in parts: a queue that processes of this machine or a Dask cluster serve, resumable from a state file."""
