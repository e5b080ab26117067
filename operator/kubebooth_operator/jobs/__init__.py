"""One piece of work and its Job, whoever asked for it: started, replaced, retried, counted, told.

Pure decisions that know no clock, cluster or network, and neither sessions nor conversions.
"""
