"""The backends that compute the results of paid tasks."""
