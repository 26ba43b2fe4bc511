"""What is saved, when, what is kept, and how to come back."""
