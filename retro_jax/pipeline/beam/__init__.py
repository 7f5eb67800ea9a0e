"""The steps of `prepare` on Apache Beam: run.py their order, job.py a step's parts, spread.py the parts."""
