"""The steps of `prepare` on Apache Beam: run.py the order, job.py a step's parts, work.py the steps."""
