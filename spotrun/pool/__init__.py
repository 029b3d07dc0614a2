"""Machines for a job: what is missing is asked of a provider, and what is too much is given back."""
