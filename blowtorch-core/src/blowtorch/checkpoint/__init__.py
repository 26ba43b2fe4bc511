"""What is saved, what is kept, and how to come back."""
