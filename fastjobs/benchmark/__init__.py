"""What `fastjobs bench` does: measure a store and a machine with real worker processes.

`app` has the handlers, `fleet` runs them in a process of its own, `meters` read what processes and stores have used, and
`scenarios` put these together. What was accepted, done and retried is counted; a scenario in
which the counts disagree fails.
"""
