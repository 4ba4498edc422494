"""MLflow's web pages of a store: the server on this machine, its app, and its users."""
