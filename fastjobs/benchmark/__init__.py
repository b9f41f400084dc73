"""What `fastjobs bench` does: measure a store and a machine with real worker processes.

`app` has the handlers, `fleet` runs them in a process of its own, `meters` read what processes and stores have used, and
`scenarios` put these together. Every job is counted; a scenario that loses or repeats one fails.
"""
