"""Who is in the job, who is lost, and which round is on, agreed through etcd v3.

It knows nodes, never worker processes. Only `handler.py` and `plugin.py` import torch.
"""
