"""One agent a node: it starts, watches, drains and restarts the workers of its node.

It knows the rendezvous only through `spotrun.rendezvous.membership`, and nothing of the training API beyond the local
channel to the workers.
"""
