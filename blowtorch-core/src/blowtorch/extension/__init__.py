"""What is known of the installed extensions, and what each must be."""
