"""`blowtorch doctor`: looks at this installation, and at several processes, and says what is wrong and what to do."""
