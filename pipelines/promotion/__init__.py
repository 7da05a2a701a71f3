"""Stage: the alias `champion` moves only when the evidence says so.

config.py     the settings of the job
gates.py      what is demanded (a YAML file) and whether it holds: pure functions
gates.yaml    what is demanded unless another file is named
candidate.py  what is known of a model: scores from MLflow, facts of its files
run_files.py  files of runs and models: there, not there, or not to be read
explain.py    where a registered model came from
run.py        register, judge, move; roll back; one at a time, by a lease in the store
"""
