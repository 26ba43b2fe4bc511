"""What is asked of a script and a model outside of a run: evaluations, dry runs, batch sizes."""
