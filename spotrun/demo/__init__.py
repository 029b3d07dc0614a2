"""`spotrun demo`: a small GPT learns Python while its nodes die, come and go.

`chargpt.py` is an ordinary torchrun script and knows nothing of spotrun. `scenario` decides what happens to the nodes
and when, `timeline` works out from events and metrics what it cost, `scene` and `view` show it, `plot` draws it; these
are pure. `nodes` owns the processes and `driver` ties everything together.
"""
