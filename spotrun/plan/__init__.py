"""What `spotrun plan` computes before a job is paid for: memory, time, goodput and cost on each kind of machine.

`memory.py` and `cost.py` are pure; `catalog.py` reads prices; `activations.py` runs the user's model without memory.
"""
