"""What `spotrun doctor` looks at before a job starts: one file a subject, each giving findings.

It reads and probes, and takes away whatever it wrote. The command line uses it; nothing else does.
"""
