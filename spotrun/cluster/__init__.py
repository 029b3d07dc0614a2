"""Jobs on clusters: what is submitted to Slurm and Kubernetes. Pure; the commands that act are in `spotrun.cli`."""
