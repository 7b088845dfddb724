"""The tables of the paper: what others printed, beside what runs of ours were tested to.

A table is a sweep and a page: its rows are settings of `engine.train`, each with each seed a run.
"""
