"""Where a node hears that it is to go: one file a source, all behind the Protocol in `notice.py`.

`watcher.py` is what the agent uses: it finds the sources that this machine has and passes on what they hear, each
notice once. `registry.py` knows the names of `--notice`; `polling.py` and `fetch.py` are what the clouds' sources
share. Nothing here knows the rendezvous, the workers, or what a notice leads to.
"""
