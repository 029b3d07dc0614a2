"""`spotrun demo`: a small GPT learns Python while its nodes die, come and go.

`chargpt.py` is the training script, and the example of the training API. `scenario` decides what happens to the nodes
and when, `timeline` works out from events and metrics what it cost, `scene` and `view` show it, `plot` draws it; these
are pure. `nodes` owns the processes, `metadata` says what AWS would say, and `driver` ties everything together.
"""
