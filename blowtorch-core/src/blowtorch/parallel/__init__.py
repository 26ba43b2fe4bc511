"""Several processes that train together: who they are, which samples are whose, and what they agree on."""
