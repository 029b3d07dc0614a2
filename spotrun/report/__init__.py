"""`spotrun report`: a job's ledger as one page. `history.py` says what happened, `page.py` and `draw.py` how it looks.

Nothing here reads etcd or files: it is given the entries of the ledger.
"""
