"""spotrun: elastic PyTorch training on machines that can vanish.

This is what a training script imports; it pulls in neither grpc nor the launcher, and torch only when it is used.
"""

__version__ = "0.1.0"
