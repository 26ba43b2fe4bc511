"""`blowtorch runs verify-resume`: a run that is killed and continued, compared with one that is left alone."""
