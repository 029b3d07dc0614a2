"""Jobs on clusters: what is submitted to Slurm and Kubernetes, and the pool that brings back lost capacity.

Files here are pure but for `pool_loop.py` and `providers.py`; the commands that act are in `spotrun.cli`.
"""
