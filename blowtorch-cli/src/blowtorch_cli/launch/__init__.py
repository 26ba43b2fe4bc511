"""`blowtorch launch`: a training script in several processes, by torch's agent for elastic jobs."""
